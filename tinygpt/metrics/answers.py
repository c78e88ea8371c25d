"""Short answers: exact match and token F1, in the way of SQuAD's evaluation script.

Normalised means: lower case; without punctuation, without the articles a, an, the; words joined by single spaces. An
answer in Chinese (or another language without spaces) has a character for a word, and loses the punctuation of its own
script, too. What has no such character is treated exactly as SQuAD's script treats it.

    precision = shared / words of the prediction;  recall = shared / words of the reference;  F1 = harmonic mean

Shared words are counted as often as they occur in both. If one of the two has no words left, F1 is 1 if neither has
any and otherwise 0, as in SQuAD 2.0.

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
    """A text as it is compared; see above."""
    text = text.lower().translate(_PUNCTUATION)
    if is_unspaced(text):
        text = "".join(c for c in text if not _is_punctuation(c))
    return " ".join(_ARTICLES.sub(" ", text).split())


def _is_punctuation(character: str) -> bool:
    """Of any script; also what is a wide form of ASCII's, as the tilde in 3～5."""
    if unicodedata.category(character).startswith("P"):
        return True
    return unicodedata.normalize("NFKC", character) in string.punctuation


def exact_match(predictions: Iterable[str], references: Iterable[str | Iterable[str]]) -> float:
    """The share of predictions that equal a reference, both normalised. Spaces beside Chinese don't count."""
    texts, right = paired_texts("exact_match", predictions, references)
    hits = sum(any(_pieces(text) == _pieces(one) for one in ones) for text, ones in zip(texts, right, strict=True))
    return hits / len(texts)


def token_f1(predictions: Iterable[str], references: Iterable[str | Iterable[str]]) -> float:
    """The mean F1 of shared words; of several references the best counts."""
    texts, right = paired_texts("token_f1", predictions, references)
    best = [max(_f1(_pieces(text), _pieces(one)) for one in ones) for text, ones in zip(texts, right, strict=True)]
    return sum(best) / len(best)


def _pieces(text: str) -> list[str]:
    """The normalised words; where there are no spaces between words, the characters."""
    return _PIECES.findall(normalize_answer(text))


def _f1(found: list[str], right: list[str]) -> float:
    if not found or not right:
        return float(found == right)
    shared = sum((Counter(found) & Counter(right)).values())
    return 2 * shared / (len(found) + len(right))
