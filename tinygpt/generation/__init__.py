"""Text from a model: sampling, and the processors that shape its choice."""

from __future__ import annotations

from .sampler import generate, stream

__all__ = ["generate", "stream"]
