"""Docstrings as Markdown, for the pages of operations, and as reStructuredText, for the API reference.

The docstrings of tinygpt are plain text: paragraphs, formulas indented by four spaces, lists, tables, names in single
backticks. `x * s`, `a**2` and `s_ij` in a paragraph are mathematics, never markup, so they are escaped.
"""

from __future__ import annotations

import itertools
import re

# The parts of an operation's docstring, and their headings. A part begins on a line of its own.
HEADINGS = {
    "Derivation of the gradient. ": "The derivation",
    "No oracle: ": "The oracle",
    "Saved: ": "What is kept, and why it is enough",
    "Shapes: ": "Shapes",
    "Letters: ": "Letters and shapes",
    "Source: ": "Source",
}
_WORDS = {"only", "the", "each", "this", "these", "any", "elementary:", "apply", "it", "no"}
SIGNS = {"sum": "Σ", "max": "max"}
_LIST = re.compile(r"(-|\d+\.) +")


def to_markdown(docstring: str) -> str:
    """The docstring of an operation's file, with a heading before each of its parts."""
    lines, code_from, found = _with_blank_ends(docstring), 4, []
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if not line.strip() or (indent >= code_from and _in_code(lines, number, code_from)) or line.startswith("|"):
            found.append(_without_words(line))
            continue
        if indent == 0:
            item = _LIST.match(line)
            code_from = 4 + (
                len(item[0]) if item else 0
            )  # formulas of a list's item are indented by four from its text
            for words, heading in HEADINGS.items():
                if line.startswith(words):
                    found += ["", f"## {heading}", ""]
                    line = line.removeprefix(words)
                    if line.split()[0].rstrip(".;") in _WORDS:  # and not the name of an array
                        line = line[0].upper() + line[1:]
        found.append(_escaped(line, "*_[]<>$~#"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(found)).strip() + "\n"


def _without_words(formula: str) -> str:
    """A line of a formula as it is read in any language: sums, maxima and integrals as signs."""
    formula = re.sub(
        r"\b(sum|max) over (\w(?:, \w)*) of ", lambda m: f"{SIGNS[m[1]]}_{m[2].replace(', ', '')} ", formula
    )
    return formula.replace("integral from 0 to x of ", "∫_0^x ")


def to_rst(lines: list[str]) -> list[str]:
    """The lines of any docstring. A formula, a piece of code or a table becomes a literal block."""
    found: list[str] = []
    for blank, group in itertools.groupby(lines, key=lambda line: not line.strip()):
        block = list(group)
        if blank:
            found.append("")
        elif _is_literal(block):
            extra = "" if block[0].startswith("    ") else "    "
            found += ["::", "", *(extra + line for line in block)]
        else:
            for number, line in enumerate(block):
                if number and _LIST.match(line) and not _LIST.match(block[0]):
                    found.append("")  # a list that follows a paragraph at once
                text = re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", line)
                found.append(_escaped(text, "*_|", ticks="``"))
    return [*found, ""]


def _is_literal(block: list[str]) -> bool:
    """Whether a block without blank lines is a table, or indented, or code, some of whose lines are."""
    indented = [line.startswith("    ") for line in block]
    return block[0].startswith("|") or indented[0] or (any(indented) and not _LIST.match(block[0]))


def _with_blank_ends(docstring: str) -> list[str]:
    return ["", *docstring.strip().splitlines(), ""]


def _in_code(lines: list[str], number: int, code_from: int) -> bool:
    """Whether a line that is indented far enough belongs to a block that follows a blank line."""
    while lines[number].strip() and len(lines[number]) - len(lines[number].lstrip()) >= code_from:
        number -= 1
    return not lines[number].strip()


def _escaped(line: str, characters: str, ticks: str = "`") -> str:
    """A line with the characters that would be markup escaped, but for what stands between backticks."""
    parts = line.split(ticks)
    pattern = re.compile(f"([{re.escape(characters)}])")
    return ticks.join(part if i % 2 else pattern.sub(r"\\\1", part) for i, part in enumerate(parts))
