"""Multiple choice by log-likelihood: which continuation is the most likely under the model?

HellaSwag's form: a context and several endings. `total` is the log-likelihood of an ending; long endings have more
factors below 1, so `per_character` divides it by the ending's characters (the `acc` and `acc_norm` of
lm-evaluation-harness).
LAMBADA's form: a text whose last word can be inferred from the rest. The answer is correct if each of its tokens is the
model's most likely one, so that greedy decoding would produce it.

The context and its continuation are encoded together, because a tokenizer may merge across the boundary; spaces at the
end of the context belong to the continuation, because tokenizers like GPT-2's attach a space to the word after it.

Source: Zellers et al., "HellaSwag", 2019; Paperno et al., "The LAMBADA dataset", 2016; Gao et al.,
"lm-evaluation-harness", `_encode_pair`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DtypeError, UsageError
from ..generation import log_likelihood
from ..language_model import LanguageModel
from ..tokenizers import Tokenizer


@dataclass(frozen=True)
class Choice:
    """total (K,): log-likelihoods of the choices, in nats; per_character (K,): divided by the length of the text."""

    total: np.ndarray
    per_character: np.ndarray

    @property
    def best(self) -> int:
        """The choice with the highest log-likelihood."""
        return int(self.total.argmax())

    @property
    def best_per_character(self) -> int:
        """The choice with the highest log-likelihood per character."""
        return int(self.per_character.argmax())


def multiple_choice(model: LanguageModel, tokenizer: Tokenizer, context: str, choices: Sequence[str]) -> Choice:
    """The log-likelihood of each of `choices` after `context`. Choices include their leading space: " a dog".

    A context longer than the block is truncated on the left. Raises UsageError.
    """
    where = "multiple_choice"
    if isinstance(choices, str) or not len(choices) or not all(isinstance(one, str) and one for one in choices):
        raise DtypeError(f"{where}: choices must be a list of texts, none of them empty, not {choices!r:.80}")
    totals = np.array([continuation(model, tokenizer, context, one)[0] for one in choices])
    return Choice(totals, totals / np.array([len(one) for one in choices]))


def last_words(model: LanguageModel, tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, float]:
    """LAMBADA: how often greedy decoding produces the last word, and the perplexity of the last words.

    The last word begins at the last space; a text without spaces has none to predict. Raises UsageError.
    """
    scores = []
    for i, text in enumerate(texts):
        context, space, word = text.rstrip().rpartition(" ")
        if not context.strip() or not word:
            raise UsageError(f"last_words: text {i} must have two words or more with spaces between, not {text!r:.80}")
        scores.append(continuation(model, tokenizer, context, space + word))
    if not scores:
        raise UsageError("last_words: there is nothing to measure: no texts")
    totals = np.array([total for total, _ in scores])
    return {
        "accuracy": float(np.mean([greedy for _, greedy in scores])),
        "perplexity": float(np.exp(-totals.mean())),  # of a word, as LAMBADA is reported, not of a token
    }


def continuation(model: LanguageModel, tokenizer: Tokenizer, context: str, text: str) -> tuple[float, bool]:
    """The log-likelihood of `text` after `context`, and whether greedy decoding would write it."""
    before, ids = encode_pair(tokenizer, context, text)
    found = log_likelihood(model, ids, context=before, greedy=True)
    assert found.greedy is not None
    return found.total, bool(found.greedy.all())


def encode_pair(tokenizer: Any, context: str, text: str) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of `context`, and those of `text` after it. An empty context is replaced by the start token.

    Raises UsageError if nothing is left to predict.
    """
    bare = context.rstrip()
    context, text = bare, context[len(bare) :] + text
    begin = list(tokenizer.start_ids)
    if context:
        before = np.asarray(tokenizer.encode(context))
        ids = np.asarray(tokenizer.encode(context + text))[len(before) :]
    else:
        first = [id for id in (tokenizer.bos_token_id, tokenizer.eos_token_id) if id is not None][:1]
        begin, before, ids = begin or first, np.zeros(0, np.int64), np.asarray(tokenizer.encode(text))
    if not len(ids):
        raise UsageError(f"log-likelihood: {text!r:.80} adds no tokens after the context: nothing to predict")
    return np.concatenate([np.asarray(begin, np.int64), before]), ids
