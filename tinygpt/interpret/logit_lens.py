"""The logit lens: what would the model predict if it stopped after block l?

Each block adds to the same residual stream, and the head reads that stream. So the final norm and the head can be
applied after any block, which shows where the answer appears. Row 0 reads the embeddings; row L is the model's own
prediction. Early blocks need not write in the head's coordinates: what the lens does not show may still be there
(Belrose et al., "Eliciting Latent Predictions from Transformers with the Tuned Lens", 2023, section 2).

Source: nostalgebraist, "interpreting GPT: the logit lens", LessWrong, 2020.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ..backends.precision import upcast
from ..errors import UsageError
from ..graph import no_grad
from ..language_model import LanguageModel
from ..tensor import Tensor
from ..token_ids import checked_logits
from .hooks import hooked, once
from .text import block_names, host, one_text


def logit_lens(model: LanguageModel, ids: Any) -> np.ndarray:
    """ids (T,) -> (L + 1, T, V): log-probabilities of the next token, from the embeddings and after each block.

    `logit_lens(model, ids).argmax(-1)` is the most likely token at each depth and position. Needs (L + 1) T V numbers
    of memory: 260 MB for GPT-2 at 100 tokens. Raises ShapeError, DtypeError, RangeError for wrong ids, UsageError for a
    model without blocks and final norm.
    """
    if not isinstance(model, LanguageModel):
        raise UsageError(
            f"logit_lens: the model must be a LanguageModel, whose head predicts tokens, not {_kind(model)}"
        )
    idx = one_text("logit_lens", model, ids)
    body: Any = model
    names = block_names("logit_lens", model)[:-1]  # after the last block, the model's own logits say it
    streams: dict[str, list[Tensor]] = {name: [] for name in names}
    with no_grad(), model.evaluating():
        with hooked(model, {name: values.append for name, values in streams.items()}):
            last = checked_logits(model, idx)  # (1, T, V)
        found = np.empty((len(names) + 1, *last.shape[1:]), host(last.data[:, :0]).dtype)
        for i, name in enumerate(names):
            x = once("logit_lens", name, streams.pop(name))  # (1, T, C)
            found[i] = _log_probabilities(body.head(body.ln_f(x)))
        found[-1] = _log_probabilities(last)
    return found


def _kind(model: object) -> str:
    return f"a {type(model).__name__}"


def _log_probabilities(logits: Tensor) -> np.ndarray:
    """(1, T, V) -> (T, V)."""
    return host(ops.log_softmax(Tensor(upcast(logits.data))).data[0])
