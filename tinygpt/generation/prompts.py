"""Prompts in whatever form they come, as rows without padding; and the table that the result begins with.

    [[1, 2, 3], [4, 5]]                       rows of different length
    idx (B, T), attention_mask (B, T)         padded to one length: the mask is 0 at the padding, left or right
    idx (B, T)                                of one length; without a mask, pad_token_id on the left is padding, where
                                              it is given and is no eos token: transformers infers the same

The model never sees padding, so a row's positions count from its own first token (transformers' `cumsum(mask) - 1`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import backends
from ..errors import DtypeError, ShapeError, UsageError
from ..ops._arguments import integer_array
from .options import WHERE

if TYPE_CHECKING:
    from ..gpt import GPT


@dataclass(frozen=True)
class Prompts:
    """B prompts: `rows`, each (length,) int64; `table`, the same padded on the left (B, T), `mask` of its tokens."""

    rows: list[np.ndarray]
    table: np.ndarray
    mask: np.ndarray
    needs_padding: bool  # the padding of the table is not the user's own

    @property
    def lengths(self) -> np.ndarray:
        return self.mask.sum(axis=1)

    def filled(self, padding: int) -> np.ndarray:
        """The table, with the padding that is not the user's own."""
        return np.where(self.mask, self.table, padding) if self.needs_padding else self.table


def read_prompts(model: GPT, idx: Any, attention_mask: Any = None, padding: int | None = None) -> Prompts:
    """Prompts that this model can read, all of each checked, also what its window cuts off. Raises UsageError.

    padding: the id that is no token in a table without a mask; None: every id is one.
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
    """The mask of a table padded on the left; None where it has no padding, or nothing else: then it is a token there.

    Elsewhere in a row it may well be a token, such as the newline at a prompt's end that has the id 0. transformers
    leaves it out there too; here that is a sentence.
    """
    table = backends.move(integer_array(WHERE, "idx", idx), "numpy")
    tokens = table != padding  # (B, T)
    if table.ndim != 2 or tokens.all() or not tokens.any():
        return None
    for row in np.flatnonzero(~tokens.any(axis=1)).tolist():
        raise ShapeError(f"{WHERE}: row {row} of idx is nothing but pad_token_id={padding}: a prompt needs a token")
    for row in np.flatnonzero((tokens[:, :-1] & ~tokens[:, 1:]).any(axis=1)).tolist():
        raise UsageError(
            f"{WHERE}: row {row} of idx has pad_token_id={padding} behind a token: pad on the left or, where it is one "
            "itself, say so with attention_mask"
        )
    return tokens


def _ids(model: GPT, idx: Any) -> np.ndarray:
    return backends.move(model.check_ids(idx, any_length=True), "numpy").astype(np.int64)


def _is_ragged(idx: Any) -> bool:
    """A list of lists or arrays of one axis, of different lengths."""
    try:
        return all(np.ndim(row) == 1 for row in idx) and len({len(row) for row in idx}) > 1
    except ValueError:  # a row that is itself of different lengths
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
            f"{WHERE}: idx and attention_mask must have one shape (batch, time), not {table.shape} and {mask.shape}"
        )
    if mask.dtype.kind not in "biuf" or not np.isin(mask, (0, 1)).all():
        raise DtypeError(f"{WHERE}: attention_mask must hold 1 for a token and 0 for padding, and nothing else")
    mask = mask.astype(bool)
    table = integer_array(WHERE, "idx", table).astype(np.int64)
    for b in range(len(table)):
        tokens = np.flatnonzero(mask[b])
        if len(tokens) == 0:
            raise ShapeError(f"{WHERE}: row {b} of attention_mask has no token: a prompt needs at least one")
        if tokens[-1] - tokens[0] + 1 != len(tokens):
            raise UsageError(f"{WHERE}: row {b} of attention_mask has padding between tokens: pad on the left")
        shift = mask.shape[1] - 1 - tokens[-1]  # padding on the right goes to the left
        table[b], mask[b] = np.roll(table[b], shift), np.roll(mask[b], shift)
    rows = [_ids(model, ids[tokens][None])[0] for ids, tokens in zip(table, mask, strict=True)]
    return Prompts(rows, table, mask, False)
