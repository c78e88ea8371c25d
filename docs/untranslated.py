"""Count what the Chinese pages still lack: messages without a translation, or with one of an older text.

    make docs-messages             # reads the messages of the English pages, and updates locale/zh_CN
    python docs/untranslated.py    # a line for each page; exit code 1 if anything is missing

The API reference and the changelog stay English.
"""

from __future__ import annotations

import sys
from pathlib import Path

from babel.messages.pofile import read_po

DOCS = Path(__file__).parent
TEMPLATES, LOCALE = DOCS.parent / "build" / "messages", DOCS / "locale" / "zh_CN" / "LC_MESSAGES"
STAY_ENGLISH = ("reference/", "changelog")


def untranslated(template: Path, translation: Path) -> tuple[int, int]:
    """How many of the messages of a page have no translation that fits them, and how many there are."""
    with template.open("rb") as file:
        wanted = [message.id for message in read_po(file) if message.id]
    if not translation.exists():
        return len(wanted), len(wanted)
    with translation.open("rb") as file:
        made = {message.id for message in read_po(file) if message.id and message.string and not message.fuzzy}
    return sum(message not in made for message in wanted), len(wanted)


def pages(templates: Path = TEMPLATES) -> list[str]:
    names = [path.relative_to(templates).with_suffix("").as_posix() for path in sorted(templates.rglob("*.pot"))]
    return [name for name in names if not name.startswith(STAY_ENGLISH)]


def main(templates: Path = TEMPLATES, locale: Path = LOCALE) -> int:
    names = pages(templates)
    if not names:
        print(f"there are no messages in {templates}: make docs-messages")
        return 2
    missing = 0
    for name in names:
        lacks, of = untranslated(templates / f"{name}.pot", locale / f"{name}.po")
        missing += lacks
        print(f"{name}: {lacks} of {of} missing")
    print(f"{missing} messages are missing")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
