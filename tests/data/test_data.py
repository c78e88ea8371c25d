"""From text to batches: what is written is what is read, and every target comes once."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygpt.data.tokens
from tinygpt.data import (
    RandomBatches,
    SequentialBatches,
    open_tokens,
    read_text,
    split,
    write_tokens,
)
from tinygpt.errors import CheckpointError, RangeError, UsageError
from tinygpt.tokenizers import ByteTokenizer, CharTokenizer, UnknownCharacterError

TEXT = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("abé€𝄞 \n\r")), min_size=1)


def write_bytes(folder: Path, content: bytes) -> Path:
    path = folder / "text.txt"
    path.write_bytes(content)
    return path


# --- text -> token file -------------------------------------------------------------------------------


@settings(deadline=None)
@given(text=TEXT, chunk=st.integers(1, 9))
def test_any_text_in_any_chunks(tmp_path_factory, text: str, chunk: int) -> None:
    """Characters cut by the edge of a chunk, every kind of line break: the text is kept as it is."""
    path = write_bytes(tmp_path_factory.mktemp("text"), text.encode("utf-8"))
    assert "".join(read_text(path, chunk)) == text.removeprefix("\ufeff")


@settings(deadline=None)
@given(text=TEXT.filter(lambda text: not text.startswith("\ufeff")))
def test_token_file_round_trip(tmp_path_factory, text: str) -> None:
    folder = tmp_path_factory.mktemp("text")
    path = write_bytes(folder, text.encode("utf-8"))
    for tokenizer in (ByteTokenizer(), CharTokenizer.from_text(read_text(path))):
        count = write_tokens(path, tokenizer, folder / "tokens.npy")
        tokens = open_tokens(folder / "tokens.npy")
        assert isinstance(tokens, np.memmap)
        assert not tokens.flags.writeable
        assert tokens.dtype == np.uint16
        assert tokens.shape == (count,)
        assert tokenizer.decode(tokens) == text
        np.testing.assert_array_equal(np.load(folder / "tokens.npy", allow_pickle=False), tokens)
        write_tokens(iter(text), tokenizer, folder / "pieces.npy")
        np.testing.assert_array_equal(open_tokens(folder / "pieces.npy"), tokens)


def test_long_text_comes_in_pieces(tmp_path: Path) -> None:
    """Lengths of all numbers of digits: the header is written twice and must not grow."""
    tokenizer = CharTokenizer("ab\n")
    line = "abab\n"
    for repeats in (1, 20, 2_000, 300_000):
        path = write_bytes(tmp_path, (line * repeats).encode())
        pieces = list(read_text(path))
        assert max(map(len, pieces)) <= 2 * tinygpt.data.tokens.CHUNK_BYTES
        assert all(piece.endswith("b") for piece in pieces[:-1])  # cut at the end of a line
        assert write_tokens(path, tokenizer, tmp_path / "tokens.npy") == 5 * repeats
        tokens = open_tokens(tmp_path / "tokens.npy")
        assert (tokens.reshape(-1, 5) == tokenizer.encode(line)).all()


def test_large_vocabularies_take_32_bits(tmp_path: Path) -> None:
    characters = "".join(map(chr, range(0x10000, 0x10000 + (1 << 16) + 1)))
    for size, dtype in (1 << 16, np.uint16), ((1 << 16) + 1, np.uint32):
        tokenizer = CharTokenizer(characters[:size])
        write_tokens([characters[:size]], tokenizer, tmp_path / "tokens.npy")
        tokens = open_tokens(tmp_path / "tokens.npy")
        assert tokens.dtype == dtype
        np.testing.assert_array_equal(tokens, np.arange(size))


def test_byte_order_mark_and_line_breaks(tmp_path: Path) -> None:
    path = write_bytes(tmp_path, b"\xef\xbb\xbfa\r\nb\rc\n\xef\xbb\xbf")
    assert "".join(read_text(path, 1)) == "a\r\nb\rc\n\ufeff"


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_an_empty_text_is_refused(tmp_path: Path, content: bytes) -> None:
    path = write_bytes(tmp_path, content)
    with pytest.raises(UsageError, match=r"the file .*text\.txt is empty"):
        write_tokens(path, ByteTokenizer(), tmp_path / "tokens.npy")
    with pytest.raises(UsageError, match="the text is empty"):
        write_tokens([], ByteTokenizer(), tmp_path / "tokens.npy")
    assert [p.name for p in tmp_path.iterdir()] == ["text.txt"]


@settings(deadline=None)
@given(text=st.text(max_size=20), chunk=st.integers(1, 30))
def test_bad_utf8_is_found_at_its_byte(tmp_path_factory, text: str, chunk: int) -> None:
    good = text.encode("utf-8")
    path = write_bytes(tmp_path_factory.mktemp("text"), good + b"\xff" + good)
    with pytest.raises(UsageError, match=rf"text\.txt is not UTF-8 text: byte {len(good)} \(0xff\)"):
        list(read_text(path, chunk))


def test_utf8_cut_off_at_the_end(tmp_path: Path) -> None:
    path = write_bytes(tmp_path, "abc€".encode()[:-1])
    with pytest.raises(UsageError, match=r"byte 3 \(0xe2\) .*unexpected end of data"):
        list(read_text(path, 2))


def test_unknown_character_is_found_in_the_whole_file(tmp_path: Path) -> None:
    path = write_bytes(tmp_path, "abababé".encode())
    (tmp_path / "tokens.npy").write_bytes(b"old")
    tokenizer = CharTokenizer("ab")
    with pytest.raises(UnknownCharacterError, match=r"at position 6 of the file .*text\.txt"):
        write_tokens(path, tokenizer, tmp_path / "tokens.npy")
    with pytest.raises(UnknownCharacterError, match="at position 6 of the text"):
        write_tokens(["aba", "babé"], tokenizer, tmp_path / "tokens.npy")
    assert (tmp_path / "tokens.npy").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2


def test_files_that_are_not_there(tmp_path: Path) -> None:
    path = write_bytes(tmp_path, b"text")
    with pytest.raises(UsageError, match=r"cannot read .*absent\.txt: No such file"):
        write_tokens(tmp_path / "absent.txt", ByteTokenizer(), tmp_path / "tokens.npy")
    with pytest.raises(UsageError, match="cannot read"):
        list(read_text(tmp_path))
    with pytest.raises(UsageError, match=r"cannot write .*tokens\.npy: No such file"):
        write_tokens(path, ByteTokenizer(), tmp_path / "absent" / "tokens.npy")
    with pytest.raises(UsageError, match=r"cannot read .*tokens\.npy: No such file"):
        open_tokens(tmp_path / "tokens.npy")


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_bytes(tmp_path, b"text")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"cannot write .*tokens\.npy: No space left on device"):
        write_tokens(path, ByteTokenizer(), tmp_path / "tokens.npy")
    assert [p.name for p in tmp_path.iterdir()] == ["text.txt"]


def test_damaged_token_files(tmp_path: Path) -> None:
    path = tmp_path / "tokens.npy"
    write_tokens(["some text"], ByteTokenizer(), path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="damaged or cut short"):
            open_tokens(path)
    path.write_bytes(b"x" * len(content))
    with pytest.raises(CheckpointError, match="damaged"):
        open_tokens(path)
    rng = np.random.default_rng(0)
    for _ in range(300):  # any byte of the header: a sentence or a file that still opens, never a crash
        damaged = bytearray(content)
        damaged[rng.integers(128)] = rng.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(CheckpointError):
            open_tokens(path)


@pytest.mark.parametrize("array", [np.zeros((2, 2), np.uint16), np.zeros(3), np.array([None])])
def test_other_arrays_are_no_token_files(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "tokens.npy", array, allow_pickle=True)
    with pytest.raises(CheckpointError, match=r"not a token file|damaged"):
        open_tokens(tmp_path / "tokens.npy")


# --- split and batches --------------------------------------------------------------------------------


def test_split_gives_views() -> None:
    tokens = np.arange(1_115_394)
    train, validation = split(tokens)
    assert len(train) == int(0.9 * len(tokens))
    assert train.base is tokens
    assert validation.base is tokens
    np.testing.assert_array_equal(np.concatenate([train, validation]), tokens)
    assert [len(part) for part in split(tokens[:10], 0.0)] == [10, 0]
    assert [len(part) for part in split(tokens[:1])] == [0, 1]
    assert [len(part) for part in split([], 0.5)] == [0, 0]


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_split_refuses(fraction: float) -> None:
    with pytest.raises(RangeError, match="at least 0 and less than 1"):
        split(np.arange(10), fraction)


@settings(deadline=None)
@given(data=st.data(), batch_size=st.integers(1, 5), block_size=st.integers(1, 7))
def test_sequential_batches_cover_every_target_once(data: st.DataObject, batch_size: int, block_size: int) -> None:
    tokens = np.arange(100, 100 + data.draw(st.integers(block_size + 1, 90)), dtype=np.uint16)
    batches = SequentialBatches(tokens, batch_size, block_size)
    pairs = list(batches)
    assert len(pairs) == len(batches)
    for inputs, targets in pairs:
        assert inputs.shape == targets.shape == (batch_size, block_size)
        assert inputs.dtype == targets.dtype == np.int64
        real = targets != -100
        assert real.any()
        np.testing.assert_array_equal(targets[real], inputs[real] + 1)  # as the tokens count upwards
        assert (inputs[~real] == 0).all()
    targets = np.concatenate([targets.reshape(-1) for _, targets in pairs])
    np.testing.assert_array_equal(targets[targets != -100], tokens[1:])
    assert (targets != -100).sum() == batches.target_count
    for (a, b), (c, d) in zip(pairs, batches, strict=True):  # a second pass is the same
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, d)


@settings(deadline=None)
@given(
    length=st.integers(2, 200),
    batch_size=st.integers(1, 5),
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**63 - 1),
    data=st.data(),
)
def test_random_batches_depend_on_seed_and_step_alone(
    length: int, batch_size: int, seed: int, step: int, data: st.DataObject
) -> None:
    block_size = data.draw(st.integers(1, length - 1))
    tokens = np.arange(length, dtype=np.uint16)
    batches = RandomBatches(tokens, batch_size, block_size, seed)
    inputs, targets = batches.batch(step)
    assert inputs.shape == targets.shape == (batch_size, block_size)
    assert inputs.dtype == targets.dtype == np.int64
    np.testing.assert_array_equal(targets, inputs + 1)
    np.testing.assert_array_equal(inputs, inputs[:, :1] + np.arange(block_size))
    batches.batch(data.draw(st.integers(0, 2**63 - 1)))  # another batch in between changes nothing
    for again in (batches, RandomBatches(tokens, batch_size, block_size, seed)):
        for expected, found in zip((inputs, targets), again.batch(step), strict=True):
            np.testing.assert_array_equal(found, expected)
    inputs[:] = 0  # the caller's own to write to
    assert tokens.tolist() == list(range(length))


def test_random_batches_reach_every_place_evenly() -> None:
    batches = RandomBatches(np.arange(13), batch_size=50, block_size=4, seed=0)
    starts = np.concatenate([batches.batch(step)[0][:, 0] for step in range(100)])
    counts = np.bincount(starts, minlength=9)
    assert len(counts) == 9  # starts 0 .. 8: the last window's last target is the last token
    assert ((counts - 5000 / 9) ** 2 / (5000 / 9)).sum() < 8 + 5 * 4


def test_seeds_and_steps_give_other_batches() -> None:
    tokens = np.arange(10_000)
    found = {RandomBatches(tokens, 4, 8, seed).batch(step)[0].tobytes() for seed in range(5) for step in range(20)}
    assert len(found) == 100


def test_batches_of_a_memory_map_are_arrays(tmp_path: Path) -> None:
    write_tokens(["abcdefgh" * 10], ByteTokenizer(), tmp_path / "tokens.npy")
    train, validation = split(open_tokens(tmp_path / "tokens.npy"), 0.25)
    assert isinstance(train, np.memmap)
    for inputs, targets in (
        RandomBatches(train, 2, 4).batch(0),
        SequentialBatches(validation, 2, 4).batch(0),
    ):
        assert type(inputs) is type(targets) is np.ndarray
        assert inputs.flags.c_contiguous
        assert targets.flags.c_contiguous


@pytest.mark.parametrize("kind", [RandomBatches, SequentialBatches])
def test_batches_refuse(kind: type) -> None:
    tokens = np.arange(8)
    kind(tokens, 1, 7)
    with pytest.raises(UsageError, match="8 tokens, but block_size 8 needs at least 9"):
        kind(tokens, 1, 8)
    with pytest.raises(UsageError, match="0 tokens"):
        kind([], 1, 1)
    with pytest.raises(UsageError, match="batch_size must be at least 1, not 0"):
        kind(tokens, 0, 4)
    with pytest.raises(UsageError, match="block_size must be at least 1, not -1"):
        kind(tokens, 1, -1)
    with pytest.raises(UsageError, match=r"block_size must be a whole number, not 2\.5"):
        kind(tokens, 1, 2.5)
    with pytest.raises(UsageError, match=r"shape \(N,\), not int64 \(2, 4\)"):
        kind(tokens.reshape(2, 4), 1, 1)
    with pytest.raises(UsageError, match=r"integers of shape \(N,\), not float64"):
        kind(tokens * 1.0, 1, 1)


def test_numbers_of_batches_refuse() -> None:
    tokens = np.arange(8)
    with pytest.raises(UsageError, match="step must be at least 0"):
        RandomBatches(tokens, 1, 4).batch(-1)
    with pytest.raises(UsageError, match="step must be a whole number"):
        RandomBatches(tokens, 1, 4).batch(1.0)
    with pytest.raises(UsageError, match=r"must be in 0 \.\. 1, not 2"):
        SequentialBatches(tokens, 1, 4).batch(2)
    with pytest.raises(UsageError, match="seed is an integer"):
        RandomBatches(tokens, 1, 4, seed=-1)
