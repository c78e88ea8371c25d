"""The Chinese of the pages: one term for each idea, that of the glossary; spaces between Chinese and Latin letters."""

from __future__ import annotations

import functools
import re

import pytest

from .test_chinese import script
from .test_site import DOCS

# Rows of the glossary whose English words have no other meaning on the pages.
TERMS = [
    "token", "vocabulary", "tokenizer", "attention", "causal mask", "residual stream", "perplexity", "loss",
    "forward pass", "gradient", "chain rule", "tensor", "broadcasting", "optimizer", "learning rate", "weight decay",
    "batch", "checkpoint", "prompt", "kernel", "thread", "baseline",
]  # fmt: skip


@functools.cache
def pairs() -> list[tuple[str, str, str]]:
    """Page, message and translation: of messages without quotations, which stay English."""
    module = script()
    return [
        (path.stem, re.sub(r'"[^"]*"', "", message), translation)
        for path in sorted(module.LOCALE.rglob("*.po"))
        for message, translation in module.translations(path).items()
        if path.stem != "glossary" and re.search("[\u4e00-\u9fff]", translation)
    ]


def glossary() -> dict[str, str]:
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|", (DOCS / "glossary.md").read_text(encoding="utf-8"), re.M)
    return dict(rows)


@pytest.mark.parametrize("english", TERMS)
def test_one_term_for_each_idea(english: str) -> None:
    chinese = glossary()[english]
    found = 0
    for page, message, translation in pairs():
        words = re.sub(r"`[^`]*`|\[[^\]]*\]\(|\w+\\_\w+|: .*, layer\\_norm,.*", "", message).lower()
        if re.search(rf"\b{english}s?\b", words):
            found += 1
            assert chinese in translation, (page, translation)
    assert found


def test_spaces_between_chinese_and_latin() -> None:
    han, latin = "[\u4e00-\u9fff]", "[A-Za-z0-9`$]"
    for page, _, translation in pairs():
        assert not re.search(f"{han}{latin}|{latin}{han}|{han}[,;:!?]|  ", translation), (page, translation)
