"""Token ids as users give them: arrays of integers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import backends
from .errors import DtypeError, RangeError, ShapeError
from .tensor import Tensor

IGNORE_INDEX = -100  # a target of this value is left out of the loss


def integer_array(name: str, value: Any) -> Any:
    """A tensor, an array or nested lists as an array of integers."""
    array = value.data if isinstance(value, Tensor) else value
    if not backends.is_array(array):
        try:
            array = np.asarray(array)
        except ValueError:
            raise ShapeError(f"GPT: the rows of {name} differ in length: pad them to one length") from None
    if array.dtype.kind not in "iu" and array.size:  # an empty list has no dtype of its own
        raise DtypeError(f"GPT: {name} must hold integers (token ids), not {array.dtype}")
    return array


def check_ids(idx: Any, vocab_size: int, longest: int | None) -> Any:
    """idx as an integer array (B, T) that a model can read, T at most `longest`, or a sentence."""
    idx = integer_array("idx", idx)
    if idx.ndim != 2 or idx.shape[1] == 0:
        raise ShapeError(f"GPT: idx must have the shape (batch, time) with at least one token, not {idx.shape}")
    if longest is not None and idx.shape[1] > longest:
        raise ShapeError(
            f"GPT: a sequence of {idx.shape[1]} tokens is longer than this model's block_size of {longest}: "
            f"cut it, for instance idx[:, -{longest}:]"
        )
    low, high = (int(idx.min()), int(idx.max())) if idx.size else (0, 0)
    if low < 0 or high >= vocab_size:
        raise RangeError(
            f"GPT: ids must be in 0 .. {vocab_size - 1} (vocab_size is {vocab_size}), "
            f"those in idx are in {low} .. {high}"
        )
    return idx


def checked_logits(model: Any, idx: Any) -> Tensor:
    """model(idx), where a subclass has its own `forward`: a sentence if it returns something else than logits."""
    logits, shape = model(idx), (*integer_array("idx", idx).shape, model.config.vocab_size)
    if not isinstance(logits, Tensor) or logits.shape != shape:
        what = f"a Tensor {logits.shape}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ShapeError(
            f"{type(model).__name__}.forward must return logits {shape}, a Tensor, for the loss, for scoring and for "
            f"generation; it returned {what}"
        )
    return logits


def targets_of(shape: tuple[int, ...], targets: Any) -> Any:
    """The targets (B, T). Raises ShapeError, DtypeError."""
    array = integer_array("targets", targets)
    if array.shape != shape:
        raise ShapeError(f"GPT.loss: targets must have the shape of idx, {shape}, not {array.shape}")
    return array
