"""What a word is, for metrics that count words.

In most languages, words are separated by spaces. Chinese, Japanese, Thai, Lao, Burmese and Khmer have no spaces: there
a whole sentence would be one word (the default tokenizers of BLEU and ROUGE give 0 for two identical Chinese
sentences), so each character counts as a word.
"""

from __future__ import annotations

import functools
import re
import unicodedata

# Ideographs with their extensions and compatibility forms; kana, also of half width; bopomofo; Thai and Lao; Burmese;
# Khmer. Not Hangul: Korean has spaces.
_HAN = "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_KANA = "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9d"
_OTHERS = "\u3105-\u312f\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
UNSPACED = f"{_HAN}{_KANA}{_OTHERS}"
_WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
_HAN_ONLY, _ANY_UNSPACED = re.compile(f"[{_HAN}]"), re.compile(f"[{UNSPACED}]")
_OF_UNSPACED = re.compile(f"[{UNSPACED}\u3000-\u303f\uff01-\uff65]")
_KANA_ONLY, _SPACED = re.compile(f"[{_KANA}]"), re.compile(rf"[^\W\d_{UNSPACED}]+")


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation: letters and digits, or a character of such a language."""
    return _WORD.findall("".join(c if _is_of_a_word(c) else " " for c in text.lower()))


@functools.cache
def _is_of_a_word(character: str) -> bool:
    """A letter, a digit, or a mark on one: Hindi's vowel signs are marks, which `\\w` leaves out."""
    return unicodedata.category(character)[0] in "LMN"


def is_unspaced(text: str) -> bool:
    """Whether a text has any character of a language without spaces, its punctuation included."""
    return _OF_UNSPACED.search(text) is not None


def script_of(texts: list[str]) -> str:
    """ "chinese", "unspaced" (Japanese, Thai ...) or "spaced": the kind of most words in the texts."""
    unspaced = kana = han = spaced = 0
    for text in texts:
        unspaced += len(_ANY_UNSPACED.findall(text))
        kana += len(_KANA_ONLY.findall(text))
        han += len(_HAN_ONLY.findall(text))
        spaced += len(_SPACED.findall(text))
    if unspaced <= spaced:
        return "spaced"
    return "chinese" if han > unspaced / 2 and kana * 20 < unspaced else "unspaced"
