"""Metrics: compare predictions with references.

    tg.metrics.accuracy(predictions, references)            # predictions always come first
    tg.metrics.bleu(texts, references).signature            # sacrebleu's signature: what exactly was measured
    tg.metrics.multiple_choice(model, tokenizer, question, choices).best

| file | metrics | scale |
|---|---|---|
| `classification.py` | accuracy, f1, confusion_matrix, f1_scores | 0 to 1; counts |
| `regression.py` | mean_absolute_error, mean_squared_error, r2, correlation, rank_correlation | of the numbers; <= 1 |
| `answers.py` | exact_match, token_f1: short answers, as in SQuAD | 0 to 1 |
| `translation.py` | bleu, chrf, computed by sacrebleu (extra `metrics`) | 0 to 100, as usually reported |
| `summaries.py` | rouge, computed by rouge-score (extra `metrics`) | 0 to 1 |
| `choice.py` | multiple_choice, last_words: by log-likelihood, as in HellaSwag and LAMBADA | nats; 0 to 1 |
| `labelling.py` | a classifier's scores for many texts, and the report on them | |
| `words.py` | what a word is; in Chinese, which has no spaces, a character | |

`perplexity(model, tokens)` is the one in `tinygpt.generation`. If a reference is a list, each text in it is a correct
answer, and the best match counts.
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
