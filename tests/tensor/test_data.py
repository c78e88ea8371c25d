"""What goes into a tensor and what comes out: numbers, NumPy's arrays, dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.tensor.helpers import leaf
from tinygpt import ops
from tinygpt.errors import DtypeError, ShapeError
from tinygpt.tensor import Tensor
from tinygpt.testing import check_gradients


def test_numbers_in_and_out() -> None:
    assert tg.tensor(3.5).item() == 3.5
    assert float(tg.tensor([2.0])) == 2.0
    assert int(tg.tensor(7)) == 7
    assert bool(tg.tensor(0.0)) is False
    assert len(tg.tensor([[1.0], [2.0]])) == 2
    with pytest.raises(ShapeError, match=r"item\(\) needs a tensor of one element, this one has shape \(2,\)"):
        tg.tensor([1.0, 2.0]).item()
    with pytest.raises(ShapeError, match="single number"):
        len(tg.tensor(1.0))
    with pytest.raises(ShapeError, match="no axis to iterate over"):
        list(tg.tensor(1.0))
    assert [row.data.tolist() for row in tg.tensor([[1, 2], [3, 4]])] == [[1, 2], [3, 4]]
    assert "requires_grad=True" in repr(leaf(2))
    assert "made by Mul" in repr(leaf(2) * 2.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + 1,
        lambda x: 1.5 - x,
        lambda x: 2 * x,
        lambda x: 1 / x,
        lambda x: x**2,
        lambda x: 2.0**x,
        lambda x: ops.where(x > 0, x, 0.0),
        lambda x: x.mean(),
        lambda x: x.var(axis=0),
        lambda x: ops.stack([x, 1.0 + x]),
    ],
)
def test_numbers_take_the_dtype_of_the_tensor_beside_them(function: Any, dtype: Any) -> None:
    x = leaf(3, dtype=dtype)
    y = function(x)
    assert y.dtype == dtype
    y.sum().backward()
    assert x.grad.dtype == dtype


def test_mixed_precision_follows_numpy_and_gradients_come_back_in_their_own() -> None:
    x, y = leaf(3, dtype=np.float32), leaf(3, dtype=np.float64)
    z = x.exp() * y
    assert z.dtype == np.float64
    z.sum().backward()
    assert (x.grad.dtype, y.grad.dtype) == (np.float32, np.float64)
    assert np.allclose(x.grad, np.exp(x.data) * y.data)


def test_what_tensor_makes_of_data() -> None:
    array = np.ones(3)
    assert np.shares_memory(tg.tensor(array).data, array)
    assert tg.tensor(array).dtype == np.float64
    assert tg.tensor([1.0, 2.0]).dtype == np.float32
    assert tg.tensor([1, 2]).dtype == np.int64
    assert tg.tensor([1, 2], dtype="float64").dtype == np.float64
    for data in (0.1, 1e300):  # not by way of float32
        assert tg.tensor(data, dtype="float64").item() == tg.tensor([data], dtype=float).item() == data
    assert tg.tensor([16777217.0], dtype="int64").item() == 16777217
    assert tg.tensor(1e300).item() == tg.tensor(1e300, dtype="float32").item() == float("inf")
    for data in ([[1.0], [1.0, 2.0]], "text", None, [1.0, None], 1j, np.ones(2, np.float16), {"a": 1}):
        with pytest.raises(DtypeError):
            tg.tensor(data)
    with pytest.raises(DtypeError, match="only floating-point tensors can require a gradient"):
        tg.tensor([1, 2], requires_grad=True)


def test_numpy_sees_the_values_of_a_tensor() -> None:
    x = tg.tensor([[1.0, 2.0]], requires_grad=True)
    assert np.asarray(x) is x.data
    assert np.array(x, dtype=np.float64).dtype == np.float64
    assert np.array_equal(np.stack([x, x]), np.stack([x.data, x.data]))


def test_kinds_of_arrays_with_operators_of_their_own_become_plain() -> None:
    x = tg.tensor(np.array([[1.0, 2.0], [3.0, 4.0]]).view(np.matrix))
    assert type(x.data) is np.ndarray
    assert np.array_equal((x * x).data, [[1.0, 4.0], [9.0, 16.0]])


def test_a_number_beyond_the_dtype_is_infinite_without_a_warning() -> None:
    assert tg.tensor(1e300).item() == np.inf
    assert (tg.tensor(2.0) * 1e300).item() == np.inf


def test_what_is_no_dtype_and_no_gradient_gets_a_sentence() -> None:
    with pytest.raises(DtypeError, match="a tensor holds float32, float64, integers or bool, not 'real'"):
        tg.tensor([1.0], dtype="real")
    with pytest.raises(DtypeError, match="str is not an array of numbers"):
        tg.tensor(1.0, requires_grad=True).backward("one")


def test_use_backend_is_no_decorator() -> None:
    """As one it would choose at the definition, not at the call."""
    with pytest.raises(TypeError):
        tg.use_backend("numpy")(len)  # type: ignore[operator]


def test_numpy_arrays_beside_tensors() -> None:
    x = leaf(3)
    for y in (np.ones(3) + x, np.ones((3, 3)) @ x, np.ones(3) * x - np.ones(3)):
        assert isinstance(y, Tensor)
    (np.full(3, 2.0) * x).sum().backward()
    assert np.array_equal(x.grad, np.full(3, 2.0))
    check_gradients(lambda t: 2.0 - t / 3.0 + 1.0 / t - t**3 + 2.0**t, np.array([0.5, 1.5]))
