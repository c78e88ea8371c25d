"""Rows of tables: what is written is what is read, and what is no row is named with its line."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygpt.data.rows
from tinygpt.data import BadRows, Row, read_rows
from tinygpt.errors import UsageError

# Every kind of line break, in quotes and in JSON's strings; all that either format has a meaning for.
FIELD = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from('a",;\t\n\r\u2028\u0085\\{} é中')), max_size=8)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(path: Path, *columns: str, encoding: str = "utf-8") -> list[tuple[dict[str, object], str]]:
    return [(row.values, row.where.rpartition(", ")[2]) for row in read_rows(path, encoding, columns)]


@settings(deadline=None)
@given(table=st.lists(st.tuples(FIELD, FIELD), max_size=5), chunk=st.integers(1, 30))
@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl"])
def test_any_table_in_any_chunks(tmp_path_factory, kind: str, table: list[tuple[str, str]], chunk: int) -> None:
    buffer = io.StringIO(newline="")
    if kind == ".jsonl":
        buffer.write("".join(json.dumps({"a": a, "b": b}, ensure_ascii=False) + "\n" for a, b in table))
    else:
        writer = csv.writer(buffer, delimiter="," if kind == ".csv" else "\t")
        writer.writerows([("a", "b"), *table])
    path = write(tmp_path_factory.mktemp("table"), f"t{kind}", buffer.getvalue())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tinygpt.data.rows, "_CHUNK", chunk)
        assert [row.values for row in read_rows(path)] == [{"a": a, "b": b} for a, b in table]


@pytest.mark.parametrize("chunk", [1, 7, 1 << 18])
def test_lines_are_those_where_rows_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(tinygpt.data.rows, "_CHUNK", chunk)
    path = write(tmp_path, "t.csv", b'\xef\xbb\xbftext,label\r\n"a ""q""\nb, c",1\r\n\r\nx,2\ry,3\r')
    assert rows(path, "label", "text") == [
        ({"text": 'a "q"\nb, c', "label": "1"}, "line 2"),
        ({"text": "x", "label": "2"}, "line 5"),
        ({"text": "y", "label": "3"}, "line 6"),
    ]
    path = write(tmp_path, "t.jsonl", '{"text": "a\u2028b"}\r\n\n  \n{"text": [1, null], "more": 2}')
    assert rows(path, "text") == [({"text": "a\u2028b"}, "line 1"), ({"text": [1, None], "more": 2}, "line 4")]


def test_several_files_and_their_names(tmp_path: Path) -> None:
    first = write(tmp_path, "a.CSV", "text\nx\n")
    second = write(tmp_path, "b.tsv.gz", gzip.compress(b"text\tn\ny,z\t1\n"))
    third = write(tmp_path, "c.json", '{"text": "中"}'.encode("gb18030"))
    assert list(read_rows([str(first), second])) == [
        Row({"text": "x"}, f"{first}, line 2"), Row({"text": "y,z", "n": "1"}, f"{second}, line 2"),
    ]  # fmt: skip
    assert rows(third, encoding="gb18030") == [({"text": "中"}, "line 1")]


def test_the_standard_input_is_json_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('{"text": "é"}\n'))
    assert list(read_rows("-")) == [Row({"text": "é"}, "the standard input, line 1")]


def test_a_field_of_any_length(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", "text,n\n" + '"' + "x" * 200_000 + '",1\n')  # the csv module's limit is 131,072
    assert len(rows(path)[0][0]["text"]) == 200_000


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.jsonl", '{"text": 1}\nnone\n', r"t\.jsonl, line 2: this is not JSON: Expecting value \(character 1\)"),
        ("t.jsonl", '\n{"text": "a', r"line 2: this is not JSON: Unterminated string .*\(character 10\)"),
        ("t.jsonl", '{"text": "a\tb"}', "line 1: this is not JSON: Invalid control character"),
        ("t.jsonl", '{"text": ' + "[" * 100_000, "line 1: this is not JSON: too deeply nested"),
        ("t.jsonl", '{"text": ' + "1" * 5000 + "}", "line 1: this is not JSON: Exceeds the limit"),
        ("t.jsonl", '["text"]', "line 1: expected a JSON object with named columns, not an array"),
        ("t.jsonl", '[\n{"text": 1}\n]', r"line 1: a JSON array begins here, not one object per line"),
        ("t.jsonl", "true", "line 1: expected a JSON object .* not a truth value"),
        ("t.jsonl", '{"txt": 1, "b": 2}', "line 1: the column 'text' is missing; there is 'txt', 'b'"),
        ("t.jsonl", "{}", "line 1: the column 'text' is missing; there is none"),
        ("t.jsonl", '{"text": "a \\udc80"}', r"line 1: the escape \\udc80 is half of a surrogate pair"),
        ("t.csv", "text,n\na,1\nb\n", r"t\.csv, line 3: expected 2 fields, as many as columns \(text, n\), not 1"),
        ("t.csv", "text,n\na,1,\n", "line 2: expected 2 fields, .* not 3"),
        ("t.csv", 'text,n\na,1\n"b,1\nc,1\n', "line 3: a quotation mark opens a field that has not ended .* in line 4"),
        ("t.csv", 'text,n\n"a"b,1\n', "line 2: this is not a row: ',' expected after '\"'"),
    ],
)
def test_bad_rows(tmp_path: Path, name: str, content: str, words: str) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(UsageError, match=words) as caught:
        rows(path, "text")
    bad = BadRows()
    list(read_rows(path, columns=["text"], skip_bad=bad))
    assert bad.sentences[0] == str(caught.value)


def test_bad_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    bad = BadRows(keep=2)
    found = [
        row.values["text"]
        for row in read_rows(
            [
                write(tmp_path, "t.jsonl", '{"text": "a"}\n?\n{"text": "b"}\n{}\n'),
                write(tmp_path, "t.csv", 'text,n\nc\n"d"d,1\ne,1\n'),
            ],
            columns=["text"],
            skip_bad=bad,
        )
    ]
    assert found == ["a", "b", "e"]
    assert bad.count == 4
    assert len(bad.sentences) == 2
    assert "t.jsonl, line 4" in bad.sentences[1]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", "", r"t\.csv is empty: expected the names of its columns"),
        ("t.csv", "\r\n\r\n", r"t\.csv is empty"),
        ("t.csv", "\na,a\n", r"t\.csv, line 2: two columns have the name 'a'"),
        ("t.tsv", "text,n\n", r"t\.tsv, line 1: the column 'text' is missing; there is 'text,n': .* separated by ','"),
        ("t.csv", "text;n\n", r"there is 'text;n': its fields seem to be separated by ';', but \.csv has commas"),
        ("t.csv", "text\tn\n", r"there is 'text\\tn': its fields seem to be separated by '\\t', but \.csv has"),
        ("t.csv", "good film,pos\n", r"there is 'good film', 'pos': the first line must name the columns"),
        ("t.csv", '"text', "line 1: the names of the columns can't be read"),
        ("t.txt", "a", r"t\.txt is not a table that can be read: expected a name that ends in \.jsonl"),
        ("t.csv", b"text\nab\n\xff\n", r"t\.csv is not UTF-8 text: byte 8 \(0xff\) in line 3 is invalid"),
        ("t.csv.gz", b"text\n", r"t\.csv\.gz is damaged or cut short"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    path = write(tmp_path, name, content)
    for skip_bad in (None, BadRows()):
        with pytest.raises(UsageError, match=words):
            list(read_rows(path, columns=["text"], skip_bad=skip_bad))
    with pytest.raises(UsageError, match=r"cannot read .*absent\.csv: No such file"):
        list(read_rows(tmp_path / "absent.csv"))
    with pytest.raises(UsageError, match="there is no encoding 'base64'"):
        list(read_rows(path, encoding="base64"))


def test_blanks_around_the_name_of_a_column_are_no_part_of_it(tmp_path: Path) -> None:
    (row,) = read_rows(write(tmp_path, "t.csv", "text, label \n a ,b\n"), columns=["text", "label"])
    assert row.values == {"text": " a ", "label": "b"}
    with pytest.raises(UsageError, match="two columns have the name 'text'"):
        list(read_rows(write(tmp_path, "t.csv", "text, text\n")))


@pytest.mark.parametrize("content", ['[{"text": "a"}, {"text": "b"}]', '[\n{"text": "a"}\n]'])
def test_a_json_array_of_objects_is_told_from_json_lines(tmp_path: Path, content: str) -> None:
    with pytest.raises(UsageError, match=r"line 1: .*one object per line \(`jq -c '\.\[\]'` converts it\)"):
        list(read_rows(write(tmp_path, "t.json", content)))


@pytest.mark.parametrize(("name", "content"), [("t.jsonl", '"' + "x" * 99), ("t.csv", 'text\n"' + "x\n" * 99)])
def test_a_row_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str
) -> None:
    monkeypatch.setattr(tinygpt.data.rows, "LONGEST_ROW", 50)
    monkeypatch.setattr(tinygpt.data.rows, "_CHUNK", 10)
    words = (
        "line 1: the row has more than 50 characters"
        if name == "t.jsonl"
        else "line 2: this is not a row: field larger"
    )
    limit = csv.field_size_limit(10)
    try:
        with pytest.raises(UsageError, match=words):
            list(read_rows(write(tmp_path, name, content)))
    finally:
        csv.field_size_limit(limit)
