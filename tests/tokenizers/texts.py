"""Texts for the tests of BPE."""

from __future__ import annotations

from hypothesis import strategies as st

ENGLISH = "It's the end of the beginning, they'll say: 42 times 7 is 294.\n\n  The end's end.\t  The others went on.\n"
CHINESE = "\u3000\u3000今天天气很好。我们去公园吧。今天公园里的天气很好。\n"
# All kinds of white space, contractions, several alphabets, digits, marks, special tokens.
PARTS = [
    " ", "  ", "\n", "\r\n", "\t", "\x0b", "\x1c", "\x85", "\xa0", "\u2003", "\u3000", "\u200b", "\u180e", "a", "the",
    "'s", "'ll", "'", "1", "٣", "½", "é", "e\u0301", "天气", "。", "，", "!",  # noqa: RUF001
    "…", "𝄞", "_", "<|endoftext|>", "<|", "\0", "\ufeff",
]  # fmt: skip
TEXT = st.lists(st.one_of(st.sampled_from(PARTS), st.characters(codec="utf-8"))).map("".join)
