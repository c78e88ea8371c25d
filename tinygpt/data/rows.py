"""Rows of data with named columns: JSON lines, CSV, TSV, each plain or compressed.

    for row in read_rows(["reviews.csv", "more.jsonl.gz"], columns=("text", "label")):
        row.values["text"], row.where            # "Loved it.", "reviews.csv, line 2"

    bad = BadRows()
    for row in read_rows("reviews.csv", skip_bad=bad): ...
    bad.count, bad.sentences                     # what was left out, and why

JSON lines: one object per line, with any JSON values. Lines end at a line feed only: U+2028 and similar characters may
occur in a JSON string unescaped, and readers that split there break good files. CSV and TSV: the first row names the
columns, and values are strings; a field in quotation marks may contain line breaks, and doubled quotation marks.

One row is in memory at a time, and rows of more than `LONGEST_ROW` characters are refused: a file that consists of a
single line is not a table.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import UsageError
from ..files import shown
from .opening import STDIN, check_encoding, decoded, described, opened, suffix

JSON_LINES = (".jsonl", ".ndjson", ".json")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*JSON_LINES, *DELIMITERS)
LONGEST_ROW = 1 << 26  # characters
_CHUNK = 1 << 18
_LINE_FEED = re.compile("\n")
_CONVERT = "`jq -c '.[]'` converts it"
_ANY_LINE_BREAK = re.compile(r"\r\n|\n|\r(?!\Z)")  # a \r at the end of a chunk may be half of \r\n


@dataclass(frozen=True)
class Row:
    """A row's values by column, and where it is: "reviews.csv, line 2", the line in which the row begins."""

    values: dict[str, Any]
    where: str


@dataclass
class BadRows:
    """Counts the rows that were skipped, and keeps a sentence about each of the first `keep`."""

    count: int = 0
    sentences: list[str] = field(default_factory=list)
    keep: int = 5

    def add(self, sentence: str) -> None:
        self.count += 1
        if len(self.sentences) < self.keep:
            self.sentences.append(sentence)


def read_rows(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    encoding: str = "utf-8",
    columns: Sequence[str] = (),
    skip_bad: BadRows | None = None,
    see: Callable[[bytes], object] | None = None,
) -> Iterator[Row]:
    """The rows of one or several files, in order. The kind of a file follows from its name; "-" is JSON lines.

    columns: those that every row must have. skip_bad: counts rows that can't be read, which are then skipped.
    see: called with the bytes of the files, chunk by chunk; a hash's `update`, for instance.
    Raises UsageError, with file and line, for a line that is not a JSON object, a row with too many or too few fields
    and a column that is missing; also, even with `skip_bad`, for a file that can't be read or decoded, or is not a
    table.
    """
    encoding = check_encoding(encoding)
    for path in [paths] if isinstance(paths, (str, os.PathLike)) else paths:
        yield from _rows_of(path, encoding, columns, skip_bad, see)


def _rows_of(
    path: str | os.PathLike[str],
    encoding: str,
    columns: Sequence[str],
    skip_bad: BadRows | None,
    see: Callable[[bytes], object] | None,
) -> Iterator[Row]:
    name, kind = shown(path) if os.fspath(path) != STDIN else described(path), suffix(path)
    json_lines = kind in JSON_LINES or os.fspath(path) == STDIN
    if not json_lines and kind not in DELIMITERS:
        raise UsageError(
            f"{name} is not a table that can be read: expected a name that ends in {', '.join(SUFFIXES)}, or in one of "
            "these and .gz, .xz or .zst"
        )

    def refuse(line: int, what: str) -> None:
        sentence = f"{name}, line {line}: {what}"
        if skip_bad is None:
            raise UsageError(sentence)
        skip_bad.add(sentence)

    with opened(path) as file:
        text = decoded(file, encoding, name, _CHUNK, see)
        if json_lines:
            found = _json_rows(_lines(text, _LINE_FEED, name), columns, refuse)
        else:
            found = _table_rows(_lines(text, _ANY_LINE_BREAK, name), DELIMITERS[kind], columns, refuse, name)
        for line, values in found:
            yield Row(values, f"{name}, line {line}")


def _lines(chunks: Iterable[str], line_break: re.Pattern[str], name: str) -> Iterator[str]:
    """The lines of a text with their ends, whatever the chunks it comes in."""
    held: list[str] = []  # a line that has not ended yet
    length, count = 0, 1
    for chunk in chunks:
        if held and held[-1].endswith("\r"):
            chunk = held.pop() + chunk
        position = 0
        for match in line_break.finditer(chunk):
            yield "".join([*held, chunk[position : match.end()]])
            held, length, count, position = [], 0, count + 1, match.end()
        held.append(chunk[position:])
        length += len(chunk) - position
        if length > LONGEST_ROW:
            raise _too_long(name, count)
    if rest := "".join(held):
        yield rest


def _too_long(name: str, line: int) -> UsageError:
    return UsageError(
        f"{name}, line {line}: the row has more than {LONGEST_ROW:,} characters: is it a table with one row per line, "
        "and is every quotation mark that opens a field closed?"
    )


# JSON lines -------------------------------------------------------------------------------------------

Refuse = Callable[[int, str], None]


def _json_rows(lines: Iterable[str], columns: Sequence[str], refuse: Refuse) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == 1 and line.lstrip()[:1] == "[":
                refuse(number, f"a JSON array begins here, not one object per line ({_CONVERT})")
            else:
                refuse(number, f"this is not JSON: {_reason(error)}")
            continue
        wrong = _wrong_values(values, line, columns)
        if wrong:
            refuse(number, wrong)
        else:
            yield number, values


def _wrong_values(values: Any, line: str, columns: Sequence[str]) -> str:
    """What is wrong with a line of JSON; empty if it is a row."""
    if not isinstance(values, dict):
        kind = {list: "an array", str: "a string", bool: "a truth value", type(None): "null"}
        objects = isinstance(values, list) and values and all(isinstance(value, dict) for value in values)
        hint = f": write one object per line ({_CONVERT})" if objects else ""
        return f"expected a JSON object with named columns, not {kind.get(type(values), 'a number')}{hint}"
    missing = [column for column in columns if column not in values]
    if missing:
        return _missing(missing, values)
    if "\\u" in line:  # an escape may be half of a surrogate pair, which no encoding can write
        try:
            json.dumps(values, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            return f"the escape \\u{ord(error.object[error.start]):04x} is half of a surrogate pair, not a character"
    return ""


def _missing(missing: Sequence[str], found: Iterable[str]) -> str:
    there = ", ".join(map(repr, found)) or "none"
    several = "s" if len(missing) > 1 else ""
    be = "are" if several else "is"
    return f"the column{several} {', '.join(map(repr, missing))} {be} missing; there is {there}"


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (character {error.pos + 1})"
    return "too deeply nested" if isinstance(error, RecursionError) else str(error).split(":")[0]


# CSV and TSV ------------------------------------------------------------------------------------------


def _table_rows(
    lines: Iterable[str], delimiter: str, columns: Sequence[str], refuse: Refuse, name: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    # The csv module's limit, 131,072 characters per field, is shared by the whole process, so it is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_ROW))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        names = next((row for row in reader if row), None)
    except csv.Error as error:
        raise UsageError(f"{name}, line {reader.line_num}: the names of the columns can't be read: {error}") from error
    names = [column.strip() for column in names or ()]  # "text, label" names the column label
    _check_names(names, columns, f"{name}, line {reader.line_num}", name)
    while True:
        begin = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            refuse(begin, _csv_reason(error, begin, reader.line_num))
            continue
        if row is None:
            return
        if len(row) == len(names):
            yield begin, dict(zip(names, row, strict=True))
        elif row:  # an empty line is not a row
            refuse(begin, f"expected {len(names)} fields, as many as columns ({', '.join(names)}), not {len(row)}")


def _check_names(names: list[str], columns: Sequence[str], where: str, name: str) -> None:
    """Raise UsageError where the first row doesn't name the columns."""
    if not names:
        raise UsageError(f"{name} is empty: expected the names of its columns in the first line")
    twice = sorted({column for column in names if names.count(column) > 1})
    if twice:
        raise UsageError(f"{where}: two columns have the name {twice[0]!r}: rename one")
    missing = [column for column in columns if column not in names]
    if missing:
        hint = separator_hint(names) or ": the first line must name the columns"
        raise UsageError(f"{where}: {_missing(missing, names)}{hint}")


def separator_hint(names: Sequence[str]) -> str:
    """What to do if the only column is a whole line, as the end of a sentence; nothing for any other table."""
    separator = next((one for one in ";\t|," if len(names) == 1 and one in names[0]), None)
    if separator is None:
        return ""
    return f": its fields seem to be separated by {separator!r}, but .csv has commas between them, and .tsv has tabs"


def _csv_reason(error: csv.Error, begin: int, end: int) -> str:
    if "unexpected end of data" in str(error):
        return f"a quotation mark opens a field that has not ended at the end of the file, in line {end}: close it"
    hint = ": a quotation mark inside a quoted field must be doubled" if "expected after" in str(error) else ""
    return f"this is not a row: {error}{f' (in line {end})' if end > begin else ''}{hint}"
