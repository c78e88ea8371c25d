"""Windows of documents: each target once, in its own document, with the end tokens around it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygpt.data import RandomBatches, SequentialBatches
from tinygpt.data.windows import DocumentWindows
from tinygpt.errors import UsageError

END = 9
# Documents of any length, empty ones too, with or without an end token at either end of the text.
TOKENS = st.lists(st.sampled_from([0, 1, 2, 3, END]), min_size=2, max_size=60)


def documents(tokens: list[int]) -> list[list[int]]:
    """What the docstring says, the slow way: what stands between end tokens, with those on both sides."""
    found: list[list[int]] = [[]]
    for token in tokens:
        found[-1].append(token)
        if token == END:
            found.append([END])
    return [document for document in found if len(document) > 1 and document != [END, END]]


def pairs(document: list[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise(document))


@settings(deadline=None)
@given(tokens=TOKENS, block_size=st.integers(1, 7), batch_size=st.integers(1, 4), kind=st.sampled_from(["<u2", "<u4"]))
def test_each_target_once(tokens: list[int], block_size: int, batch_size: int, kind: str) -> None:
    wanted = [pair for document in documents(tokens) for pair in pairs(document)]
    array = np.array(tokens, kind)
    if not wanted:
        with pytest.raises(UsageError, match="no document"):
            SequentialBatches(array, batch_size, block_size, END)
        return
    batches = SequentialBatches(array, batch_size, block_size, END)
    found = list(batches)
    assert len(found) == len(batches)
    for inputs, targets in found:
        assert inputs.shape == targets.shape == (batch_size, block_size)
        assert inputs.dtype == targets.dtype == np.int64
        assert (inputs[targets == -100] == 0).all()
        assert (np.diff((targets == -100).astype(int), axis=1) >= 0).all()  # padding stands on the right
    inputs, targets = (np.concatenate([batch[i].reshape(-1) for batch in found]) for i in (0, 1))
    real = targets != -100
    assert list(zip(inputs[real], targets[real], strict=True)) == wanted
    assert batches.target_count == len(wanted) == real.sum()


@settings(deadline=None)
@given(tokens=TOKENS, block_size=st.integers(1, 7), seed=st.integers(0, 99))
def test_random_windows_stay_in_their_document(tokens: list[int], block_size: int, seed: int) -> None:
    there = documents(tokens)
    if not there:
        return
    batches = RandomBatches(np.array(tokens), 6, block_size, seed, END)
    inputs, targets = batches.batch(3)
    for row, wanted in zip(inputs, targets, strict=True):
        count = int((wanted != -100).sum())
        text = [*row[:count], wanted[count - 1]]
        inside = [d for d in there if any(d[i : i + count + 1] == text for i in range(len(d) - count))]
        assert inside
        assert count == block_size or any(len(document) == count + 1 for document in inside)  # a short one whole
        assert list(wanted[: count - 1]) == list(row[1:count])
    assert batches.padded == any(len(document) <= block_size for document in there)
    again = RandomBatches(np.array(tokens), 6, block_size, seed, END)
    again.batch(7)
    np.testing.assert_array_equal(again.batch(3)[0], inputs)


def test_every_place_is_drawn_evenly() -> None:
    """A document of 8 targets has two windows of 4 and twice the draws of one with 3, at every place."""
    tokens = np.array([0, 1, 2, END, *range(10, 17), END])  # the first document is [0, 1, 2, END]
    batches = RandomBatches(tokens, 50, 4, 0, END)
    firsts = np.concatenate([batches.batch(step)[0][:, 0] for step in range(120)])
    counts = {int(token): int((firsts == token).sum()) for token in np.unique(firsts)}
    assert counts.keys() == {0, END, 10, 11, 12, 13}
    expected = {0: 2000.0} | dict.fromkeys((END, 10, 11, 12, 13), 800.0)
    assert sum((counts[token] - number) ** 2 / number for token, number in expected.items()) < 5 + 5 * 3.2


def test_chunks_of_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.array([END, 1, END, 2, 3, END, 4] * 20)
    whole = DocumentWindows(tokens, END, 2)
    monkeypatch.setattr("tinygpt.data.windows._CHUNK", 3)
    np.testing.assert_array_equal(DocumentWindows(tokens, END, 2).edges, whole.edges)
    assert whole.edges.dtype == np.uint32


def test_a_text_without_a_document() -> None:
    for tokens in ([END, END], [END], [], [1]):
        with pytest.raises(UsageError, match="no document"):
            RandomBatches(np.array(tokens, np.int64), 1, 1, 0, END)
