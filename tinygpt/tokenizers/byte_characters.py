"""How GPT-2's files write bytes: a character for each of the 256, so that a token is a text."""

from __future__ import annotations

import functools


@functools.cache
def byte_of_character() -> dict[str, int]:
    """GPT-2's table: the character that stands for a byte in the files -> the byte.

    Printable characters of Latin-1 stand for themselves; the others, with which a text file would be hard to read or
    to cut into lines, are represented in their order by the characters from U+0100 on: the space is "Ġ" (U+0120).
    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.2, and its code.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in sorted(printable)}
    return table | {chr(0x100 + index): byte for index, byte in enumerate(others)}


def bytes_of_token(token: str) -> bytes:
    """The bytes behind a token of the vocabulary; a token that is not written in GPT-2's table stands for its text."""
    table = byte_of_character()
    try:
        return bytes(table[character] for character in token)
    except KeyError:
        return token.encode("utf-8")
