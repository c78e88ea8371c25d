"""The logit lens: what would the model predict if it stopped after block l?

Each block adds to the same residual stream, and the head reads that stream. So the final norm and the head can be
applied after any block, which shows where the answer appears. Row 0 reads the embeddings; row L is the model's own
prediction. Early blocks need not write in the head's coordinates: what the lens does not show may still be there
(Belrose et al., "Eliciting Latent Predictions from Transformers with the Tuned Lens", 2023, section 2).

Source: nostalgebraist, "interpreting GPT: the logit lens", LessWrong, 2020.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import ops
from ..backends.precision import upcast
from ..errors import UsageError
from ..graph import no_grad
from ..language_model import LanguageModel
from ..tensor import Tensor
from ..token_ids import checked_logits
from ..typing import Ids
from .hooks import hooked, once
from .text import block_names, host, one_text


def logit_lens(model: LanguageModel, ids: Ids) -> np.ndarray:
    """ids (T,) -> (L + 1, T, V): log-probabilities of the next token, from the embeddings and after each block.

    `logit_lens(model, ids).argmax(-1)` is the most likely token at each depth and position. Needs (L + 1) T V numbers
    of memory, 260 MB for GPT-2 at 100 tokens; `lenses` yields one depth at a time. Raises ShapeError, DtypeError,
    RangeError for wrong ids, UsageError for a model without blocks and final norm.
    """
    count, found = len(block_names("logit_lens", model)), np.empty(0)
    for i, part in enumerate(lenses(model, ids)):
        if i == 0:
            found = np.empty((count, *part.shape), part.dtype)
        found[i] = part
    return found


def lenses(model: LanguageModel, ids: Ids) -> Iterator[np.ndarray]:
    """The L + 1 parts (T, V) of `logit_lens`, one at a time."""
    if not isinstance(model, LanguageModel):
        what = type(model).__name__
        raise UsageError(f"logit_lens: the model must be a LanguageModel, whose head predicts tokens, not a {what}")
    idx = one_text("logit_lens", model, ids)
    names = block_names("logit_lens", model)[:-1]  # after the last block, use the model's own logits
    streams: dict[str, list[Tensor]] = {name: [] for name in names}
    with no_grad(), model.evaluating(), hooked(model, {name: values.append for name, values in streams.items()}):
        last = checked_logits(model, idx)  # (1, T, V)
    for name in names:
        yield _log_probabilities(_read(model, once("logit_lens", name, streams.pop(name))))
    yield _log_probabilities(last)


def _read(model: Any, x: Tensor) -> Tensor:
    """x (1, T, C) of the residual stream -> logits (1, T, V), by the final norm and the head."""
    with no_grad(), model.evaluating():
        logits: Tensor = model.head(model.ln_f(x))
    return logits


def _log_probabilities(logits: Tensor) -> np.ndarray:
    """(1, T, V) -> (T, V)."""
    return host(ops.log_softmax(Tensor(upcast(logits.data))).data[0])
