"""BLEU and chrF, computed by sacrebleu (extra `metrics`), so that scores can be compared with published ones.

sacrebleu's default tokenizer splits at spaces and punctuation, so it gives 0 for two identical Chinese sentences. Here
the script of the references determines the tokenizer:

| references | tokenizer |
|---|---|
| words separated by spaces | 13a, the default |
| Chinese | zh: splits Chinese characters, the rest as 13a |
| Japanese, Thai, ... | char: sacrebleu's tokenizer for Japanese needs a dictionary |

The signature records the tokenizer: scores with different signatures can't be compared.

BLEU multiplies the precisions of n-grams of 1 to 4 words. If no reference or no prediction has 4 words (names, single
words), BLEU would be 0 even for a perfect result. Then only the n-grams that exist count, which the signature calls
"eff:yes".

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
    """A score from 0 to 100, and what exactly was measured."""

    score: float
    signature: str


def bleu(
    predictions: Iterable[str], references: Iterable[str | Iterable[str]], tokenize: str | None = None
) -> CorpusScore:
    """Corpus BLEU. tokenize: one of sacrebleu's tokenizers; None: by the script of the references, see above.

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
    """chrF2: the F-score of character n-grams of 1 to 6, without spaces, in any script. Raises as `bleu`."""
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
    """References as sacrebleu expects them: the first of each text, then the second ...; None where one is missing."""
    most = max(map(len, references))
    return [[ones[i] if i < len(ones) else None for ones in references] for i in range(most)]
