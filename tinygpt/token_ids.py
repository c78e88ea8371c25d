"""Validate token ids, targets and labels given by the user.

Each position of a language model predicts the next token. `targets` hold that next token for each position; `labels`
hold the tokens themselves and are shifted here. If the targets are the input itself, the model learns to copy its
input: the loss falls to 0 although it has learnt nothing, so we warn.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from . import backends
from .errors import RangeError, ShapeError
from .ops._arguments import integer_array
from .ops.cross_entropy import IGNORE_INDEX
from .tensor import Tensor
from .typing import Array, Ids


def check_ids(model: Any, idx: Ids, any_length: bool = False) -> Array:
    """idx as an integer array (B, T) with T at most block_size and valid ids. Raises UsageError, which names the model.

    any_length: T may be larger.
    """
    name, vocab_size = type(model).__name__, model.config.vocab_size
    idx = integer_array(name, "idx", idx)
    if idx.ndim != 2 or idx.shape[1] == 0:
        hint = ": for a batch of one, idx[None]" if idx.ndim == 1 and idx.size else ""
        raise ShapeError(
            f"{name}: idx must have the shape (batch, time) with at least one token, not {idx.shape}{hint}"
        )
    if not any_length and idx.shape[1] > (longest := model.config.block_size):
        raise ShapeError(
            f"{name}: a sequence of {idx.shape[1]} tokens is longer than this model's block_size of {longest}: "
            f"truncate it, for instance idx[:, -{longest}:]"
        )
    low, high = (int(idx.min()), int(idx.max())) if idx.size else (0, 0)
    if low < 0 or high >= vocab_size:
        raise RangeError(
            f"{name}: ids must be in 0 .. {vocab_size - 1} (vocab_size is {vocab_size}), "
            f"those in idx are in {low} .. {high}"
        )
    return idx


def checked_logits(model: Any, idx: Any) -> Tensor:
    """model(idx), for a subclass with its own `forward`. Raises ShapeError if the result is not logits."""
    name = type(model).__name__
    logits, shape = model(idx), (*integer_array(name, "idx", idx).shape, model.config.vocab_size)
    if not isinstance(logits, Tensor) or logits.shape != shape:
        what = f"a Tensor of shape {logits.shape}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ShapeError(
            f"{name}.forward must return logits, a Tensor of shape {shape}, for the loss, scoring and "
            f"generation; it returned {what}"
        )
    return logits


def targets_of(model: str, shape: tuple[int, ...], targets: Any, labels: Any) -> Any:
    """The targets (B, T), as given or from shifted labels. Raises ShapeError and DtypeError, which name `model`."""
    name, given = ("labels", labels) if targets is None else ("targets", targets)
    array = integer_array(model, name, given)
    if array.shape != shape:
        raise ShapeError(f"{model}.loss: {name} must have the shape of idx, {shape}, not {array.shape}")
    return array if targets is not None else shifted(array)


def shifted(labels: Any) -> Any:
    """labels (B, T) -> targets (B, T): the target of a position is the next label; the last one is ignored."""
    signed = labels if labels.dtype.kind == "i" else labels.astype(np.int64)  # -100 must fit
    targets = backends.array_module(labels).full(labels.shape, IGNORE_INDEX, np.promote_types(signed.dtype, np.int16))
    targets[:, :-1] = signed[:, 1:]
    return targets


def warn_if_copied(model: str, idx: Any, targets: Any) -> bool:
    """Warn and return True if every target equals the token at the same position of idx (both (B, T)).

    Not if it also equals the next token, as in a text of one repeated letter. On a GPU, where comparing values would
    force a synchronization, only passing the same object twice is detected.
    """
    pair = [one.data if isinstance(one, Tensor) else one for one in (idx, targets)]
    on_host = not any(backends.is_array(one) and backends.name_of(one) != "numpy" for one in pair)
    copied = _is_copy(*map(np.asarray, pair)) if on_host else targets is idx
    if copied:
        warnings.warn(
            f"{model}.loss: the targets equal the input at every position, so the model learns to copy its input: "
            "give the next tokens, as in loss(ids[:, :-1], ids[:, 1:]), or loss(ids, labels=ids)",
            stacklevel=4,  # the caller of the model's `loss`
        )
    return copied


def _is_copy(idx: np.ndarray, targets: np.ndarray) -> bool:
    given = targets != IGNORE_INDEX
    if not given.any() or not (targets == idx)[given].all():
        return False
    return not (targets[:, :-1] == idx[:, 1:])[given[:, :-1]].all()
