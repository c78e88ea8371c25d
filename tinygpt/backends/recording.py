"""What is being recorded: the launches of a CUDA graph, or the calls of a plan.

It is a separate file, below both the recorders (`cupy_graph.py`, `numpy_plan.py`), which set it, and the array
operations that are recorded.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar

recorder: Any = None  # the active `Recorder` of a CUDA graph, see cupy_graph.py

_F = TypeVar("_F", bound=Callable[..., Any])


class _Here(threading.local):
    tape: Any = None  # the active `Tape` of a plan in this thread, see numpy_plan.py


here = _Here()


def is_recording() -> bool:
    """Whether launches are being recorded, and not run."""
    return recorder is not None and bool(recorder.capturing)


def noted(function: _F) -> _F:
    """Decorator of a function on arrays that is not a kernel: a plan that is being recorded repeats its calls too."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        tape = here.tape
        return function(*args) if tape is None else tape.run(function, args)

    return call  # type: ignore[return-value]
