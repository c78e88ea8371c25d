"""Epochs: each window once in an epoch, in an order that follows from the seed alone; rows packed with documents."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.test_windows import END, TOKENS, documents, pairs
from tinygpt.data import DataLoader, RandomBatches, packing
from tinygpt.data.packing import PackedRows
from tinygpt.data.permutation import Permutation
from tinygpt.errors import UsageError


@settings(deadline=None)
@given(count=st.integers(1, 3000), seed=st.integers(0, 2**64 - 1), stream=st.integers(0, 2**64 - 1))
def test_a_permutation_has_each_number_once(count: int, seed: int, stream: int) -> None:
    found = Permutation(count, seed, stream)(np.arange(count))
    np.testing.assert_array_equal(np.sort(found), np.arange(count))
    place = stream % count
    assert Permutation(count, seed, stream)(np.array([place]))[0] == found[place]  # each place by itself


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 5, 16, 40])
def test_permutations_are_even(count: int) -> None:
    """Over many seeds every number stands at every place equally often: chi-squared within 5 standard deviations."""
    seeds = 60 * count
    found = np.array([Permutation(count, seed, 9)(np.arange(count)) for seed in range(seeds)])  # (S, N)
    for place in range(0, count, 1 + count // 7):
        counts = np.bincount(found[:, place], minlength=count)
        chi = ((counts - 60) ** 2 / 60).sum()
        assert chi < count - 1 + 5 * np.sqrt(2 * count), (place, counts)
    after = (found[:, 1:] == found[:, :-1] + 1).mean()  # neighbours stay neighbours as often as by chance
    assert abs(after - 1 / count) < 5 * np.sqrt(1 / count / (seeds * (count - 1)))


def test_a_permutation_of_billions() -> None:
    order = Permutation(5_000_000_011, 3, 4)
    places = np.random.default_rng(0).integers(0, 5_000_000_011, 1000)
    found = order(places)
    assert found.min() >= 0
    assert 1 << 32 < found.max() < 5_000_000_011
    assert len(np.unique(found)) == len(np.unique(places))
    with pytest.raises(UsageError, match="count must be at least 1"):
        Permutation(0, 3, 4)


# Windows of a plain text ----------------------------------------------------------------------------


@settings(deadline=None)
@given(length=st.integers(2, 90), block_size=st.integers(1, 9), batch_size=st.integers(1, 5), seed=st.integers(0, 99))
def test_each_window_once_an_epoch(length: int, block_size: int, batch_size: int, seed: int) -> None:
    text = np.arange(length, dtype=np.uint16)
    if length <= block_size:
        with pytest.raises(UsageError, match="needs at least"):
            DataLoader(text, batch_size, block_size)
        return
    loader = DataLoader(text, batch_size, block_size, seed)
    epochs = [list(loader.epoch(number)) for number in range(3)]
    for batches in epochs:
        assert len(batches) == len(loader)
        inputs, targets = (np.concatenate([batch[i] for batch in batches]) for i in (0, 1))
        assert inputs.shape == targets.shape == (loader.windows_per_epoch, block_size)
        np.testing.assert_array_equal(targets, inputs + 1)
        found = np.sort(targets, axis=None)  # one stretch of the text, but for less than a window at its ends
        np.testing.assert_array_equal(found, np.arange(found[0], found[0] + loader.target_count))
        assert length - 1 - len(found) < block_size
    # All epochs in a row, in full batches: the first windows of an epoch fill up the last batch of the one before.
    rows = np.concatenate([batch[0] for batches in epochs for batch in batches])
    whole = len(rows) // batch_size
    again = DataLoader(text, batch_size, block_size, seed)
    for index in reversed(range(whole)):  # a resumed run begins anywhere
        np.testing.assert_array_equal(again.batch(index)[0], rows[index * batch_size : (index + 1) * batch_size])


def test_orders_differ() -> None:
    text = np.arange(1001)  # of whole windows, so that the borders stay
    orders = [
        np.concatenate([batch[0][:, 0] for batch in DataLoader(text, 4, 10, seed).epoch(epoch)]).tolist()
        for seed, epoch in [(0, 0), (0, 1), (1, 0)]
    ]
    assert all(a != b for a, b in itertools.combinations(orders, 2))
    plain = DataLoader(text, 4, 10, shuffle=False)
    np.testing.assert_array_equal(next(plain.epoch(1))[0][:, 0], [0, 10, 20, 30])
    wrapped = DataLoader(text, 3, 10, shuffle=False).batch(33)
    np.testing.assert_array_equal(wrapped[0][:, 0], [990, 0, 10])


def test_the_borders_of_windows_move() -> None:
    starts = {int(min(batch[0].min() for batch in DataLoader(np.arange(1009), 9, 100).epoch(e))) for e in range(30)}
    assert starts == set(range(9))


# Documents ------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    tokens=TOKENS, block_size=st.integers(1, 7), batch_size=st.integers(1, 4), pack=st.booleans(),
    epoch=st.integers(0, 3), chunk=st.sampled_from([1, 2, 1000]),
)  # fmt: skip
def test_each_target_of_documents_once_an_epoch(
    tokens: list[int], block_size: int, batch_size: int, pack: bool, epoch: int, chunk: int
) -> None:
    wanted = Counter(pair for document in documents(tokens) for pair in pairs(document))
    if not wanted:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_CHUNK", chunk)
        loader = DataLoader(np.array(tokens, np.uint16), batch_size, block_size, 3, END, pack=pack)
    batches = list(loader.epoch(epoch))
    inputs, targets = (np.concatenate([batch[i] for batch in batches]) for i in (0, 1))
    assert inputs.shape == (loader.windows_per_epoch, block_size)
    real = targets != -100
    assert Counter(zip(inputs[real].tolist(), targets[real].tolist(), strict=True)) == wanted
    assert loader.target_count == real.sum()
    assert loader.padded == (not real.all())


def packed(tokens: list[int], block_size: int) -> list[list[int]]:
    """What the docstring says, the slow way: the documents' parts in order, as many in a row as fit."""
    rows: list[list[int]] = []
    room = 0
    for document in documents(tokens):
        targets = document[1:]
        for begin in range(0, len(targets), block_size):
            part = targets[begin : begin + block_size]
            if len(part) > room:
                rows.append([])
                room = block_size
            rows[-1] += part
            room -= len(part)
    return rows


@settings(deadline=None)
@given(
    tokens=st.lists(st.sampled_from([0, 1, 2, END]), min_size=2, max_size=60), block_size=st.integers(1, 9),
    chunk=st.sampled_from([1, 2, 1000]),
)  # fmt: skip
def test_rows_of_whole_documents(tokens: list[int], block_size: int, chunk: int) -> None:
    tokens = [token for token, after in itertools.zip_longest(tokens, tokens[1:]) if not token == after == END]
    if not documents(tokens):  # an empty document takes a place in a row, with a target that does not count
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_CHUNK", chunk)  # rows are the same however many windows are looked at together
        rows = PackedRows(np.array(tokens), END, block_size)
    inputs, targets = rows.sequential(np.arange(rows.count))
    found = [row[row != -100].tolist() for row in targets]
    assert found == packed(tokens, block_size)
    assert rows.wasted == rows.count * block_size - sum(map(len, found))
    assert (inputs[targets == -100] == 0).all()


def test_an_empty_document_in_a_row() -> None:
    rows = PackedRows(np.array([1, 2, END, END, 3, END]), END, 8)
    inputs, targets = rows.sequential(np.array([0]))
    assert inputs.tolist() == [[1, 2, END, END, 3, 0, 0, 0]]
    assert targets.tolist() == [[2, END, -100, 3, END, -100, -100, -100]]
    assert rows.wasted == 4


def test_packing_needs_fewer_rows_and_documents() -> None:
    generator = np.random.default_rng(2)
    text = np.concatenate([[*generator.integers(0, 9, generator.integers(3, 12)), END] for _ in range(300)])
    apart, together = (DataLoader(text, 4, 64, 0, END, pack=pack) for pack in (False, True))
    assert apart.windows_per_epoch == 300
    assert together.windows_per_epoch < 45
    drawn = RandomBatches(text, 40, 64, 0, END, pack=True).batch(3)
    rows: Any = together.windows.sequential(np.arange(together.windows_per_epoch))[0].tolist()  # type: ignore[union-attr]
    assert all(row in rows for row in drawn[0].tolist())
    assert len({tuple(row) for row in drawn[0].tolist()}) > 20
    for loader in (DataLoader, RandomBatches):
        with pytest.raises(UsageError, match=r"this text does not consist of documents .*: leave pack out"):
            loader(np.arange(100), 4, 8, pack=True)
