"""The modes of autograd: is a graph being recorded, and are results checked for NaN and infinities?

`no_grad()` and `detect_anomaly()` act on the current thread only, so that a thread that generates does not turn off
gradients in a thread that trains. Both `function.py`, which makes nodes, and `engine.py`, which walks back through
them, read the modes here; this file imports neither.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from .backends import array_module
from .backends.precision import is_floating, upcast
from .errors import UsageError


class _Mode(threading.local):
    grad_enabled = True
    detect_anomaly = False
    keep_outputs = False  # whether outputs that could be recomputed are saved all the same
    see_gradients: Callable[[Any, list[Any]], None] | None = (
        None  # called in backward(): a node, its outputs' gradients
    )
    leaf_ready: Callable[[Any], None] | None = None  # called in backward(): a leaf that has its last contribution
    gradient_room: Callable[[Any], Any] | None = None  # called in backward(): memory for a leaf's gradient, or None


mode = _Mode()
grad_lock = threading.RLock()  # held while adding to a leaf's gradient, since two threads may share a leaf


class NonFiniteError(UsageError, ArithmeticError):
    """An operation produced a NaN or an infinity while `detect_anomaly` was on."""


@contextlib.contextmanager
def _mode_of(name: str, value: bool) -> Iterator[None]:
    previous = getattr(mode, name)
    setattr(mode, name, value)
    try:
        yield
    finally:
        setattr(mode, name, previous)


def no_grad() -> contextlib.AbstractContextManager[None]:
    """Inside the block no graph is recorded, and nothing is saved for a backward pass."""
    return _mode_of("grad_enabled", False)


def enable_grad() -> contextlib.AbstractContextManager[None]:
    """Inside the block a graph is recorded, even within `no_grad` or in a backward pass."""
    return _mode_of("grad_enabled", True)


def keep_outputs(enabled: bool = True) -> contextlib.AbstractContextManager[None]:
    """Inside the block, a node saves its inputs even where the node behind them could recompute them.

    That takes more memory and less time. The numbers are the same.
    """
    return _mode_of("keep_outputs", enabled)


def detect_anomaly(enabled: bool = True) -> contextlib.AbstractContextManager[None]:
    """Inside the block, the first operation that produces a NaN or an infinity raises NonFiniteError, as does one
    that is given a NaN from outside. Infinities that come from infinities in the inputs are allowed.

    Every array is read twice, so a step takes about twice as long.
    """
    return _mode_of("detect_anomaly", enabled)


def as_array(value: Any) -> Any:
    """`value`, with a NumPy scalar as an array: NumPy's operations on 0-d arrays return scalars, but tensors and
    gradients hold arrays."""
    return np.asarray(value) if isinstance(value, np.generic) else value


def check_finite(name: str, when: str, results: Iterable[Any], inputs: Iterable[Any]) -> None:
    """Raise NonFiniteError when `results` are not finite and `inputs` do not explain it, or when these hold a NaN.

    An infinity that comes from an infinity (a mask of -inf added to scores) is not an error.
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
    """ "nan" if any of these arrays has one, else "inf" if any has one, else None."""
    found = None
    for array in arrays:
        if array is None or not is_floating(array.dtype):
            continue
        xp, array = array_module(array), upcast(array)
        if not bool(xp.isfinite(array).all()):
            if bool(xp.isnan(array).any()):
                return "nan"
            found = "inf"
    return found
