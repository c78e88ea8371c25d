"""Count what the Chinese pages still lack: messages without a translation, with one of an older text, or with one that
lost something.

    make docs-messages             # reads the messages of the English pages, and updates locale/zh_CN
    python docs/untranslated.py    # a line for each page; exit code 1 if anything is missing

A message of code, formulas and numbers alone needs no translation. In any other, these must come back in the
translation: each piece of code, formula, link, picture, number and name, and as many emphasised words. The API
reference and the changelog stay English. So does the page of a new operation, until `parts/operations.py` names it or
somebody begins to translate it: whoever adds an operation need not know Chinese.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from babel.messages.pofile import read_po
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin
from parts import operations

DOCS = Path(__file__).parent
TEMPLATES, LOCALE = DOCS.parent / "build" / "messages", DOCS / "locale" / "zh_CN" / "LC_MESSAGES"
STAY_ENGLISH = ("reference/", "changelog")
MARKDOWN = MarkdownIt("commonmark").use(dollarmath_plugin)
NUMBER = re.compile(r"(\d+(?:[.,]\d+)*)(?: ?(million|billion|万|亿))?")
TIMES = {"million": 1e6, "billion": 1e9, "万": 1e4, "亿": 1e8}
NAME = re.compile(r"[A-Za-z0-9]*_\w+", re.ASCII)  # dp_il


def contents(message: str) -> tuple[Counter[tuple[str, str]], str]:
    """What a translation must repeat, as (kind, text), and the words that it replaces."""
    fixed: Counter[tuple[str, str]] = Counter()
    words = []
    for token in _flat(MARKDOWN.parseInline(message)):
        if token.type in ("code_inline", "math_inline", "math_inline_double"):
            fixed[token.type.split("_")[0], token.content] += 1
        elif token.type in ("link_open", "image"):
            fixed["address", str(token.attrs.get("href") or token.attrs.get("src"))] += 1
        elif token.type in ("strong_open", "em_open"):
            fixed["emphasis", token.markup] += 1
        elif token.type == "text":
            words.append(token.content)
    text = "\n".join(words)
    for number, times in NUMBER.findall(text):  # 2.5 billion is 25 亿
        fixed["number", f"{float(number.replace(',', '')) * TIMES[times]:g}" if times else number] += 1
    fixed.update(("name", name) for name in NAME.findall(text))
    return fixed, text


def _flat(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from _flat(token.children or [])


def has_words(message: str) -> bool:
    """Whether there is anything to translate."""
    return re.search(r"[^\W\d_]", contents(message)[1]) is not None


def lost(message: str, translation: str) -> list[str]:
    """What a translation lacks, or has beyond the message: one line for each."""
    wanted, made = contents(message)[0], contents(translation)[0]
    return [f"lacks {kind} {text}" for kind, text in (wanted - made)] + [
        f"has {kind} {text}, which the English has not" for kind, text in (made - wanted)
    ]


def translations(path: Path) -> dict[str, str]:
    """The translations of a page that are up to date."""
    if not path.exists():
        return {}
    with path.open("rb") as file:
        return {
            str(message.id): str(message.string)
            for message in read_po(file)
            if message.id and message.string and not message.fuzzy
        }


def untranslated(template: Path, translation: Path) -> tuple[list[str], int]:
    """The messages of a page that have no translation that fits them, and how many have words."""
    with template.open("rb") as file:
        wanted = [str(message.id) for message in read_po(file) if message.id and has_words(str(message.id))]
    made = translations(translation)
    return [message for message in wanted if message not in made], len(wanted)


def pages(templates: Path = TEMPLATES) -> list[str]:
    names = [path.relative_to(templates).with_suffix("").as_posix() for path in sorted(templates.rglob("*.pot"))]
    return [name for name in names if not name.startswith(STAY_ENGLISH)]


def losses(locale: Path = LOCALE) -> list[str]:
    """All that the translations lost, one line for each."""
    return [
        f"{path.relative_to(locale).with_suffix('').as_posix()}: {translation[:40]!r} {loss}"
        for path in sorted(locale.rglob("*.po"))
        for message, translation in translations(path).items()
        for loss in lost(message, translation)
    ]


def waits(name: str, locale: Path = LOCALE) -> bool:
    """Whether a page is that of a new operation, which nobody has begun to translate.

    One whose operation is named in parts/operations.py never waits: without its catalogue all its messages are missing.
    """
    folder, _, operation = name.rpartition("/")
    return folder == "operations" and operation in operations.others() and not translations(locale / f"{name}.po")


def main(templates: Path = TEMPLATES, locale: Path = LOCALE) -> int:
    names = pages(templates)
    if not names:
        print(f"there are no messages in {templates}: make docs-messages")
        return 2
    missing = 0
    for name in names:
        if waits(name, locale):
            print(f"{name}: new, in English until docs/parts/operations.py names it")
            continue
        lacks, of = untranslated(templates / f"{name}.pot", locale / f"{name}.po")
        missing += len(lacks)
        print(f"{name}: {len(lacks)} of {of} missing")
        for message in lacks[:3]:
            print(f"    {message[:100]}")
    wrong = losses(locale)
    print(*wrong, sep="\n", end="\n" if wrong else "")
    print(f"{missing} messages are missing, {len(wrong)} pieces are lost")
    return 1 if missing or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
