"""ROUGE, computed by rouge-score (extra `metrics`): the overlap between the words of a summary and of a reference.

rouge-score's own tokenizer keeps a-z and 0-9 and drops everything else, so it gives 0 for two identical Chinese texts
and truncates "café" to "caf". Here it is replaced (`words.py`): letters and digits of any language in lower case, and
characters in languages without spaces. For English without accents the results are the same.

Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import missing_extra
from .pairs import paired_texts
from .words import words

KINDS = ("rouge1", "rouge2", "rougeL")


def rouge(predictions: Iterable[str], references: Iterable[str | Iterable[str]]) -> dict[str, float]:
    """The mean F-measures of ROUGE-1 (words), ROUGE-2 (pairs of words), ROUGE-L (the longest common sequence), 0 to 1.

    With several references, the best one counts, for each kind. An empty text scores 0. Raises MissingExtraError,
    UsageError.
    """
    scorer = require_rouge().RougeScorer(list(KINDS), tokenizer=_Words())
    texts, right = paired_texts("rouge", predictions, references)
    found = [scorer.score_multi(ones, text) for text, ones in zip(texts, right, strict=True)]
    return {kind: sum(score[kind].fmeasure for score in found) / len(found) for kind in KINDS}


def require_rouge() -> Any:
    """rouge-score's scorer. Raises MissingExtraError."""
    try:
        from rouge_score import rouge_scorer
    except ImportError:
        raise missing_extra("rouge-score", "ROUGE") from None
    return rouge_scorer


class _Words:
    """The tokenizer, with the interface that rouge-score expects."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)
