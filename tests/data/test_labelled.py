"""Rows with labels become token ids and numbers; what can't is named with its line."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest

from tinygpt import UsageError
from tinygpt.data import Row
from tinygpt.data.labelled import LabelledExamples, collate_labelled, label_names
from tinygpt.tokenizers import ByteTokenizer, CharTokenizer


def row(text: Any = "ab", label: Any = "pos") -> Row:
    return Row({"text": text, "label": label}, "r.csv, line 7")


def maker(names: Any = ("neg", "pos"), kind: str = "single", **options: Any) -> LabelledExamples:
    return LabelledExamples(ByteTokenizer(), 4, names, kind, **options)


def test_names_come_in_the_order_of_numbers_or_of_the_alphabet() -> None:
    assert label_names([row(label=x) for x in ("pos", "neg", "pos")]) == ["neg", "pos"]
    assert label_names([row(label=x) for x in (10, 2, "2", 2.0, -1)]) == ["-1", "2", "10"]
    assert label_names([row(label=x) for x in (True, False)]) == ["false", "true"]
    assert label_names([row(label=x) for x in ("--1", "1", "-")]) == ["-", "--1", "1"]
    for order in permutations(["1", "01", "001", "0001"]):  # the same number: in one order all the same
        assert label_names([row(label=x) for x in order]) == ["0001", "001", "01", "1"]
    for rows, there in (([], "none"), ([row()], "only 'pos'")):
        with pytest.raises(UsageError, match=f"at least two labels in the column 'label'; there is {there}"):
            label_names(rows)


def test_examples() -> None:
    example = maker().make(row("abcdef", " pos "))
    assert (example.ids.tolist(), example.label, example.key, example.truncated) == (
        [97, 98, 99, 100],
        1,
        "abcdef",
        True,
    )
    assert not maker().make(row("abcd")).truncated
    assert maker(["0", "1"]).make(row(label=1)).label == 1
    assert maker(["LABEL_0", "LABEL_1"]).make(row(label="1")).label == 1
    assert maker(["LABEL_0", "LABEL_1"]).make(row(label="LABEL_0")).label == 0
    assert maker([], "number").make(row(label="-1.5")).label == -1.5
    assert maker(["a", "b", "c"], "multi").make(row(label=["c", "a"])).label.tolist() == [1, 0, 1]
    assert maker(["a", "b", "c"], "multi").make(row(label="b|c")).label.tolist() == [0, 1, 1]
    assert maker(["a", "b", "c"], "multi").make(row(label=[])).label.tolist() == [0, 0, 0]
    assert maker(labelled=False).make(Row({"text": "a"}, "")).label is None


def test_a_batch_is_padded_on_the_right() -> None:
    make = maker().make
    ids, labels, lengths = collate_labelled([make(row("ab", "pos")), make(row("abcd", "neg")), make(row("c", "pos"))])
    assert ids.tolist() == [[97, 98, 0, 0], [97, 98, 99, 100], [99, 0, 0, 0]]
    assert labels.tolist() == [1, 0, 1]
    assert labels.dtype.kind == "i"
    assert lengths.tolist() == [2, 4, 1]
    numbers = maker([], "number").make
    assert collate_labelled([numbers(row(label=1)), numbers(row(label=0.5))])[1].dtype == np.float64
    several = maker(["a", "b"], "multi").make
    assert collate_labelled([several(row(label="a")), several(row(label="b"))])[1].tolist() == [[1, 0], [0, 1]]


REFUSED: list[tuple[Any, str]] = [
    (lambda: maker().make(row(label="good")), "line 7: the label 'good' is not one of the model's 2: 'neg', 'pos'"),
    (lambda: maker().make(row(label="")), "line 7: the column 'label' is empty"),
    (lambda: maker().make(row(label=None)), "line 7: the column 'label' is missing"),
    (lambda: maker().make(row(label=0.5)), "line 7: a label must be a text or a whole number, not 0.5"),
    (lambda: maker().make(row(label={"a": 1})), "line 7: a label must be a text or a whole number"),
    (lambda: maker().make(row("  ")), "line 7: the column 'text' is empty"),
    (lambda: maker().make(row(None)), "line 7: the column 'text' is missing"),
    (lambda: maker().make(row(3)), "line 7: the column 'text' is a number, not text"),
    (lambda: maker([], "number").make(row(label="good")), "line 7: the label of a regression must be a number"),
    (lambda: maker([], "number").make(row(label="nan")), "line 7: the label of a regression must be a number"),
    (lambda: maker([], "number").make(row(label=True)), "line 7: the label of a regression must be a number"),
    (
        lambda: LabelledExamples(CharTokenizer("ab"), 4, ["x", "y"]).make(row("abz", "x")),
        "line 7: the character 'z' is not in the model's vocabulary",
    ),
]


@pytest.mark.parametrize(("call", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_a_mistake_is_named_with_its_line(call: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        call()
