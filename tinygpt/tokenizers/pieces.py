"""Where a text can be split so that encoding the pieces separately yields the same ids as encoding it whole.

GPT-2's BPE first splits the text into words with a regular expression, and merges only inside a word. Each of its
alternatives matches either an optional space followed by no other white space, or white space alone:

    's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+

So no word extends from a visible character into the white space after it, and a word always ends there. The expression
has no look-behind, and its only look-ahead, `(?!\\S)`, comes at the end of white space. The split on one side of such
a boundary therefore does not depend on the text on the other side, and splitting the text there changes no word. The
opposite boundary, between a space and a letter, is not safe: " a" is one word.

Chinese has no spaces, but a run of letters ends at a full stop just as it does at a space, so the boundary between a
Chinese character and one of `PAUSES` is safe for the same reason.

Python counts a few characters as white space that the expression does not (U+001C to U+001F), but not the reverse.
Below, "visible" is Python's `\\S`, and the white space is only what both agree on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from ..errors import UsageError

PAUSES = "\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f"  # Chinese and Japanese comma, full stop and similar
BOUNDARY = re.compile(rf"(?<=\S)[\t-\r \u3000]|(?<=[\u4e00-\u9fa5])[{PAUSES}]")
LONGEST = 1 << 24  # characters of a word
_WINDOW = 1 << 12  # search the end of the text first: it nearly always has a boundary


def recut(pieces: Iterable[str], boundary: re.Pattern[str] = BOUNDARY) -> Iterator[str]:
    """Re-split a text at safe boundaries only. boundary: those of another tokenizer, one character long.

    The text after a piece's last boundary is held back until the next boundary arrives, so a text without any comes
    out as one piece. Raises UsageError where none comes: as one word, the text would take 170 bytes of memory for each
    character, and longer than anyone waits.
    """
    held: list[str] = []  # joined, they contain no boundary except at the very beginning
    last, size = "", 0  # the character before `piece`; how many are held
    for piece in pieces:
        if size > LONGEST:
            raise UsageError(
                f"the text has {LONGEST:,} characters in a row without a border between words, from {held[0][:20]!r} "
                "on, and this tokenizer takes them for one: break the lines, or use the tokenizer character or byte"
            )
        position = _last_boundary(last + piece, boundary) - len(last)
        if position < 0:
            held.append(piece)
            size += len(piece)
        else:
            if text := "".join([*held, piece[:position]]):
                yield text
            held, size = [piece[position:]], len(piece) - position
        last = piece[-1:] or last
    if text := "".join(held):
        yield text


def chunks(text: str, size: int) -> list[str]:
    """Split `text` at safe boundaries into chunks of `size` characters, or more if the next boundary is further on."""
    positions = [0]
    while (found := BOUNDARY.search(text, positions[-1] + size)) is not None:
        positions.append(found.start())
    return [text[begin:end] for begin, end in zip(positions, [*positions[1:], len(text)], strict=True)]


def _last_boundary(text: str, boundary: re.Pattern[str]) -> int:
    """Position of the last safe boundary (at least 1), or -1 if there is none."""
    for begin in (max(0, len(text) - _WINDOW), 0):
        positions = [match.start() for match in boundary.finditer(text, begin)]
        if positions:
            return positions[-1]
    return -1
