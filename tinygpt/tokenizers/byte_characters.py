"""GPT-2's byte-to-character table: every token, even one that is not valid UTF-8, can be written as text."""

from __future__ import annotations

import functools


@functools.cache
def byte_of_character() -> dict[str, int]:
    """GPT-2's table, from the character that represents a byte in its files to that byte.

    Printable Latin-1 characters represent themselves. The other bytes (blanks and control characters would make the
    files hard to read or to split into lines) map in order to the characters from U+0100: the space is "Ġ" (U+0120).
    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.2, and its code.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in sorted(printable)}
    return table | {chr(0x100 + index): byte for index, byte in enumerate(others)}


def bytes_of_token(token: str) -> bytes:
    """The bytes of a vocabulary token. A token with a character outside GPT-2's table is taken literally, as UTF-8."""
    table = byte_of_character()
    try:
        return bytes(table[character] for character in token)
    except KeyError:
        return token.encode("utf-8")
