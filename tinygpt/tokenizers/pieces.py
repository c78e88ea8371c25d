"""Where a text can be cut so that its pieces have the tokens of the whole.

BPE merges characters, but GPT-2's first splits the text into words by a regular expression and merges only inside a
word. Each of its alternatives matches either one optional space and then no more white space, or white space alone:

    's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+

So no word reaches from a visible character into the white space after it: there is always a border there. The
expression looks at nothing before a word, and the only one that looks ahead, `(?!\\S)`, stands at the end of white
space; so neither side of such a border sees the other, and each gets the words it has in the whole text. The other
border, between a space and a letter, is not safe: " a" is one word.

Chinese has no spaces, but a run of letters ends at a full stop as it ends at a space: between a character and one of
`PAUSES` is a border too, of which the same is true.

Python calls a few characters white space that the expression does not (U+001C to U+001F), and none the other way
round: "visible" is Python's, and the white space below is only what both agree on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

PAUSES = "\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f"  # comma, full stop and their like of Chinese and Japanese
BORDER = re.compile(rf"(?<=\S)[\t-\r \u3000]|(?<=[\u4e00-\u9fa5])[{PAUSES}]")
_WINDOW = 1 << 12  # the last border is looked for here first: most texts have one


def recut(pieces: Iterable[str]) -> Iterator[str]:
    """The same text, cut only at safe borders.

    What follows the last border of a piece is held back until the next border is there: a text without white space
    comes as one piece.
    """
    held: list[str] = []  # together without a border but for their very beginning
    last = ""  # the character before the piece
    for piece in pieces:
        place = _last_border(last + piece) - len(last)
        if place < 0:
            held.append(piece)
        else:
            if text := "".join([*held, piece[:place]]):
                yield text
            held = [piece[place:]]
        last = piece[-1:] or last
    if text := "".join(held):
        yield text


def chunks(text: str, size: int) -> list[str]:
    """`text` cut at safe borders into chunks of `size` characters, or more where the next border is farther."""
    places = [0]
    while (found := BORDER.search(text, places[-1] + size)) is not None:
        places.append(found.start())
    return [text[begin:end] for begin, end in zip(places, [*places[1:], len(text)], strict=True)]


def _last_border(text: str) -> int:
    """Where the last safe border is, 1 or more; -1 for none."""
    for begin in (max(0, len(text) - _WINDOW), 0):
        places = [match.start() for match in BORDER.finditer(text, begin)]
        if places:
            return places[-1]
    return -1
