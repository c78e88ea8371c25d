"""The code paths of the backend "cupy", on a stand-in for CuPy that computes with NumPy (`standin.py`).

Shown here: every operation, forward and backward, keeps to what CuPy can do, never mixes the two libraries' arrays, and
computes the same as on the backend "numpy": bit for bit, since it is NumPy that computes. `test_backend_model.py` shows
the same of the model and of what is done with it.

Not shown: that CuPy and cuBLAS compute what NumPy does, how they round, their speed and memory. That takes a GPU:
`pytest -m gpu`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cuda import standin
from tests.cuda.precision import IDS, TARGETS, as_numpy, model_on
from tests.ops.cases import ROWS
from tests.ops.drawing import Example, Row, options_on, some_examples
from tinygpt import ops
from tinygpt.errors import RangeError, UsageError
from tinygpt.tensor import Tensor

pytestmark = pytest.mark.usefixtures("stand_in")


# Operations ---------------------------------------------------------------------------------------


def results(row: Row, example: Example, arrays: list[np.ndarray], put: Callable[[Any], Any]) -> list[Any]:
    """Outputs and gradients of an operation whose inputs `put` has put somewhere, as NumPy arrays."""
    tensors = [Tensor(put(a), requires_grad=a.dtype.kind == "f") for a in arrays]
    made = row.function(*tensors, **options_on(example.options, put))
    outputs = made if isinstance(made, (tuple, list)) else (made,)
    rng = np.random.default_rng(3)
    for y in outputs:
        if y.requires_grad:
            upstream = np.asarray(rng.standard_normal(y.shape), y.dtype)
            y.backward(put(upstream), retain_graph=True)
    assert {type(y.data) for y in outputs} == {type(put(np.zeros(1)))}
    assert all(t.grad is None or type(t.grad) is type(t.data) for t in tensors)
    return [as_numpy(y.data) for y in outputs] + [as_numpy(t.grad) for t in tensors]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_operations(row: Row, dtype: Any, fewer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinygpt.backends.cupy.room", lambda: 1)  # blocks of the same size round alike
    for example in some_examples(row.examples, fewer(12)):
        arrays = example.make(dtype)
        found = results(row, example, arrays, standin.on_gpu)
        expected = results(row, example, arrays, lambda array: array)
        for f, e in zip(found, expected, strict=True):
            assert (f is None) == (e is None)
            assert f is None or (f.dtype == e.dtype and np.array_equal(f, e, equal_nan=True))


def test_random_numbers_are_numpys(stand_in: Any) -> None:
    for seed, stream in ((0, 0), (2**64 - 1, 2**40 + 3)):
        drawn = tg.random.words(seed, stream, 5, 9, xp=stand_in, first_row=2**33)
        assert np.array_equal(drawn.get(), tg.random.words(seed, stream, 5, 9, first_row=2**33))


# Arrays of the other backend ------------------------------------------------------------------------


def gpu(*shape: int) -> Tensor:
    return tg.tensor(np.ones(shape, np.float32), requires_grad=True, backend="cupy")


def cpu(*shape: int) -> Tensor:
    return tg.tensor(np.ones(shape, np.float32), requires_grad=True)


MIXTURES: dict[str, Callable[[], Any]] = {
    "add": lambda: gpu(2) + cpu(2),
    "a NumPy array on the right": lambda: gpu(2) * np.ones(2, np.float32),
    "a NumPy array on the left": lambda: np.ones(2, np.float32) - gpu(2),
    "CuPy's array on the right": lambda: cpu(2) / gpu(2).data,
    "pow": lambda: gpu(2) ** cpu(2),
    "less": lambda: gpu(2) < cpu(2),
    "matmul": lambda: gpu(2, 2) @ cpu(2, 2),
    "where's condition": lambda: ops.where(cpu(2) > 0, gpu(2), 0.0),
    "where's values": lambda: ops.where(gpu(2) > 0, gpu(2), cpu(2)),
    "concatenate": lambda: ops.concatenate([gpu(2), cpu(2)]),
    "stack": lambda: ops.stack([gpu(2), np.ones(2, np.float32)]),
    "linear": lambda: ops.linear(gpu(3, 2), cpu(2, 2)),
    "linear's bias": lambda: ops.linear(gpu(3, 2), gpu(2, 2), cpu(2)),
    "layer_norm": lambda: ops.layer_norm(gpu(3, 2), cpu(2)),
    "bias_gelu": lambda: ops.bias_gelu(cpu(3, 2), gpu(2)),
    "residual_layer_norm": lambda: ops.residual_layer_norm(gpu(3, 2), cpu(3, 2), gpu(2)),
    "attention": lambda: ops.attention(gpu(1, 1, 2, 2), gpu(1, 1, 2, 2), cpu(1, 1, 2, 2)),
    "embedding's ids on the GPU": lambda: ops.embedding(cpu(3, 2), tg.tensor([1], backend="cupy")),
    "targets on the GPU": lambda: ops.cross_entropy(cpu(1, 3), tg.tensor([1], backend="cupy")),
    "the head": lambda: ops.linear_cross_entropy(gpu(1, 3), cpu(4, 3), np.array([1])),
    "the head's targets": lambda: ops.linear_cross_entropy(cpu(1, 3), cpu(4, 3), tg.tensor([1], backend="cupy")),
    "binary targets on the GPU": lambda: ops.binary_cross_entropy(cpu(2), gpu(2)),
    "indices on the GPU": lambda: cpu(3)[tg.tensor([0, 1], backend="cupy")],
    "a gradient on the CPU": lambda: gpu(2).backward(np.ones(2, np.float32)),
    "a gradient on the GPU": lambda: cpu(2).backward(gpu(2)),
    "l2": lambda: tg.optim.regularization.l2([gpu(2), cpu(2)], 0.1),
    "ids for a model": lambda: model_on("numpy")(tg.tensor(IDS, backend="cupy")),
    "targets for a model": lambda: model_on("numpy").loss(IDS, tg.tensor(TARGETS, backend="cupy")),
    "ids for a packed model": lambda: model_on("numpy").pack("int8")(tg.tensor(IDS, backend="cupy")),
    "a packed layer": lambda: tg.nn.packed.PackedLinear(tg.nn.Linear(2, 2), "int8")(gpu(3, 2)),
}


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
def test_an_array_of_the_other_backend_is_a_sentence_that_names_both(mixture: Callable[[], Any]) -> None:
    with pytest.raises(UsageError, match=r"numpy.*cupy|cupy.*numpy") as error:
        mixture()
    assert ": " in str(error.value)
    assert "\n" not in str(error.value)


def test_a_gradient_of_the_other_backend_stops_the_step() -> None:
    parameter = gpu(2, 2)
    optimizer = tg.optim.AdamW([parameter])
    parameter.grad = np.ones((2, 2), np.float32)
    with pytest.raises(UsageError, match=r"parameter '0': a tensor and its \.grad.*cupy, numpy"):
        optimizer.step()


def test_gradients_on_both_backends_have_one_norm() -> None:
    tensors = [gpu(2), cpu(3)]
    for x in tensors:
        x.grad = x.data * 2.0
    with tg.use_kernels("auto"):
        assert tg.optim.clip_grad_norm(tensors, 100.0) == pytest.approx(np.sqrt(20.0))


def test_data_comes_from_the_host() -> None:
    """Ids, targets and indices are given as NumPy arrays or lists to a model on the GPU."""
    assert ops.embedding(gpu(3, 2), [[0, 2]]).backend == "cupy"
    assert ops.cross_entropy(gpu(1, 3), np.array([1])).backend == "cupy"
    assert ops.binary_cross_entropy(gpu(2), [0.0, 1.0]).backend == "cupy"
    assert gpu(3)[[0, 1]].backend == gpu(3)[np.array([True, False, True])].backend == "cupy"
    assert (gpu(2) * [1.0, 2.0]).backend == (np.float32(2) * gpu(2)).backend == "cupy"


@pytest.mark.parametrize(
    "key",
    [
        [3], [-4], np.array([0, 3]), (slice(None), [0, 2]), (..., [2]), (None, [3]), (0, [2]), np.ones(2, bool),
        tg.tensor([0, 3]), 3, (0, 0, 0),
    ],
    ids=str,
)  # fmt: skip
def test_an_index_beyond_its_axis(key: Any) -> None:
    """CuPy would let it wrap around."""
    with pytest.raises(RangeError, match="does not index a tensor of shape"):
        gpu(3, 2)[key]
    with pytest.raises(RangeError):
        cpu(3, 2)[key]
