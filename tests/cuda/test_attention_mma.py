"""Attention on the tensor cores (`attention_mma.cu`), its instructions emulated on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.cuda.attention_mma import SIZES, drawn, far_from_zero, on_tensor_cores, results_of
from tests.cuda.emulator import COMPILER, Device
from tinygpt._ext.cuda.attention import attention, attention_mma

ml_dtypes = pytest.importorskip("ml_dtypes")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler (g++, c++ or clang++; CXX names another)"),
]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BFLOAT16], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_results_are_within_the_roundings_to_16_bits(size: Any, dtype: Any) -> None:
    on_tensor_cores(Device(), dtype, size)


@pytest.mark.parametrize("is_causal", [True, False])
def test_scores_far_from_zero(is_causal: bool) -> None:
    far_from_zero(Device(), is_causal)


@pytest.mark.parametrize("size", [SIZES[0], SIZES[4]], ids=str)
def test_the_order_of_threads_changes_no_bit(size: Any) -> None:
    found = [results_of(Device(schedule), BFLOAT16, size)[1] for schedule in (0, 1, 5)]
    for others in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], others, strict=True))


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BFLOAT16], ids=str)
def test_a_row_of_nan_stays_one(dtype: Any) -> None:
    device = Device()
    q, k, v = (drawn(dtype, 1, 1, 70, 32).copy() for _ in range(3))
    q[0, 0, 67, 3] = np.nan
    y, lse = attention.attention_forward(device, q, k, v, True, 0.3, 0.0, 0, 0)
    assert device.launched[0][0] == "attention_mma"
    assert np.isnan(y[0, 0, 67].astype(np.float32)).all()
    assert np.isnan(lse[0, 0, :, 0]).nonzero()[0].tolist() == [67]
    assert np.isnan(y.astype(np.float32)).sum() == 32


def test_what_these_kernels_do_not_take_goes_to_the_others() -> None:
    def is_taken(device: Device, array: Any, scale: float = 0.3) -> bool:
        return attention_mma.takes(device, scale, array, array)

    fits = np.zeros((1, 2, 70, 40), np.float16)
    assert is_taken(Device(), fits)
    assert is_taken(Device(), np.zeros((1, 2, 70, 128), np.float16))
    assert not is_taken(Device(), fits, -0.3)
    assert not is_taken(Device(), fits, 0.0)
    assert not is_taken(Device(), fits.astype(np.float32))
    assert not is_taken(Device(), np.zeros((1, 2, 70, 36), np.float16))
    assert not is_taken(Device(), np.zeros((1, 2, 70, 136), np.float16))
    assert not is_taken(Device(), np.zeros((1, 2, 70, 41), np.float16)[..., 1:])
    old = Device()
    old.has_tensor_cores = False
    assert not is_taken(old, fits)
    attention.attention_forward(old, fits, fits, fits, True, 0.3, 0.0, 0, 0)
    assert [file for file, _ in old.launched] == ["attention"]
