"""Read several prompts in one pass of the model, padded to one length: on a GPU, for which one is too little work.

A CPU reads them together without padding (`joint_prompts`), and each row has the bits that it has alone; here a row may
differ from that in the last digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import backends
from ..ops.cached_attention import KeyValueCache

MOST = 2  # prompts are read together if padding increases their tokens by at most this factor


def worth_padding(rows: Sequence[Any]) -> bool:
    """rows: ids (1, T_b) of each prompt."""
    lengths = [row.shape[1] for row in rows]
    return len(rows) > 1 and len(rows) * max(lengths) <= MOST * sum(lengths)


def read_padded(model: Any, rows: Sequence[Any], cache: Sequence[KeyValueCache]) -> Any:
    """Read prompts (1, T_b) into the empty rows of a cache -> `model.hidden` of the last tokens, (B, C) or a list.

    A shorter prompt is followed by padding, which no token before it attends to, and whose keys and values lie beyond
    the end of the row, where the next tokens overwrite them.
    """
    lengths = [row.shape[1] for row in rows]
    together = np.zeros((len(rows), max(lengths)), np.int64)  # (B, T)
    for line, row, length in zip(together, rows, lengths, strict=True):
        line[:length] = backends.move(row[0], "numpy")
    if len(set(lengths)) == 1:
        return model.hidden(together, cache).data[:, -1]
    hidden = model.hidden(together, [KeyValueCache(layer.keys, layer.values, layer.lengths) for layer in cache]).data
    return [line[length - 1] for line, length in zip(hidden, lengths, strict=True)]  # all, so without `last_only`
