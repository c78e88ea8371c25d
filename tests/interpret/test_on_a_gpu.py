"""The views on arrays of the backend "cupy", and in 16 bits, without a GPU: on the stand-in for CuPy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cuda import standin
from tests.cuda.precision import in_both
from tests.interpret.helpers import IDS, make_model
from tinygpt import interpret

ALLOWED = {"bfloat16": 0.08, "float16": 0.01}  # of the largest number: a few roundings in each of three blocks


@pytest.fixture(autouse=True)
def on_the_stand_in() -> Iterator[None]:
    with standin.installed(), tg.use_kernels("reference"):
        yield


def views(model: Any) -> dict[str, np.ndarray]:
    """Every view, as one array each."""
    with interpret.ablate(model, heads=[(0, 1), (2, 3)], layers=[1]):
        stream = interpret.activations(model, IDS)
    statistics = interpret.layer_statistics(model, IDS).values()
    with interpret.hooked(model, {"h.1.mlp": lambda x: x * 2.0}):
        doubled = interpret.activations(model, IDS, ["h.2", "h.0.attn.c_attn"])
    return {
        "maps": interpret.attention_maps(model, IDS),
        "lens": interpret.logit_lens(model, IDS),
        "gradient": interpret.saliency(model, IDS, 5),
        "integrated": interpret.saliency(model, IDS, 5, "integrated_gradients", steps=64),
        "stream": np.stack(list(stream.values())),
        "doubled": doubled["h.2"],
        "qkv": doubled["h.0.attn.c_attn"],
        "statistics": np.array([[one.activation.rms, one.gradient.rms] for one in statistics if one.gradient]),
    }


def moved() -> tuple[Any, dict[str, np.ndarray]]:
    """A model on the stand-in, and what the views of it are on the CPU."""
    model = make_model("float32").eval()
    expected = views(model)
    return model.to("cupy"), expected


@pytest.mark.slow
def test_on_the_gpu() -> None:
    model, expected = moved()
    for name, array in views(model).items():
        assert type(array) is np.ndarray, name
        np.testing.assert_allclose(
            array, expected[name], rtol=1e-4, atol=1e-5 * np.abs(expected[name]).max(), err_msg=name
        )


@pytest.mark.slow
@in_both
def test_in_16_bits(name: str) -> None:
    model, expected = moved()
    with model.compute_in(name):
        found = views(model)
    for view, array in found.items():
        assert array.dtype in (np.float32, np.float64), view
        np.testing.assert_allclose(
            array, expected[view], atol=ALLOWED[name] * np.abs(expected[view]).max(), err_msg=view
        )
    assert not np.array_equal(found["stream"], expected["stream"])
