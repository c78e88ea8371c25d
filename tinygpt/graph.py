"""What every operation of the graph asks: is one being made, and are its numbers to be watched?

`no_grad()` and `detect_anomaly()` are modes of a thread, so that a thread that generates does not switch off the
gradients of one that trains. The file stands below the others of the graph: whatever makes nodes (`function.py`) or
walks back through them (`engine.py`) reads the modes here.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from .backends import array_module
from .backends.precision import is_floating, widened
from .errors import UsageError


class _Mode(threading.local):
    grad_enabled = True
    detect_anomaly = False


mode = _Mode()
adding = threading.RLock()  # held while a leaf's gradient is read and added to: two threads may share a leaf


class NonFiniteError(UsageError, ArithmeticError):
    """An operation produced a NaN or an infinity while `detect_anomaly` was on."""


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Inside the block no graph is made and nothing is saved for a backward pass."""
    previous, mode.grad_enabled = mode.grad_enabled, False
    try:
        yield
    finally:
        mode.grad_enabled = previous


@contextlib.contextmanager
def detect_anomaly(enabled: bool = True) -> Iterator[None]:
    """Inside the block the first operation that produces a NaN or an infinity raises NonFiniteError, and so does one
    that is given a NaN from outside. An infinity that was an infinity before passes.

    Looks at every array twice, so a step takes about twice as long.
    """
    previous, mode.detect_anomaly = mode.detect_anomaly, enabled
    try:
        yield
    finally:
        mode.detect_anomaly = previous


def as_array(value: Any) -> Any:
    """NumPy computes scalars from arrays without axes; a tensor and a gradient are arrays all the same."""
    return np.asarray(value) if isinstance(value, np.generic) else value


def check_finite(name: str, when: str, results: Iterable[Any], inputs: Iterable[Any]) -> None:
    """Raise when something in `results` is not finite and `inputs` don't explain it, or when these hold a NaN.

    An infinity that comes from an infinity (a mask of -inf added to scores) is nobody's fault.
    """
    bad = _worst(results)
    if bad is None:
        return
    given = [array for array in inputs if array is not None]
    shapes = ", ".join(str(tuple(array.shape)) for array in given)
    before = _worst(given)
    if before == "nan":
        raise NonFiniteError(
            f"{name} was given nan in its {when} pass (inputs of shape {shapes}): it comes from the data, or from an "
            "operation outside detect_anomaly()"
        )
    if before is None or bad == "nan":
        raise NonFiniteError(
            f"{name} is the first operation to produce {bad} in its {when} pass (inputs of shape {shapes})"
        )


def _worst(arrays: Iterable[Any]) -> str | None:
    """ "nan" or "inf", when there is one in these arrays."""
    found = None
    for array in arrays:
        if array is None or not is_floating(array.dtype):
            continue
        xp, array = array_module(array), widened(array)
        if not bool(xp.isfinite(array).all()):
            if bool(xp.isnan(array).any()):
                return "nan"
            found = "inf"
    return found
