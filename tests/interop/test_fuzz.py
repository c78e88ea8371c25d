"""Fuzzing the loaders: whatever the files hold, the outcome is a model or one sentence.

A crash of the interpreter would end the tests; a memory that a file merely claims would show as MemoryError; and any
exception but a UsageError (CheckpointError is one) fails.
"""

from __future__ import annotations

import contextlib
import json
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.interop.helpers import CONFIG, GENERATION, INDEX, WEIGHTS, make, saved
from tinygpt import GPT, UsageError
from tinygpt.errors import CheckpointError
from tinygpt.training import CheckpointFolder, read_checkpoint

from tests.training.storage.test_checkpoint import sample  # isort: skip

many = settings(max_examples=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in one file; the other files of `sharded` are beside it in a folder of their own."""
    return saved(tmp_path_factory.mktemp("fuzz") / "one")


@pytest.fixture(scope="module")
def sharded(folder: Path) -> Path:
    return saved(folder.parent / "many", max_shard_size=2000)


@contextlib.contextmanager
def replaced(path: Path, content: bytes) -> Iterator[None]:
    old = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(old)


def loads_or_says_why(folder: Path) -> bool:
    """Whether it is a model; if not, there is a sentence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # dropouts that differ
        try:
            GPT.from_pretrained(folder)
        except UsageError:
            return False
    return True


# Bytes ------------------------------------------------------------------------------------------------

edits = st.lists(
    st.tuples(st.sampled_from(["flip", "set", "cut", "insert", "drop"]), st.floats(0, 1), st.binary(max_size=9)),
    min_size=1, max_size=4,
)  # fmt: skip


def edited(content: bytes, changes: list[tuple[str, float, bytes]], header: int) -> bytes:
    """Some bytes changed, nearly always among the first `header`, which say what the rest is."""
    for kind, share, piece in changes:
        place = int(share * min(header, len(content)))
        rest = content[place:]
        if kind == "flip":
            rest = bytes([rest[0] ^ (1 << len(piece) % 8)]) + rest[1:] if rest else rest
        elif kind == "set":
            rest = piece + rest[len(piece) :]
        elif kind == "cut":
            rest = b""
        elif kind == "insert":
            rest = piece + rest
        else:
            rest = rest[len(piece) :]
        content = content[:place] + rest
    return content


def header_of(path: Path) -> int:
    content = path.read_bytes()
    return 8 + struct.unpack("<Q", content[:8])[0] if path.suffix == ".safetensors" else len(content)


@many
@given(changes=edits)
@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, GENERATION])
def test_bytes_changed_in_a_directory(folder: Path, name: str, changes: list[Any]) -> None:
    path = folder / name
    with replaced(path, edited(path.read_bytes(), changes, header_of(path))):
        loads_or_says_why(folder)


@pytest.mark.slow
@many
@given(changes=edits, which=st.integers(0, 2))
def test_bytes_changed_in_shards(sharded: Path, changes: list[Any], which: int) -> None:
    path = [sharded / INDEX, *sorted(sharded.glob("model-0*"))][which]
    with replaced(path, edited(path.read_bytes(), changes, header_of(path))):
        loads_or_says_why(sharded)


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Path:
    return CheckpointFolder(folder.parent).save(sample(3))


@many
@given(changes=edits)
def test_bytes_changed_in_a_checkpoint(checkpoint: Path, changes: list[Any]) -> None:
    content = edited(checkpoint.read_bytes(), changes, header_of(checkpoint))
    with replaced(checkpoint, content), contextlib.suppress(CheckpointError):
        read_checkpoint(checkpoint)


# JSON ------------------------------------------------------------------------------------------------

numbers = st.integers() | st.integers(-3, 60) | st.sampled_from([0, -1, 2**31, 2**63, 2**64, 10**30]) | st.floats()
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=5) | st.sampled_from(["F32", "F16", "I8", "BF16", WEIGHTS]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def with_value(data: st.DataObject, content: Any) -> Any:
    """The same JSON value with one part, at any depth, replaced or removed, or one more."""
    if not isinstance(content, (dict, list)) or not content or data.draw(st.integers(0, 9)) == 0:
        return data.draw(values)
    content = dict(content) if isinstance(content, dict) else list(content)
    key = data.draw(st.sampled_from(sorted(content) if isinstance(content, dict) else range(len(content))))
    match data.draw(st.sampled_from(["change", "change", "change", "remove", "more"])):
        case "change":
            content[key] = with_value(data, content[key])
        case "remove":
            del content[key]
        case "more" if isinstance(content, dict):
            content[data.draw(st.text(max_size=3) | st.sampled_from(["wte.weight", "lm_head.weight"]))] = content[key]
        case _:
            content.append(content[key])
    return content


@pytest.mark.slow
@many
@given(data=st.data())
@pytest.mark.parametrize("name", [CONFIG, GENERATION])
def test_values_changed_in_json(folder: Path, name: str, data: st.DataObject) -> None:
    content = with_value(data, json.loads((folder / name).read_text()) or {"eos_token_id": 3, "pad_token_id": [4]})
    with replaced(folder / name, json.dumps(content).encode()):
        loads_or_says_why(folder)


@pytest.mark.slow
@many
@given(data=st.data())
def test_values_changed_in_the_index(sharded: Path, data: st.DataObject) -> None:
    content = with_value(data, json.loads((sharded / INDEX).read_text()))
    with replaced(sharded / INDEX, json.dumps(content).encode()):
        loads_or_says_why(sharded)


@pytest.mark.slow
@many
@given(data=st.data())
def test_values_changed_in_the_header(folder: Path, data: st.DataObject) -> None:
    content, end = (folder / WEIGHTS).read_bytes(), header_of(folder / WEIGHTS)
    header = json.dumps(with_value(data, json.loads(content[8:end]))).encode()
    with replaced(folder / WEIGHTS, struct.pack("<Q", len(header)) + header + content[end:]):
        loads_or_says_why(folder)


def test_the_fuzzed_folders_load_when_they_are_left_alone(folder: Path, sharded: Path) -> None:
    """Or the tests above would only see one and the same sentence."""
    assert loads_or_says_why(folder)
    assert loads_or_says_why(sharded)
    with replaced(folder / CONFIG, (folder / CONFIG).read_bytes()[:-3]):
        assert not loads_or_says_why(folder)
    assert make().config == GPT.from_pretrained(folder).config
