"""Gradient checks, for tinygpt's operations and for user-defined ones.

    tinygpt.testing.check_gradients(lambda x, w: tg.ops.tanh(x @ w), x, w)

How it works. Let y = f(x), let dy be a random gradient of y, and v a random direction in the space of x. The
backward pass claims dx with, for every v,

    <dx, v> = <dy, J v>          J v = lim (f(x + h v) - f(x - h v)) / 2h

The right-hand side needs only forward passes. It is computed in float64 from four points spaced h = 1e-5 apart.
The truncation error of this stencil is O(h**4), so only the rounding error, about 1e-11, remains:

    J v = (f(x - 2hv) - 8 f(x - hv) + 8 f(x + hv) - f(x + 2hv)) / 12h

The upstream gradient is random, never ones: the sum of a softmax is constant, so for ones the true gradient is
zero, and a backward pass that is off by any factor would go unnoticed.

Source: the stencil is from Abramowitz and Stegun, "Handbook of Mathematical Functions", 1964, table 25.2; JAX
(`check_grads`) and Chainer (`check_backward`) also check along random directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .errors import DtypeError, UsageError
from .function import Function
from .graph import no_grad
from .tensor import Tensor

STEP = 1e-5
_LISTED = 400  # in a failing input, we search at most this many elements for the worst


class GradientError(AssertionError):
    """A backward pass disagrees with its forward pass. The message says where and by how much."""


class _Contract(Function):
    """The sum of <gradient, output> over several outputs: one number to call backward() on."""

    def forward(self, *outputs: Any, gradients: Sequence[Any]) -> Any:
        self.save(*gradients)
        return np.asarray(sum(np.vdot(dy, y) for dy, y in zip(gradients, outputs, strict=True)))

    def backward(self, dtotal: Any) -> Any:
        return tuple(dtotal * dy for dy in self.saved)


def check_gradients(
    function: Callable[..., Any],
    *arrays: Any,
    seed: int = 0,
    directions: int = 2,
    atol: float = 1e-7,
    rtol: float = 1e-6,
) -> None:
    """Compare the backward pass of `function` with finite differences of its forward pass.

    function: takes one tensor per array and returns a tensor or a tuple of them; must be deterministic.
    arrays: floating-point arrays (or tensors), checked in float64 whatever their dtype; integer and boolean arrays
        are passed unchanged. Keep the values away from kinks (0 for relu, ties for max).
    seed: for the upstream gradients and the directions. directions: how many to try for each input.

    Raises GradientError (an AssertionError) that names the input and its worst element, with the expected and
    the actual gradient there; UsageError if there is nothing to check.
    """
    inputs = [_in_float64(array) for array in arrays]
    if not any(array.dtype.kind == "f" for array in inputs):
        raise UsageError(
            "check_gradients: none of the arrays is floating-point, so there is nothing to check: give a float array"
        )
    rng = np.random.default_rng(seed)
    outputs = _evaluate(function, inputs)
    upstream = [np.asarray(rng.standard_normal(y.shape)) for y in outputs]
    _check_deterministic(function, inputs, outputs)
    gradients = backward_of(function, inputs, upstream)
    for i, (array, gradient) in enumerate(zip(inputs, gradients, strict=True)):
        if array.dtype.kind != "f":
            continue
        for _ in range(directions):
            direction = np.asarray(rng.standard_normal(array.shape))
            expected = directional_derivative(function, inputs, i, direction, upstream)
            got = float(np.vdot(gradient, direction))
            if not abs(expected - got) <= atol + rtol * abs(expected):  # a NaN fails too
                worst = _worst_element(function, inputs, i, gradient, upstream)
                raise GradientError(
                    f"check_gradients: the gradient of input {i} (shape {array.shape}) is wrong: along a random "
                    f"direction the derivative is {expected:.9g} and backward gives {got:.9g}; {worst}"
                )


def backward_of(function: Callable[..., Any], inputs: Sequence[Any], upstream: Sequence[Any]) -> list[Any]:
    """The gradient of each input by one forward and one backward pass (None for inputs that aren't floating-point).

    upstream: the gradient of each floating-point output. An input that no output depends on gets zeros.
    """
    tensors = [Tensor(array, requires_grad=array.dtype.kind == "f") for array in inputs]
    outputs = _floating_outputs(function(*tensors))
    total = _Contract.apply(*outputs, gradients=upstream)
    if total.requires_grad:
        total.backward()
    return [None if not t.requires_grad else np.zeros(t.shape, t.dtype) if t.grad is None else t.grad for t in tensors]


def directional_derivative(
    function: Callable[..., Any], inputs: Sequence[Any], index: int, direction: Any, upstream: Sequence[Any]
) -> float:
    """<upstream, J v> for the direction v of input `index`, from four forward passes."""
    total = 0.0
    for steps, factor in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
        moved = list(inputs)
        moved[index] = np.asarray(inputs[index] + steps * STEP * direction)
        outputs = _evaluate(function, moved)
        total += factor * sum(float(np.vdot(dy, y)) for dy, y in zip(upstream, outputs, strict=True))
    return total / (12 * STEP)


def _in_float64(array: Any) -> np.ndarray:
    array = array.data if isinstance(array, Tensor) else np.asarray(array)
    if not isinstance(array, np.ndarray):
        raise DtypeError("check_gradients works on NumPy arrays: convert tensors of another backend with .numpy()")
    return array.astype(np.float64, copy=False) if array.dtype.kind == "f" else array


def _evaluate(function: Callable[..., Any], inputs: Sequence[Any]) -> list[Any]:
    """The floating-point outputs as arrays, computed without a graph."""
    with no_grad():
        return [y.data for y in _floating_outputs(function(*[Tensor(array) for array in inputs]))]


def _floating_outputs(result: Any) -> list[Tensor]:
    outputs = list(result) if isinstance(result, (tuple, list)) else [result]
    for output in outputs:
        if not isinstance(output, Tensor):
            raise DtypeError(
                f"check_gradients: the function must return a tensor or a tuple of tensors, not {type(output).__name__}"
            )
    floating = [output for output in outputs if output.dtype.kind == "f"]
    if not floating:
        raise UsageError(
            "check_gradients: no output of the function is floating-point, so it has no gradient: return a float tensor"
        )
    return floating


def _check_deterministic(function: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    again = _evaluate(function, inputs)
    if not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(outputs, again, strict=True)):
        raise UsageError(
            "check_gradients: two calls of the function on the same inputs give different results: fix its random seed"
        )


def _worst_element(
    function: Callable[..., Any], inputs: Sequence[Any], index: int, gradient: Any, upstream: Sequence[Any]
) -> str:
    """The element whose gradient is furthest off, in words."""
    size = inputs[index].size
    elements = range(size) if size <= _LISTED else np.random.default_rng(0).choice(size, _LISTED, replace=False)
    worst = (-1.0, 0, 0.0, 0.0)
    for i in elements:
        direction = np.zeros(size)
        direction[i] = 1.0
        expected = directional_derivative(function, inputs, index, direction.reshape(inputs[index].shape), upstream)
        got = float(gradient.reshape(-1)[i])
        error = abs(expected - got)
        if not error <= worst[0]:  # a NaN is the worst of all
            worst = (error, int(i), expected, got)
            if error != error:
                break
    where = tuple(int(n) for n in np.unravel_index(worst[1], inputs[index].shape))
    scope = "" if size <= _LISTED else f" of {_LISTED} searched"
    return f"the worst element{scope} is {where}: expected {worst[2]:.9g}, got {worst[3]:.9g}"
