"""Matrices in llama.cpp's format q4_0, with the numbers that `pack(format="int4")` stores.

A block is 32 neighbours in a row: their scale in float16, then 16 bytes, of which byte j holds q + 8 of the neighbours
j (low half) and j + 16 (high half). A row here is a row of the file, whose matrices are (out, in): the terms of a sum.

Source: https://github.com/ggml-org/ggml, block_q4_0 in ggml-common.h.
"""

from __future__ import annotations

import numpy as np

from ..ops._bfloat16 import from_bfloat16
from ..ops._four_bits import GROUP, by_rows, q_of, to_panels

BYTES = 2 + GROUP // 2  # of a block


def q4_0(rows: np.ndarray) -> np.ndarray:
    """float32 (R, K) -> uint8 (R, K / 32 * BYTES)."""
    words, scales = (by_rows(panels)[:, : len(rows)] for panels in to_panels(rows.T))
    codes = (q_of(words) + 8).astype(np.uint8).T.reshape(len(rows), -1, GROUP)
    blocks = np.empty((*codes.shape[:2], BYTES), np.uint8)
    blocks[..., :2] = np.ascontiguousarray(from_bfloat16(scales).T.astype("<f2"))[..., None].view(np.uint8)
    blocks[..., 2:] = codes[..., : GROUP // 2] | codes[..., GROUP // 2 :] << 4
    return blocks.reshape(len(rows), -1)
