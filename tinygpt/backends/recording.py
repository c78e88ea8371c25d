"""The recorder of the CUDA graph that is being made, if there is one.

It has a file of its own, below both the recorder (`cupy_graph.py`), which sets it, and the array operations that behave
differently while a graph is being recorded.
"""

from __future__ import annotations

from typing import Any

recorder: Any = None  # the active `Recorder`, see cupy_graph.py


def is_recording() -> bool:
    """Whether launches are being recorded, and not run."""
    return recorder is not None and bool(recorder.capturing)
