"""bfloat16, the upper half of a float32: 8 significant bits, the same exponents.

Source: Kalamkar et al., "A Study of BFLOAT16 for Deep Learning Training", 2019.
"""

from __future__ import annotations

import numpy as np

from ..typing import Array


def to_bfloat16(x: Array) -> Array:
    """float32 of any shape -> uint16: the upper 16 bits, rounded to nearest, ties to even. Finite numbers only."""
    bits = x.astype(np.float32, copy=False).view(np.uint32)
    # Adding just under half a unit carries into the upper half exactly if that must be rounded up; its last bit breaks
    # ties.
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def from_bfloat16(bits: Array) -> Array:
    """uint16 -> float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
