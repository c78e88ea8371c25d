"""The differentiable operations, one file each.

Every file reads in the same order: the mathematics, the composed oracle, the reference kernels, the
`Function`, the public function.
"""

from __future__ import annotations

from .layer_norm import layer_norm

__all__ = ["layer_norm"]
