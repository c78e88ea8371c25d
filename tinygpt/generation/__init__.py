"""Text from a model: sampling, and the processors that shape its choice."""

from __future__ import annotations

from .sampler import check_options, generate, stream

__all__ = ["check_options", "generate", "stream"]
