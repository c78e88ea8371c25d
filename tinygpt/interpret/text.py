"""What the views of a model share: one text of ids, the language model and its blocks, results as NumPy arrays."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from .. import backends
from ..backends.precision import upcast
from ..checks import integer_array
from ..classifier import GPTForSequenceClassification
from ..errors import ShapeError, UsageError
from ..language_model import LanguageModel
from ..tensor import Tensor
from ..typing import Ids

AnyModel = LanguageModel | GPTForSequenceClassification  # what the views show


def body_of(where: str, model: AnyModel) -> tuple[Any, str]:
    """The language model with the blocks, and the path to it: the model itself, or the one under a classifier's head.

    Raises UsageError for a model without blocks `h` and a final norm `ln_f`.
    """
    body: Any = getattr(model, "transformer", model)
    prefix = "" if body is model else "transformer."
    if not isinstance(getattr(body, "h", None), (list, tuple)) or not body.h or not hasattr(body, "ln_f"):
        raise UsageError(
            f"{where}: the model must have a list of blocks `h` and a final norm `ln_f`, as a GPT has; "
            f"{type(body).__name__} lacks them"
        )
    return body, prefix


def block_names(where: str, model: AnyModel) -> list[str]:
    """The residual stream: the input of the first block and the output of each, L + 1 names."""
    body, prefix = body_of(where, model)
    return [f"{prefix}h.0.input", *(f"{prefix}h.{i}" for i in range(len(body.h)))]


def one_text(where: str, model: AnyModel, ids: Ids, at_least: int = 1) -> Any:
    """ids (T,) or (1, T) -> an integer array (1, T), checked. Raises ShapeError, DtypeError, RangeError."""
    idx = integer_array(f"{where}: ids", ids.data if isinstance(ids, Tensor) else ids)
    idx = idx[None] if idx.ndim == 1 else idx
    if idx.ndim != 2 or idx.shape[0] != 1:
        raise ShapeError(f"{where}: ids must be one text, integers of shape (T,), not {idx.shape}: call it for each")
    if idx.shape[1] < at_least:
        raise ShapeError(f"{where}: ids must have at least {at_least} tokens, not {idx.shape[1]}")
    return body_of(where, model)[0].check_ids(idx)


def host(array: Any) -> np.ndarray:
    """A NumPy array of these numbers, in at least float32: a copy, which later passes do not overwrite."""
    return np.array(backends.move(upcast(array), "numpy"), order="C")


def without_batch(array: Any, T: int) -> Any:
    """(1, T, ...) -> (T, ...); anything else as it is."""
    return array[0] if array.ndim > 2 and array.shape[:2] == (1, T) else array


def nearest(name: object, names: Iterable[str]) -> str:
    """The end of a sentence about a name that does not exist: the nearest that does, or all of them."""
    names = list(names)
    near = difflib.get_close_matches(str(name), names, 1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names[:12])}{' ...' * (len(names) > 12)}"


@contextlib.contextmanager
def frozen(model: AnyModel) -> Iterator[None]:
    """Inside the block no parameter gets a gradient, so a backward pass leaves every `.grad` as it is.

    Gradients still flow through the layers, to what requires one. Without dropout.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in parameters:
            parameter.requires_grad = False
        with model.evaluating():
            yield
    finally:
        for parameter in parameters:
            parameter.requires_grad = True
