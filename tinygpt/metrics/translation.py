"""BLEU and chrF, by sacrebleu (extra `metrics`), so that figures can be compared with everybody else's.

sacrebleu's usual tokenizer splits at spaces and punctuation, so it gives 0 for two identical Chinese sentences. Here
the tokenizer follows from the script of the references:

| references | tokenizer |
|---|---|
| words between spaces | 13a, the usual one |
| Chinese | zh: its characters apart, the rest as 13a |
| Japanese, Thai, ... | char: sacrebleu's own for Japanese needs a dictionary |

The signature says which it was: figures with different signatures can't be compared.

BLEU multiplies the precisions of 1 to 4 words in a row. If no reference or no prediction has 4 words (names, single
words), there is nothing to be precise about and BLEU would be 0 for a perfect result: then it goes only as far as there
are words, which the signature calls "eff:yes".

Source: Papineni et al., "BLEU", 2002; Popović, "chrF", 2015; Post, "A Call for Clarity in Reporting BLEU Scores", 2018.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from ..errors import UsageError, missing_extra
from .pairs import paired_texts
from .words import script_of

TOKENIZERS = {"spaced": "13a", "chinese": "zh", "unspaced": "char"}


class CorpusScore(NamedTuple):
    """A figure from 0 to 100, and what exactly was measured."""

    score: float
    signature: str


def bleu(
    predictions: Iterable[str], references: Iterable[str | Iterable[str]], tokenize: str | None = None
) -> CorpusScore:
    """Corpus BLEU. tokenize: a tokenizer of sacrebleu's; None: by the script of the references, see above.

    Raises MissingExtraError, UsageError.
    """
    library = require_sacrebleu("BLEU")
    texts, right = paired_texts("bleu", predictions, references)
    name = tokenize or TOKENIZERS[script_of([one for ones in right for one in ones])]
    if name not in library.BLEU.TOKENIZERS:
        known = ", ".join(str(key) for key in library.BLEU.TOKENIZERS)
        raise UsageError(f"bleu: tokenize must be one of {known}, not {tokenize!r}")
    columns = _columns(right)
    metric = library.BLEU(tokenize=name)
    found = metric.corpus_score(texts, columns)
    if not found.totals[-1]:
        metric = library.BLEU(tokenize=name, effective_order=True)
        found = metric.corpus_score(texts, columns)
    return CorpusScore(min(found.score, 100.0), str(metric.get_signature()))


def chrf(predictions: Iterable[str], references: Iterable[str | Iterable[str]]) -> CorpusScore:
    """chrF2: the F-score of runs of 1 to 6 characters, without spaces, in any script. Raises as `bleu`."""
    library = require_sacrebleu("chrF")
    texts, right = paired_texts("chrf", predictions, references)
    metric = library.CHRF()
    found = metric.corpus_score(texts, _columns(right))
    return CorpusScore(min(found.score, 100.0), str(metric.get_signature()))


def require_sacrebleu(purpose: str = "BLEU") -> Any:
    """sacrebleu's metrics. Raises MissingExtraError."""
    try:
        from sacrebleu import metrics
    except ImportError:
        raise missing_extra("sacrebleu", purpose) from None
    return metrics


def _columns(references: list[list[str]]) -> list[list[str | None]]:
    """sacrebleu takes the first reference of all texts, then the second ...; None where a text has fewer."""
    most = max(map(len, references))
    return [[ones[i] if i < len(ones) else None for ones in references] for i in range(most)]
