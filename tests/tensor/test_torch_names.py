"""PyTorch's names on tensors and models: what they mean here, and one sentence for each wrong use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tinygpt.errors import DtypeError, RangeError, ShapeError, UsageError
from tinygpt.tensor import Tensor

rng = np.random.default_rng(0)


def leaf(*shape: int) -> Tensor:
    return tg.tensor(rng.standard_normal(shape), requires_grad=True)


@pytest.mark.parametrize("name", ["sum", "mean", "var"])
def test_dim_and_keepdim_are_axis_and_keepdims(name: str) -> None:
    x = leaf(2, 3, 4)
    for dim in (0, -1, (0, 2)):
        ours = getattr(x, name)(axis=dim, keepdims=True)
        assert np.array_equal(getattr(x, name)(dim=dim, keepdim=True).data, ours.data)
        assert getattr(x, name)(dim=dim).shape == getattr(x, name)(axis=dim).shape


def test_dim_elsewhere() -> None:
    x, y = leaf(2, 3), leaf(2, 3)
    assert np.array_equal(x.softmax(dim=0).data, x.softmax(axis=0).data)
    assert np.array_equal(tg.ops.log_softmax(x, dim=0).data, x.log_softmax(0).data)
    assert x.argmax(dim=1, keepdim=True).shape == (2, 1)
    assert tg.cat([x, y], dim=1).shape == (2, 6)
    assert tg.stack((x, y), dim=-1).shape == (2, 3, 2)
    assert [part.shape for part in x.split(2, dim=1)] == [(2, 2), (2, 1)]


def test_argmax_is_the_first_of_equal_ones_and_has_no_gradient() -> None:
    x = tg.tensor([[1.0, 5.0, 5.0], [2.0, 0.0, 1.0]], requires_grad=True)
    assert x.argmax().item() == 1
    assert x.argmax(1).data.tolist() == [1, 0]
    assert x.argmax(axis=-1, keepdims=True).data.tolist() == [[1], [0]]
    assert x.argmax(1).dtype == np.int64
    assert not x.argmax().requires_grad


def test_view_permute_squeeze_and_unsqueeze_carry_gradients() -> None:
    x = leaf(2, 1, 3)
    y = x.permute(2, 0, 1).squeeze(-1).view(-1).unsqueeze(0)
    assert y.shape == (1, 6)
    dy = rng.standard_normal((1, 6))
    y.backward(dy)
    assert np.array_equal(x.grad, dy.reshape(3, 2, 1).transpose(1, 2, 0))


def test_shapes() -> None:
    x = leaf(2, 1, 3)
    assert x.squeeze().shape == (2, 3)
    assert x.squeeze(0).shape == (2, 1, 3)
    assert x.squeeze((0, 1)).shape == (2, 3)
    assert x.unsqueeze(3).shape == x.unsqueeze(-1).shape == (2, 1, 3, 1)
    assert x.view((3, -1)).shape == (3, 2)
    assert x.permute(0, 1, 2).T.view(3, 2).shape == (3, 2)
    assert leaf().permute().shape == leaf().squeeze().shape == ()


def test_size_is_a_number_and_a_function() -> None:
    x = leaf(2, 3)
    assert x.size == 6
    assert x.size * 2 == 12
    assert np.shape(x.size) == ()
    assert x.size() == x.shape == (2, 3)
    assert x.size(-1) == x.size(dim=1) == 3


def test_float_and_masked_fill() -> None:
    predicted, labels = tg.tensor([1, 2, 3, 4]), tg.tensor([1, 2, 0, 4])
    accuracy = (predicted == labels).float().mean()
    assert accuracy.item() == 0.75
    assert accuracy.dtype == np.float32
    x = leaf(2, 2)
    filled = x.masked_fill(np.array([[True, False], [False, True]]), -np.inf)
    assert np.array_equal(np.isinf(filled.data), [[True, False], [False, True]])
    filled[0, 1].backward()
    assert np.array_equal(x.grad, [[0, 1], [0, 0]])
    assert x.float().dtype == np.float32


def test_places() -> None:
    x, model = leaf(2), tg.nn.Sequential(tg.nn.Linear(2, 3), tg.nn.ReLU())
    assert x.to("cpu") is x.cpu() is x
    assert x.device == model.device == tg.nn.ReLU().device == "cpu"
    assert model.to("cpu") is model.cpu() is model
    assert tg.zeros(2, backend="cpu").backend == "numpy"
    with tg.use_backend("cpu"):
        assert tg.tensor([1.0]).backend == "numpy"


def test_requires_grad_() -> None:
    x, layer = tg.tensor([1.0]), tg.nn.Linear(2, 3)
    assert x.requires_grad_() is x
    assert x.requires_grad
    assert layer.requires_grad_(False) is layer
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    (layer(tg.ones(1, 2)).sum() * x).backward()
    assert layer.weight.grad is None


def test_made_from_a_shape() -> None:
    assert tg.zeros(2, 3).data.tolist() == tg.zeros((2, 3)).data.tolist() == [[0.0] * 3] * 2
    assert tg.ones(2, dtype=np.float64, requires_grad=True).requires_grad
    assert tg.ones().shape == ()
    assert tg.randn(2, 0).shape == (2, 0)
    assert tg.zeros(2).dtype == tg.randn(2).dtype == np.float32
    tg.manual_seed(3)
    first = tg.randn(4, 5)
    tg.manual_seed(3)
    assert np.array_equal(first.data, tg.randn(4, 5).data)
    drawn = tg.randn(10_000, generator=tg.Generator(0)).data
    assert abs(drawn.mean()) < 0.05
    assert abs(drawn.std() - 1) < 0.05


@pytest.mark.parametrize(
    "arguments", [(5,), (2, 5), (5, 2, -1), (2, 11, 3), (0.5, 3), (5, 5), (5, 2), (1.0, 2.0, 0.25), (0, 1, 0.1)]
)
def test_arange_is_numpys(arguments: tuple[Any, ...]) -> None:
    ours, numpys = tg.arange(*arguments), np.arange(*arguments)
    assert ours.dtype == (np.int64 if all(isinstance(a, int) for a in arguments) else np.float32)
    assert np.allclose(ours.data, numpys)
    assert ours.shape == numpys.shape


x, whole = leaf(2, 3), tg.tensor([1, 2])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: x.view(4, 2), ShapeError, ("view", "6 elements", "(2, 3)", "(4, 2)")),
        (lambda: x.view(-1, -1), ShapeError, ("view", "(-1, -1)")),
        (lambda: x.view("a"), DtypeError, ("view", "integers")),
        (lambda: x.permute(0), ShapeError, ("permute", "order of the 2 axes")),
        (lambda: x.permute(0, 2), RangeError, ("permute", "axis 2")),
        (lambda: x.unsqueeze(3), RangeError, ("unsqueeze", "axis 3")),
        (lambda: x.squeeze(2), RangeError, ("squeeze", "axis 2")),
        (lambda: x.sum(dim=2), RangeError, ("sum", "axis 2")),
        (lambda: x.sum(axis=0, dim=0), UsageError, ("sum", "axis=0 and dim=0", "one of them")),
        (lambda: x.softmax(0, dim=1), UsageError, ("softmax", "one of them")),
        (lambda: x.max(dim=1), UsageError, ("max", "values and indices", "x.max(axis=1)", "x.argmax(axis=1)")),
        (lambda: x.min(dim=0), UsageError, ("min", "x.min(axis=0)")),
        (lambda: x.argmax(dim=(0, 1)), DtypeError, ("argmax", "(0, 1)")),
        (lambda: tg.zeros(2, 0).argmax(1), ShapeError, ("argmax", "no elements")),
        (lambda: x.size(2), RangeError, ("size", "axis 2")),
        (lambda: x.size("a"), DtypeError, ("size", "'a'")),
        (lambda: x.to("gpu"), UsageError, ("'gpu'", "numpy, cupy", "cuda")),
        (lambda: x.to("cuda:1"), UsageError, ("'cuda:1'", "CUDA_VISIBLE_DEVICES")),
        (lambda: tg.nn.Linear(1, 1).to(0), UsageError, ("no backend 0",)),
        (lambda: (x * 1).requires_grad_(), UsageError, ("requires_grad_", "result", "detach()")),
        (lambda: whole.requires_grad_(), DtypeError, ("requires_grad_", "int64")),
        (lambda: x.masked_fill(x, 0.0), DtypeError, ("boolean",)),
        (lambda: tg.zeros(-1), UsageError, ("zeros", "-1")),
        (lambda: tg.ones(2.5), DtypeError, ("ones", "2.5")),
        (lambda: tg.zeros(2, dtype="float16"), DtypeError, ("float16",)),
        (lambda: tg.zeros(2, dtype=int, requires_grad=True), DtypeError, ("int64",)),
        (lambda: tg.randn(2, generator=3), UsageError, ("randn", "Generator", "int")),
        (lambda: tg.arange(1, 2, 0), UsageError, ("arange", "step")),
        (lambda: tg.arange("a"), DtypeError, ("arange", "'a'")),
        (lambda: tg.arange(float("inf")), UsageError, ("arange", "inf")),
    ],
)
def test_a_wrong_use_is_one_sentence(call: Callable[[], Any], error: type[Exception], words: tuple[str, ...]) -> None:
    with pytest.raises(error) as raised:
        call()
    sentence = str(raised.value)
    assert all(word in sentence for word in words), sentence
    assert "\n" not in sentence
