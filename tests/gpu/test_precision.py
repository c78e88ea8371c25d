"""16 bits on a GPU: products by cuBLAS, runs that learn as in float32. `pytest -m gpu` where there is one.

Elsewhere each is skipped, with the sentence of what is missing. What can be shown without a GPU is in
tests/cuda/test_mixed_precision.py and its kin.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cuda.precision import EPS, EPS32
from tests.training.helpers import SHAPE, make_trainer
from tinygpt import backends
from tinygpt.backends.precision import activation_dtype
from tinygpt.errors import UsageError
from tinygpt.ops._matmul import add_matmul, matmul_arrays
from tinygpt.training import CheckpointFolder, read_metrics

pytestmark = pytest.mark.gpu

IDS = np.random.default_rng(1).integers(0, 11, (3, 8))
TARGETS = np.random.default_rng(2).integers(0, 11, (3, 8))


@pytest.fixture(params=["float16", "bfloat16"])
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of a type that this machine's GPU has."""
    try:
        with tg.use_backend("cupy"):
            activation_dtype(request.param, "cupy")
            yield request.param
    except UsageError as error:
        pytest.skip(str(error))


def on_gpu(array: Any, name: str) -> Any:
    return backends.move(np.asarray(array, np.float32), "cupy").astype(activation_dtype(name, "cupy"))


def host(array: Any) -> np.ndarray:
    return backends.move(array.astype("float32"), "numpy").astype(np.float64)


@pytest.mark.parametrize("shape", [(5, 3, 4), (1, 3, 4), (5, 1, 4), (5, 3, 1), (1, 1, 1), (1, 300, 1), (96, 513, 65)])
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
def test_products_are_summed_in_float32(name: str, shape: tuple[int, int, int], transposed: tuple[bool, bool]) -> None:
    (M, K, N), rng = shape, np.random.default_rng(0)
    a, b = (
        on_gpu(rng.standard_normal(size[::-1] if turned else size), name)
        for size, turned in zip(((M, K), (K, N)), transposed, strict=True)
    )
    a, b = (x.T if turned else x for x, turned in zip((a, b), transposed, strict=True))
    truth, room = host(a) @ host(b), np.abs(host(a)) @ np.abs(host(b))
    exact = (K + 1) * EPS32 * room
    wide, narrow = matmul_arrays(a, b, float32_result=True), matmul_arrays(a, b)
    assert (wide.dtype.name, narrow.dtype.name) == ("float32", name)
    assert (np.abs(host(wide) - truth) <= exact).all()
    assert (np.abs(host(narrow) - truth) <= exact + EPS[name] * (np.abs(truth) + exact)).all()
    add_matmul(a, b, wide)
    assert (np.abs(host(wide) - 2 * truth) <= 3 * exact).all()
    beside = backends.move(np.zeros((M, N + 4), np.float32), "cupy")
    matmul_arrays(a, b, out=beside[:, 2 : N + 2])
    assert (np.abs(host(beside)[:, 2 : N + 2] - truth) <= exact).all()
    assert (host(beside)[:, [0, 1, -2, -1]] == 0).all()


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_float32s_within_the_roundings_on_their_way(name: str, bias: bool, kernels: str) -> None:
    gradients = {}
    for computed_in in ("float32", name):
        model = tg.GPT(tg.GPTConfig(vocab_size=11, **(SHAPE | {"dropout": 0.0, "bias": bias})), seed=1)
        with tg.use_kernels(kernels), model.compute_in(computed_in):
            model.loss(IDS, TARGETS).backward(2.0**10)
        assert {p.grad.dtype.name for p in model.parameters()} == {"float32"}
        gradients[computed_in] = {n: host(p.grad) for n, p in model.named_parameters()}
    for parameter, exact in gradients["float32"].items():
        off = np.linalg.norm(gradients[name][parameter] - exact) / np.linalg.norm(exact)
        assert off <= np.sqrt(120) * EPS[name], (
            parameter
        )  # 120: more results than there are, see test_mixed_precision_runs


def test_a_run_learns_and_moves(name: str, tmp_path: Path) -> None:
    """Losses of 200 steps are float32's within 4 roundings; then it goes on in float32, on the CPU."""
    losses = []
    for dtype in ("float32", name):
        folder = tmp_path / dtype
        make_trainer(folder, steps=200, decay_steps=200, log_every=1, lr=1e-3, dtype=dtype).run()
        losses.append([r["loss"] for r in read_metrics(folder / "metrics.jsonl") if "loss" in r])
    assert np.abs(np.subtract(*losses)).max() <= 4 * EPS[name] * losses[0][0]
    assert {a.dtype.name for a in CheckpointFolder(tmp_path / name).load().model.values()} == {"float32"}
    with tg.use_backend("numpy"):
        trainer = make_trainer(tmp_path / name, steps=205, decay_steps=200, log_every=1, lr=1e-3)
        trainer.resume()
        trainer.run()
