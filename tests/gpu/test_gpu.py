"""On a GPU: operations, training, checkpoints, generation with CuPy itself. `pytest -m gpu` where there is one.

Elsewhere each is skipped, with the sentence of what is missing. NumPy in float64 is the truth: in float64 the GPU
agrees with it to 1e-12 of the largest element, as the fused bodies do with their oracles; in float32 it is off by no
more than tests/ops/test_operations.py allows NumPy itself. Losses of 200 steps in float32 agree to 1e-3.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.ops.cases import ROWS
from tests.ops.drawing import Row, options_on, some_examples
from tests.training.helpers import SHAPE, make_trainer
from tinygpt import backends
from tinygpt.errors import OutOfMemoryError, UsageError
from tinygpt.tensor import Tensor
from tinygpt.training import read_metrics

pytestmark = pytest.mark.gpu

IDS = np.random.default_rng(1).integers(0, 11, (3, 8))
TARGETS = np.random.default_rng(2).integers(0, 11, (3, 8))


@pytest.fixture(autouse=True)
def gpu() -> Iterator[Any]:
    """CuPy; afterwards the backend is the one it was."""
    try:
        with tg.use_backend("cupy"), tg.use_backend("numpy"):
            yield backends.get("cupy").xp
    except UsageError as error:
        pytest.skip(str(error))


def to_host(array: Any) -> Any:
    return None if array is None else backends.move(array, "numpy")


def results(row: Row, options: Any, arrays: list[np.ndarray], backend: str) -> list[Any]:
    tensors = [tg.tensor(a, requires_grad=a.dtype.kind == "f", backend=backend) for a in arrays]
    made = row.function(*tensors, **options_on(options, lambda array: backends.move(array, backend)))
    outputs: tuple[Tensor, ...] = made if isinstance(made, tuple) else (made,)
    rng = np.random.default_rng(3)
    for y in outputs:
        if y.requires_grad:
            y.backward(backends.move(np.asarray(rng.standard_normal(y.shape), y.dtype), backend), retain_graph=True)
    assert all(y.backend == backend for y in outputs)
    return [to_host(y.data) for y in outputs] + [to_host(t.grad) for t in tensors]


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize(("dtype", "relative"), [(np.float64, 1e-12), (np.float32, 2e-5)])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_operations(row: Row, dtype: Any, relative: float, kernels: str) -> None:
    for example in some_examples(row.examples, 15):
        arrays = example.make(dtype)
        truth = [a.astype(np.float64) if a.dtype == np.float32 else a for a in arrays]
        expected = results(row, example.options, truth, "numpy")
        with tg.use_kernels(kernels):
            found = results(row, example.options, arrays, "cupy")
        for f, e in zip(found, expected, strict=True):
            assert (f is None) == (e is None)
            if f is not None:
                assert f.dtype == (dtype if e.dtype == np.float64 else e.dtype)
                assert np.abs(f - e).max(initial=0) <= relative * np.abs(e).max(initial=1)


def test_two_backward_passes_are_identical() -> None:
    """Kernels add up in a fixed order: no atomics."""
    gradients = []
    for _ in range(2):
        model = tg.GPT(tg.GPTConfig(vocab_size=11, **SHAPE), seed=1).to("cupy")
        model.loss(IDS, TARGETS).backward()
        gradients.append([to_host(parameter.grad) for parameter in model.parameters()])
    assert all(np.array_equal(a, b) for a, b in zip(*gradients, strict=True))


def test_random_numbers(gpu: Any) -> None:
    assert np.array_equal(to_host(tg.random.words(7, 2**33, 5, 9, xp=gpu)), tg.random.words(7, 2**33, 5, 9))
    kept = [
        tg.ops.dropout(tg.tensor(np.ones((9, 33), np.float32), backend=name), 0.3, generator=tg.Generator(5)).numpy()
        for name in ("numpy", "cupy")
    ]
    assert np.array_equal(*(mask != 0 for mask in kept))


def test_losses_of_200_steps(tmp_path: Path) -> None:
    losses = []
    for backend in ("numpy", "cupy"):
        with tg.use_backend(backend):
            make_trainer(tmp_path / backend, steps=200, log_every=1, lr=1e-3).run()
        losses.append([r["loss"] for r in read_metrics(tmp_path / backend / "metrics.jsonl") if "loss" in r])
    assert len(losses[0]) == 200
    assert np.abs(np.subtract(*losses)).max() <= 1e-3


def test_a_run_moves_between_backends(tmp_path: Path) -> None:
    make_trainer(tmp_path / "stayed").run()
    for steps, backend in ((7, "cupy"), (13, "numpy"), (20, "cupy")):
        with tg.use_backend(backend):
            trainer = make_trainer(tmp_path / "moved", steps=steps, decay_steps=20)
            if steps > 7:
                trainer.resume()
            trainer.run()
    ends = [
        [r["validation_loss"] for r in read_metrics(tmp_path / name / "metrics.jsonl") if "validation_loss" in r][-1]
        for name in ("stayed", "moved")
    ]
    assert abs(ends[0] - ends[1]) <= 1e-3


@pytest.mark.parametrize("pack", [None, ("bfloat16", None), ("int8", 8)])
def test_generation(pack: Any) -> None:
    texts = []
    for backend in ("numpy", "cupy"):
        model = tg.GPT(tg.GPTConfig(vocab_size=11, **SHAPE), seed=1)
        if pack is not None:
            model.pack(*pack)
        model.to(backend)
        greedy = model.generate(IDS[:, :3], max_new_tokens=12, do_sample=False)
        texts.append([greedy, model.generate(IDS[:, :3], max_new_tokens=12, temperature=0.8, top_k=5, seed=0)])
    assert all(np.array_equal(a, b) for a, b in zip(*texts, strict=True))


def test_tf32_is_off_until_asked_for() -> None:
    a, b = (tg.tensor(np.random.default_rng(i).standard_normal((256, 256)).astype(np.float32)) for i in (0, 1))
    truth = a.numpy().astype(np.float64) @ b.numpy().astype(np.float64)

    def error(**options: bool) -> float:
        with tg.use_backend("cupy", **options):
            return float(np.abs((a.to("cupy") @ b.to("cupy")).numpy() - truth).max())

    exact = error()
    if int(backends.get("cupy").require().cuda.Device().compute_capability) < 80:
        with pytest.raises(UsageError, match="has no TF32"):
            error(tf32=True)
    else:
        assert error(tf32=True) > 10 * exact
    assert error() == exact


def test_out_of_memory(gpu: Any) -> None:
    with pytest.raises(OutOfMemoryError, match=r"the GPU is out of memory: \d+ GB more"):
        gpu.empty(1 << 50, "int8")
    assert float(gpu.zeros(4).sum()) == 0.0  # and it goes on
