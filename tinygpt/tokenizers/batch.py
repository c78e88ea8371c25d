"""Several texts at once, as a call of transformers' tokenizers gives them.

    tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="np")
    batch["input_ids"], batch["attention_mask"]         # (B, T) int64: ids, and 1 where they are not padding
    model.generate(**batch)

The ids are those of `encode`: special tokens written out in a text are ordinary text, and nothing is put around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import whole_number
from ..errors import DtypeError, ShapeError, UsageError

if TYPE_CHECKING:
    from .base import Tokenizer

WHERE = "tokenizer(texts)"
PADDING = {False: None, "do_not_pad": None, True: "longest", "longest": "longest", "max_length": "max_length"}
TRUNCATION = {False: False, "do_not_truncate": False, True: True, "longest_first": True, "only_first": True}
SIDES = ("right", "left")


class Encoding(dict[str, Any]):
    """input_ids and attention_mask; `encoding.input_ids` is `encoding["input_ids"]`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the encoding of a text has {' and '.join(self)}, not {name}") from None


def encode_batch(
    tokenizer: Tokenizer, texts: Any, padding: Any, truncation: Any, max_length: Any, return_tensors: Any
) -> Encoding:
    """What `Tokenizer.__call__` returns."""
    if return_tensors not in (None, "np"):
        raise UsageError(
            f"{WHERE}: return_tensors={return_tensors!r}, but tinygpt computes on NumPy's arrays: return_tensors='np'"
        )
    side = tokenizer.padding_side
    if side not in SIDES:
        raise UsageError(f"{WHERE}: tokenizer.padding_side must be 'right' or 'left', not {side!r}")
    fill, cut = _choice("padding", padding, PADDING), _choice("truncation", truncation, TRUNCATION)
    length = _length(max_length, fill, cut)
    rows = [ids[: length if cut else None] for ids in tokenizer.batch_encode(_texts(texts))]
    masks = [np.ones(len(row), np.int64) for row in rows]
    if fill is not None:
        width = length if fill == "max_length" and length is not None else max(map(len, rows), default=0)
        padding_id = _padding_id(tokenizer)
        rows = [_padded(row, width, padding_id, side) for row in rows]
        masks = [_padded(mask, width, 0, side) for mask in masks]
    if return_tensors == "np":
        return Encoding(input_ids=_stacked(rows), attention_mask=_stacked(masks))
    lists = Encoding(input_ids=[row.tolist() for row in rows], attention_mask=[mask.tolist() for mask in masks])
    return Encoding({name: value[0] for name, value in lists.items()}) if isinstance(texts, str) else lists


def _choice(name: str, value: Any, choices: dict[Any, Any]) -> Any:
    if not isinstance(value, (bool, str)) or value not in choices:
        raise UsageError(f"{WHERE}: {name} must be one of {', '.join(map(repr, choices))}, not {value!r}")
    return choices[value]


def _length(max_length: Any, fill: str | None, cut: bool) -> int | None:
    """max_length, checked together with the options that need it or are needed for it."""
    if max_length is not None:
        if not cut and fill != "max_length":
            raise UsageError(f"{WHERE}: max_length={max_length} cuts nothing by itself: add truncation=True")
        return whole_number(WHERE, "max_length", max_length)
    if cut or fill == "max_length":
        option = "truncation=True" if cut else "padding='max_length'"
        raise UsageError(f"{WHERE}: {option} needs max_length, such as the model's config.block_size")
    return None


def _texts(texts: Any) -> Sequence[str]:
    if isinstance(texts, str):
        return [texts]
    if not isinstance(texts, (list, tuple)):
        raise DtypeError(f"{WHERE}: takes a text or a list of texts, not {type(texts).__name__}")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise DtypeError(
                f"{WHERE}: takes a text or a list of texts, but entry {i} is of type {type(text).__name__}"
            )
    return texts


def _padding_id(tokenizer: Tokenizer) -> int:
    if tokenizer.pad_token_id is None:
        end = tokenizer.eos_token_id is not None
        raise UsageError(
            "Asking to pad but the tokenizer does not have a padding token: "
            + (
                "set tokenizer.pad_token = tokenizer.eos_token"
                if end
                else "set tokenizer.pad_token_id to one of its ids"
            )
        )
    return whole_number(WHERE, "pad_token_id", tokenizer.pad_token_id, at_least=0)


def _padded(row: np.ndarray, width: int, value: int, side: str) -> np.ndarray:
    more = max(0, width - len(row))
    return np.pad(row, (0, more) if side == "right" else (more, 0), constant_values=value)


def _stacked(rows: list[np.ndarray]) -> np.ndarray:
    """The rows as one array (B, T). Raises ShapeError if they differ in length."""
    if len({len(row) for row in rows}) > 1:
        lengths = sorted(map(len, rows))
        raise ShapeError(
            f"{WHERE}: texts of {lengths[0]} to {lengths[-1]} tokens do not fit into one array: add padding=True, or "
            "truncation=True if some are longer than max_length"
        )
    return np.stack(rows) if rows else np.zeros((0, 0), np.int64)


def token_property(name: str) -> property:
    """The text of the token whose id is the attribute `name`, or None; setting it looks up the id."""

    def get(self: Tokenizer) -> str | None:
        token_id = getattr(self, name)
        return None if token_id is None else self.decode([token_id])

    def put(self: Tokenizer, token: str | None) -> None:
        setattr(self, name, None if token is None else _id_of(self, token, name.removesuffix("_id")))

    return property(get, put, doc=f"The text of the token `{name}`, or None.")


def _id_of(tokenizer: Tokenizer, token: str, name: str) -> int:
    """The id of a token by its text. Raises UsageError if it is not one token of this tokenizer."""
    named = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
    for token_id in (*(i for i in named if i is not None), *sorted(tokenizer.special_ids)):
        if tokenizer.decode([token_id]) == token:
            return token_id
    ids = tokenizer.encode(token).tolist()
    if len(ids) != 1:
        raise UsageError(
            f"{name}: {token!r} is not one token of this tokenizer but {len(ids)}: choose one that is, such as "
            "tokenizer.eos_token"
        )
    return int(ids[0])
