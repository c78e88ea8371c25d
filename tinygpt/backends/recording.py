"""What the GPU is asked for while it becomes a CUDA graph: who writes it down, or nobody.

Both the array operations that must go another way then and the recorder itself (`cupy_graph.py`) look here.
"""

from __future__ import annotations

from typing import Any

recorder: Any = None  # the `Recorder` at work, see cupy_graph.py
