"""Measure predictions against references.

    tg.metrics.accuracy(predictions, references)            # predictions first, everywhere
    tg.metrics.bleu(texts, references).signature            # what was measured, in sacrebleu's words
    tg.metrics.multiple_choice(model, tokenizer, question, choices).best

| file | metrics | scale |
|---|---|---|
| `classification.py` | accuracy, f1, confusion_matrix, f1_scores | 0 to 1; counts |
| `regression.py` | mean_absolute_error, mean_squared_error, r2, correlation, rank_correlation | of the numbers; <= 1 |
| `answers.py` | exact_match, token_f1: short answers, in SQuAD's way | 0 to 1 |
| `translation.py` | bleu, chrf, by sacrebleu (extra `metrics`) | 0 to 100, as everybody reports them |
| `summaries.py` | rouge, by rouge-score (extra `metrics`) | 0 to 1 |
| `choice.py` | multiple_choice, last_words: by log-likelihood, as HellaSwag and LAMBADA | nats; 0 to 1 |
| `words.py` | what a word is; Chinese has none between spaces, so there it is a character | |

`perplexity(model, tokens)` is that of `tinygpt.generation`. Where a reference may be a list, any of the texts in it is
a right answer, and the best counts.
"""

from __future__ import annotations

from ..generation import perplexity
from .answers import exact_match, normalize_answer, token_f1
from .choice import Choice, last_words, multiple_choice
from .classification import accuracy, confusion_matrix, f1, f1_scores
from .regression import correlation, mean_absolute_error, mean_squared_error, r2, rank_correlation
from .summaries import rouge
from .translation import CorpusScore, bleu, chrf
from .words import words

__all__ = [
    "Choice", "CorpusScore", "accuracy", "bleu", "chrf", "confusion_matrix", "correlation", "exact_match", "f1",
    "f1_scores", "last_words", "mean_absolute_error", "mean_squared_error", "multiple_choice", "normalize_answer",
    "perplexity", "r2", "rank_correlation", "rouge", "token_f1", "words",
]  # fmt: skip
