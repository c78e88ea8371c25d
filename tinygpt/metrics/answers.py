"""Short answers: exact match and token F1, as in SQuAD's evaluation script.

Answers are normalised: lower case; no punctuation; no articles (a, an, the); words joined by single spaces. In Chinese
and other languages without spaces each character is a word, and the punctuation of that script is removed as well.
Text without such characters is treated exactly as in SQuAD's script.

    precision = shared / words of the prediction;  recall = shared / words of the reference;  F1 = harmonic mean

A shared word counts as often as it occurs in both. If one of the two has no words left, F1 is 1 if the other has none
either, and otherwise 0, as in SQuAD 2.0.

Source: Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text", 2016, section 6.1.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable

from .pairs import paired_texts
from .words import UNSPACED, is_unspaced

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PIECES = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")


def normalize_answer(text: str) -> str:
    """The text in the form in which it is compared; see above."""
    text = text.lower().translate(_PUNCTUATION)
    if is_unspaced(text):
        text = "".join(c for c in text if not _is_punctuation(c))
    return " ".join(_ARTICLES.sub(" ", text).split())


def _is_punctuation(character: str) -> bool:
    """Whether this is punctuation in any script, or full-width ASCII punctuation, such as the tilde in 3～5."""
    if unicodedata.category(character).startswith("P"):
        return True
    return unicodedata.normalize("NFKC", character) in string.punctuation


def exact_match(predictions: Iterable[str], references: Iterable[str | Iterable[str]]) -> float:
    """The share of predictions that equal a reference, both normalised. Spaces next to Chinese don't count."""
    texts, right = paired_texts("exact_match", predictions, references)
    hits = sum(any(_pieces(text) == _pieces(one) for one in ones) for text, ones in zip(texts, right, strict=True))
    return hits / len(texts)


def token_f1(predictions: Iterable[str], references: Iterable[str | Iterable[str]]) -> float:
    """The mean F1 of shared words; with several references, the best match counts."""
    texts, right = paired_texts("token_f1", predictions, references)
    best = [max(_f1(_pieces(text), _pieces(one)) for one in ones) for text, ones in zip(texts, right, strict=True)]
    return sum(best) / len(best)


def _pieces(text: str) -> list[str]:
    """The normalised words; in scripts without spaces, the characters."""
    return _PIECES.findall(normalize_answer(text))


def _f1(found: list[str], right: list[str]) -> float:
    if not found or not right:
        return float(found == right)
    shared = sum((Counter(found) & Counter(right)).values())
    return 2 * shared / (len(found) + len(right))
