"""The .bin files of nanoGPT and llm.c: what is written is what is read, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygpt.data import open_tokens, split, token_bins
from tinygpt.data.token_bins import open_bin, write_bin, write_parts
from tinygpt.errors import CheckpointError, RangeError, UsageError


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 65535), min_size=1, max_size=20), chunk=st.integers(1, 30))
@pytest.mark.parametrize("format", ["nanogpt", "llm.c"])
def test_written_and_read(tmp_path_factory, format: str, ids: list[int], chunk: int) -> None:
    path = tmp_path_factory.mktemp("bin") / "train.bin"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_bins, "_CHUNK", chunk)
        write_bin(path, np.array(ids), format)
        tokens = open_bin(path, 65536)
    assert isinstance(tokens, np.memmap)
    assert tokens.dtype == np.uint16
    assert tokens.tolist() == ids
    if format == "nanogpt":  # as its train.py opens it
        assert np.memmap(path, dtype=np.uint16, mode="r").tolist() == ids
    else:  # as llm.c's dataloader.h reads it: 256 int32, then the tokens
        header = np.fromfile(path, np.int32, 256)
        assert header[:4].tolist() == [20240520, 1, len(ids), 0]
        assert np.fromfile(path, np.uint16, offset=1024).tolist() == ids


def test_large_vocabularies(tmp_path: Path) -> None:
    path, ids = tmp_path / "train.bin", np.array([0, 1 << 16, 128_000])
    write_bin(path, ids, "llm.c")
    assert np.fromfile(path, np.int32, 3).tolist() == [20240801, 7, 3]
    tokens = open_bin(path, 128_256)
    assert tokens.dtype == np.uint32
    assert tokens.tolist() == ids.tolist()
    with pytest.raises(RangeError, match="has the id 65536 at position 1, but a vocabulary of 65536 has"):
        write_bin(path, ids, "nanogpt")
    assert open_bin(path, 128_256).tolist() == ids.tolist()  # nothing was overwritten


def test_what_is_wrong_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_bins, "_CHUNK", 2)
    path = tmp_path / "train.bin"
    write_bin(path, np.array([1, 2, 3, 300]), "llm.c")
    content = path.read_bytes()
    with pytest.raises(
        RangeError, match=r"train\.bin has the id 300 at position 3, but a vocabulary of 300 has the ids"
    ):
        open_bin(path, 300)
    with pytest.raises(UsageError, match=r"must be given with --vocab-size: the file doesn't tell it"):
        open_bin(path, None)
    (tmp_path / "meta.pkl").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(
        UsageError, match=r"meta\.pkl next to it is a pickle, which could run anything, and is not read"
    ):
        open_bin(path, None)
    for damaged, words in (
        (content[:-2], r"its header says 4 tokens, which take 1032 bytes, and it has 1030"),
        (content + b"00", "and it has 1034"),
        (content[:4] + b"\2" + content[5:], "is llm.c's in version 2, but only version 1 is known"),
        (content[:8] + b"\0" + content[9:], "its header says 0 tokens"),
        (b"", "has 0 bytes, but an id takes 2"),
        (b"abc", "has 3 bytes"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=words):
            open_bin(path, 60_000)
    with pytest.raises(UsageError, match="cannot read"):
        open_bin(tmp_path / "absent.bin", 5)
    with pytest.raises(UsageError, match="there are no tokens to write"):
        write_bin(path, np.zeros(0, int), "llm.c")
    with pytest.raises(UsageError, match=r"must be one of nanogpt, llm\.c, not 'gguf'"):
        write_bin(path, np.zeros(1, int), "gguf")


def test_parts_become_a_token_file(tmp_path: Path) -> None:
    parts = [np.arange(5), np.array([9, 70_000])]
    write_parts(tmp_path / "t.npy", parts, 80_000, 0.1, 9)
    tokens = open_tokens(tmp_path / "t.npy")
    assert [part.tolist() for part in split(tokens, 0.1)] == [part.tolist() for part in parts]
    assert tokens.end_token == 9
    write_parts(tmp_path / "t.npy", parts[:1], 10, 0.1, 9)
    tokens = open_tokens(tmp_path / "t.npy")
    assert (tokens.division, tokens.end_token, tokens.dtype) == (None, 9, np.uint16)
    write_parts(tmp_path / "t.npy", parts[:1], 10, 0.1)
    assert open_tokens(tmp_path / "t.npy").end_token is None
