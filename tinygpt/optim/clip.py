"""The norm of all gradients together, and clipping by it.

A single batch with a steep loss can throw the weights far off. Clipping treats the gradients of all parameters as one
long vector g. If g is longer than max_norm, clipping shortens it to max_norm and keeps its direction:

    g = g * min(1, max_norm / |g|)

There are two ways to do it. `clip_grad_norm` changes the gradients in place. `grad_norm` and `clip_coefficient` give a
factor for `optimizer.step(grad_scale=...)`, which multiplies gradients as it reads them and so saves a pass over them.

If the norm is nan or infinite, the gradient has no direction worth keeping. `grad_norm` returns the norm as it is; the
other two raise NonFiniteError and leave the gradients alone, so the caller can stop or skip the step with the weights
intact.

Source: Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", 2013, algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from ..backends import array_module
from ..checks import number
from ..errors import DtypeError
from ..graph import NonFiniteError
from ..kernel import kernel
from ..tensor import Tensor
from ..typing import Array

SMALLEST_EXACT = 1e-280  # in a smaller sum of squares, some squares may have underflowed


@kernel
def sum_of_squares(x: Array) -> float:
    """The sum of the squares of all elements, accumulated in double precision."""
    xp = array_module(x)
    return float(xp.square(x, dtype=xp.float64).sum())


def grad_norm(parameters: Iterable[Tensor]) -> float:
    """The Euclidean norm of all parameters' gradients as one vector. A parameter without a gradient counts as 0."""
    tensors = _tensors("grad_norm", parameters)
    with np.errstate(all="ignore"):  # an overflow gives inf, which the caller checks for
        grads = [grad for grad in (p.present_grad("grad_norm") for p in tensors) if grad is not None]
        total = sum(sum_of_squares.each([(grad,) for grad in grads]))
        if SMALLEST_EXACT < total < math.inf or all(grad.dtype != "float64" for grad in grads):
            return math.sqrt(total)
        return _norm_of_extremes(grads)


def _norm_of_extremes(grads: list[Array]) -> float:
    """The norm of float64 gradients whose squares overflow or underflow: all are divided by the largest first."""
    largest = float(max((abs(grad).max() for grad in grads if grad.size), default=0.0))
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    scale = 2.0 ** -math.frexp(largest)[1] if largest > SMALLEST_EXACT else 1 / SMALLEST_EXACT
    return math.sqrt(sum(sum_of_squares(grad.astype("float64") * scale) for grad in grads)) / scale


def clip_coefficient(norm: float, max_norm: float) -> float:
    """The factor that clips gradients of this norm: 1, or less if the norm exceeds `max_norm`."""
    max_norm = number("clip_coefficient", "max_norm", max_norm, above=0)
    if not math.isfinite(norm):
        raise NonFiniteError(f"the norm of the gradients is {norm}, so they can't be clipped: the step was not taken")
    return 1.0 if norm <= max_norm else max_norm / norm


@kernel(in_place=True)
def clip_scale(sums: Array, state: Array, divisor: float, max_norm: float) -> None:
    """sums (count,): of squares of gradients. state (3,) becomes factor, norm, goes_on: see `ScaleOnDevice`."""
    norm = float(np.sqrt(float(sums.sum()))) / divisor  # NaN of sums below 0, as on a GPU
    goes_on = math.isfinite(norm) and float(state[2]) != 0
    scale = 1 / divisor
    if max_norm > 0 and norm > max_norm:
        scale *= max_norm / norm
    for place, value in enumerate((scale if goes_on else math.nan, norm, float(goes_on))):
        state[place] = value


class ScaleOnDevice:
    """The factor for an update of the weights, computed and kept on a GPU, so that the host need not wait for the norm.

        scale = ScaleOnDevice(parameters)
        scale.compute(divisor=1.0, max_norm=1.0)            # only launches: the gradients may still be in flight
        optimizer.step(grad_scale=scale)                    # so does this
        factor, norm, goes_on = scale.on_device.get()       # waits

    `rates`: None, or AdamW's `rates()` as an array on the GPU. Its step then reads those instead of numbers from the
    host, so that a CUDA graph of the step can be replayed with others.

    The factor is 1 / divisor, which averages the gradients, times what clips this mean to max_norm (0: no clipping).
    If the norm is not finite, the factor is NaN, and an update then changes nothing; it stays NaN at every later
    `compute`, until `go_on()`. So the weights stay as they are until the host has read the norm, a step late.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = _tensors("ScaleOnDevice", parameters)
        self.rates: Array | None = None
        self.on_device = array_module(self.parameters[0].data).asarray(np.array([math.nan, 0.0, 1.0]))  # (3,)

    def compute(self, divisor: float, max_norm: float) -> None:
        """Compute the factor and the norm from the parameters' current gradients."""
        with np.errstate(all="ignore"):
            grads = [grad for grad in (p.present_grad("ScaleOnDevice") for p in self.parameters) if grad is not None]
            calls = [(grad,) for grad in grads]
            sums = sum_of_squares.each_on_device(calls) if calls else None
            if sums is None:
                xp = array_module(self.on_device)
                sums = xp.asarray(np.array([sum(sum_of_squares.each(calls))]))
            clip_scale(sums, self.on_device, float(divisor), float(max_norm))

    def go_on(self) -> None:
        """Resume taking steps."""
        self.on_device[2] = 1.0

    def __float__(self) -> float:
        """The factor. Waits for it."""
        return float(self.on_device[0])


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale all gradients in place so that their joint norm is at most `max_norm`. Returns the norm before clipping.

    Raises NonFiniteError, with the gradients untouched, when the norm is nan or infinite.
    """
    parameters = _tensors("clip_grad_norm", parameters)
    norm = grad_norm(parameters)
    coefficient = clip_coefficient(norm, max_norm)
    if coefficient < 1.0:
        for parameter in parameters:
            grad = parameter.present_grad("clip_grad_norm", writable=True)
            if grad is not None:
                _scale(grad, norm, max_norm)
    return norm


def _scale(grad: Array, norm: float, max_norm: float) -> None:
    """grad *= max_norm / norm, in place; in two steps if the factor is too small for float32."""
    coefficient = max_norm / norm
    if coefficient > 1e-37 or grad.dtype == "float64":
        grad *= coefficient
    else:
        grad *= 2.0**-100
        grad *= coefficient * 2.0**100


def _tensors(where: str, parameters: Iterable[Tensor]) -> list[Tensor]:
    """The parameters as a list. A single tensor is refused: it would be iterated over by rows."""
    given = None if isinstance(parameters, Tensor) or not isinstance(parameters, Iterable) else list(parameters)
    wrong = parameters if given is None else next((p for p in given if not isinstance(p, Tensor)), None)
    if given is None or wrong is not None:
        raise DtypeError(
            f"{where}: parameters must be a list of tensors, such as model.parameters(), not {type(wrong).__name__}"
            + ("" if given is None else " in it")
        )
    return given
