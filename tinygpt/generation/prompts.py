"""Read prompts of any form as rows without padding, and as the left-padded table that the result starts with.

    [[1, 2, 3], [4, 5]]                       rows of different lengths
    idx (B, T), attention_mask (B, T)         padded to equal length: the mask is 0 at the padding, left or right
    idx (B, T)                                without a mask: pad_token_id on the left is padding if it is given and
                                              is not an eos token, as in transformers

The model never sees padding, so positions count from the first token of each row (transformers' `cumsum(mask) - 1`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import backends
from ..errors import DtypeError, ShapeError, UsageError
from ..ops._arguments import integer_array
from ..typing import Ids
from .options import WHERE

if TYPE_CHECKING:
    from ..gpt import GPT


@dataclass(frozen=True)
class Prompts:
    """B prompts: `rows`, each (length,) int64; `table` (B, T), the rows padded on the left; `mask`, True at tokens."""

    rows: list[np.ndarray]
    table: np.ndarray
    mask: np.ndarray
    needs_padding: bool  # the table was padded here, with zeros, and not by the caller

    @property
    def lengths(self) -> np.ndarray:
        return self.mask.sum(axis=1)

    def filled(self, padding: int) -> np.ndarray:
        """The table with `padding` as its padding token, unless the caller padded it."""
        return np.where(self.mask, self.table, padding) if self.needs_padding else self.table


def read_prompts(model: GPT, idx: Ids, attention_mask: Ids | None = None, padding: int | None = None) -> Prompts:
    """Check prompts for this model, including the tokens beyond its window. Raises UsageError.

    padding: the id to read as padding in a table without a mask; None: there is no padding.
    """
    if isinstance(idx, (list, tuple)) and attention_mask is None:
        rows = [np.asarray(row) for row in idx if np.ndim(row) == 1] if _is_ragged(idx) else []
        if rows:
            return _from_rows([_ids(model, row[None])[0] for row in rows])
    if attention_mask is None:
        inferred = None if padding is None else _inferred_mask(idx, padding)
        if inferred is not None:
            return _from_table(model, idx, inferred)
        table = _ids(model, idx)
        return Prompts(list(table), table, np.ones(table.shape, dtype=bool), False)
    return _from_table(model, idx, attention_mask)


def _inferred_mask(idx: Any, padding: int) -> np.ndarray | None:
    """The mask of a table padded on the left; None if `padding` does not occur in it, or if nothing else does.

    To the right of a token, the padding id may be a real token, such as a newline with id 0 at the end of a prompt.
    transformers masks it there too; here it raises UsageError.
    """
    table = backends.move(integer_array(WHERE, "idx", idx), "numpy")
    tokens = table != padding  # (B, T)
    if table.ndim != 2 or tokens.all() or not tokens.any():
        return None
    for row in np.flatnonzero(~tokens.any(axis=1)).tolist():
        raise ShapeError(f"{WHERE}: row {row} of idx is all pad_token_id={padding}: a prompt needs at least one token")
    for row in np.flatnonzero((tokens[:, :-1] & ~tokens[:, 1:]).any(axis=1)).tolist():
        raise UsageError(
            f"{WHERE}: row {row} of idx has pad_token_id={padding} after a token: pad on the left or, if it is a real "
            "token there, pass attention_mask"
        )
    return tokens


def _ids(model: GPT, idx: Any) -> np.ndarray:
    return backends.move(model.check_ids(idx, any_length=True), "numpy").astype(np.int64)


def _is_ragged(idx: Any) -> bool:
    """Whether this is a list of one-dimensional lists or arrays of different lengths."""
    try:
        return all(np.ndim(row) == 1 for row in idx) and len({len(row) for row in idx}) > 1
    except ValueError:  # a row is itself ragged
        return False


def _from_rows(rows: list[np.ndarray]) -> Prompts:
    width = max(map(len, rows))
    table = np.zeros((len(rows), width), dtype=np.int64)
    mask = np.zeros(table.shape, dtype=bool)
    for b, row in enumerate(rows):
        table[b, width - len(row) :] = row
        mask[b, width - len(row) :] = True
    return Prompts(rows, table, mask, True)


def _from_table(model: GPT, idx: Any, attention_mask: Any) -> Prompts:
    table = np.asarray(backends.move(idx, "numpy") if backends.is_array(idx) else getattr(idx, "data", idx))
    mask = np.asarray(backends.move(attention_mask, "numpy") if backends.is_array(attention_mask) else attention_mask)
    if table.ndim != 2 or mask.shape != table.shape:
        raise ShapeError(
            f"{WHERE}: idx and attention_mask must have equal shapes (batch, time), not {table.shape} and {mask.shape}"
        )
    if mask.dtype.kind not in "biuf" or not np.isin(mask, (0, 1)).all():
        raise DtypeError(f"{WHERE}: attention_mask must contain only 1 for tokens and 0 for padding")
    mask = mask.astype(bool)
    table = integer_array(WHERE, "idx", table).astype(np.int64)
    for b in range(len(table)):
        tokens = np.flatnonzero(mask[b])
        if len(tokens) == 0:
            raise ShapeError(f"{WHERE}: row {b} of attention_mask has no token: a prompt needs at least one")
        if tokens[-1] - tokens[0] + 1 != len(tokens):
            raise UsageError(f"{WHERE}: row {b} of attention_mask has padding between tokens: pad on the left")
        shift = mask.shape[1] - 1 - tokens[-1]  # move padding from the right to the left
        table[b], mask[b] = np.roll(table[b], shift), np.roll(mask[b], shift)
    rows = [_ids(model, ids[tokens][None])[0] for ids, tokens in zip(table, mask, strict=True)]
    return Prompts(rows, table, mask, False)
