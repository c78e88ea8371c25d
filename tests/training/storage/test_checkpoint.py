"""Checkpoints: whole or not there, whatever happens and whenever it happens."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from tests.training.helpers import make_trainer
from tinygpt import checkpoint as module
from tinygpt.errors import CheckpointError, UsageError
from tinygpt.safetensors_io import write_safetensors
from tinygpt.training import Checkpoint, CheckpointFolder, read_checkpoint


def sample(step: int) -> Checkpoint:
    """A checkpoint in which every number is its step: a mixture of two would show."""
    model = {"a.weight": np.full((3, 4), step, np.float32), "b": np.full(5, step, np.float64)}
    optimizer = {"m.a.weight": np.full((3, 4), step, np.float32), "v.b": np.full((), step, np.float64)}
    return Checkpoint(model, optimizer, {"step": step, "text": 'ä"\n', "nested": {"value": 0.1 + step}})


def assert_is(found: Checkpoint, step: int) -> None:
    expected = sample(step)
    assert found.state == expected.state
    for part in ("model", "optimizer"):
        arrays, wanted = getattr(found, part), getattr(expected, part)
        assert arrays.keys() == wanted.keys()
        for name, array in wanted.items():
            assert arrays[name].dtype == array.dtype
            np.testing.assert_array_equal(arrays[name], array)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    assert not folder.exists()
    path = folder.save(sample(3), best=True)
    folder.save(sample(4))
    assert_is(folder.load("latest"), 4)
    assert_is(folder.load("best"), 3)
    assert_is(read_checkpoint(path), 3)


def test_the_file_is_ordinary_safetensors(tmp_path: Path) -> None:
    path = CheckpointFolder(tmp_path).save(sample(2))
    arrays = load_file(path)  # by the library that defines the format
    assert set(arrays) == {"model.a.weight", "model.b", "optimizer.m.a.weight", "optimizer.v.b"}
    assert arrays["model.a.weight"].shape == (3, 4)


def test_files_no_longer_named_are_removed_and_others_left_alone(tmp_path: Path) -> None:
    mine = {"checkpoint-notes.txt", "checkpoint-mine.safetensors", "checkpoint-1000.safetensors", ".mine.01234567.tmp"}
    for name in mine:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".checkpoint-00000001.safetensors.0badf00d.tmp").write_bytes(b"left by a kill")
    folder = CheckpointFolder(tmp_path)
    for step in (1, 2, 3):
        folder.save(sample(step), best=step == 1)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == mine | {
        "checkpoints.json", "checkpoint-00000001.safetensors", "checkpoint-00000003.safetensors"
    }  # fmt: skip
    folder.remove()
    assert {path.name for path in tmp_path.iterdir()} == mine


def test_a_step_is_saved_again(tmp_path: Path) -> None:
    """As a run does that is resumed and stopped before its next step: other seconds, the same weights."""
    folder = CheckpointFolder(tmp_path)
    folder.save(sample(3), best=True)
    for seconds in (1.5, 1.75, 2.0):
        again = sample(3)
        again.state["seconds"] = seconds
        path = folder.save(again)
        for which in ("latest", "best"):
            assert folder.load(which).state["seconds"] == seconds
        assert {path.name for path in tmp_path.iterdir()} == {path.name, "checkpoints.json"}


def test_a_crash_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the folder before and after everything that changes it, as a kill at that moment would leave it."""
    folder = tmp_path / "run"
    folder.mkdir()
    snapshots: list[Path] = []

    def watched(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            for moment in ("before", "after"):
                result = function(*args, **kwargs) if moment == "after" else None
                snapshots.append(tmp_path / f"snapshot-{len(snapshots)}")
                shutil.copytree(folder, snapshots[-1])
            return result

        return call

    checkpoints = CheckpointFolder(folder)
    checkpoints.save(sample(1), best=True)
    monkeypatch.setattr(os, "replace", watched(os.replace))
    monkeypatch.setattr(os, "fsync", watched(os.fsync))
    monkeypatch.setattr(Path, "unlink", watched(Path.unlink))
    seen = set()
    for step, best in ((2, False), (3, True), (4, False)):
        checkpoints.save(sample(step), best=best)
    for seconds in (1.5, 1.75):  # the same step again, not byte for byte, over the latest and over latest and best
        again = sample(4)
        again.state["seconds"] = seconds
        checkpoints.save(again, best=True)
    monkeypatch.undo()
    assert len(snapshots) >= 5 * 2 * 5  # for each save: two files written and renamed, one removed
    for snapshot in snapshots:
        latest, best_one = CheckpointFolder(snapshot).load("latest"), CheckpointFolder(snapshot).load("best")
        latest.state.pop("seconds", None), best_one.state.pop("seconds", None)
        assert_is(latest, latest.step)
        assert_is(best_one, best_one.step)
        seen.add((latest.step, best_one.step))
        CheckpointFolder(snapshot).save(sample(9))  # and the run can go on from there
        assert_is(CheckpointFolder(snapshot).load("latest"), 9)
        assert not list(snapshot.glob(".*.tmp"))
    assert seen == {(1, 1), (2, 1), (3, 3), (4, 3), (4, 4)}


# Damage -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    CheckpointFolder(folder).save(sample(7), best=True)
    return folder


def damaged(saved: Path, tmp: Path, name: str, content: bytes) -> CheckpointFolder:
    shutil.copytree(saved, tmp, dirs_exist_ok=True)
    (tmp / name).write_bytes(content)
    return CheckpointFolder(tmp)


FILE = "checkpoint-00000007.safetensors"


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_is_noticed(saved: Path, tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    content = (saved / FILE).read_bytes()
    folder = damaged(saved, tmp_path_factory.mktemp("cut"), FILE, content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        folder.load()
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        read_checkpoint(folder.folder / FILE)  # even without the SHA-256


@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed(saved: Path, tmp_path_factory: pytest.TempPathFactory, place: int, bit: int) -> None:
    content = bytearray((saved / FILE).read_bytes())
    content[place % len(content)] ^= 1 << bit
    folder = damaged(saved, tmp_path_factory.mktemp("flip"), FILE, bytes(content))
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        folder.load()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"latest": 3}', b'{"latest": {"file": "../x", "step": 1, "sha256": ""}}', b"\xff"],
)
def test_a_damaged_index_is_noticed(saved: Path, tmp_path: Path, content: bytes) -> None:
    folder = damaged(saved, tmp_path, "checkpoints.json", content)
    with pytest.raises(CheckpointError, match=r"checkpoints\.json"):
        folder.load()


def test_what_is_missing_is_said(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        CheckpointFolder(tmp_path / "nowhere").load()
    folder = damaged(saved, tmp_path, FILE, b"")
    (tmp_path / FILE).unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        folder.load()
    index = json.loads((tmp_path / "checkpoints.json").read_text())
    (tmp_path / "checkpoints.json").write_text(json.dumps({"latest": index["latest"]}))
    with pytest.raises(CheckpointError, match="names no 'best' checkpoint, only latest"):
        folder.load("best")


def test_another_version_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VERSION", 2)
    folder = CheckpointFolder(tmp_path)
    folder.save(sample(1))
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"tinygpt-checkpoint 2, not tinygpt-checkpoint 1"):
        folder.load()


def test_a_dtype_without_a_name_is_refused(tmp_path: Path) -> None:
    checkpoint = sample(1)
    checkpoint.model["b"] = np.zeros(2, np.complex64)
    with pytest.raises(UsageError, match=re.escape("model.b of dtype complex64")):
        CheckpointFolder(tmp_path).save(checkpoint)
    assert list(tmp_path.iterdir()) == []


# A full disk ------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full to write to")
def test_a_full_disk_is_an_os_error() -> None:
    with pytest.raises(OSError, match="No space left") as caught, open("/dev/full", "wb", buffering=0) as file:
        write_safetensors(file, sample(1).model, {})
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.slow
@pytest.mark.parametrize("failing", [1, 2])
def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    """The disk is full at the checkpoint's file (1) or at the index (2) of step 8."""
    trainer = make_trainer(tmp_path)
    real, calls = module.atomic_write, [0]

    def full(path: Path, mode: str = "wb") -> Any:
        if trainer.state.step == 8:
            calls[0] += 1
            if calls[0] == failing:
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, mode)

    monkeypatch.setattr(module, "atomic_write", full)
    with pytest.raises(UsageError, match=r"No space left on device; the checkpoint of step 5 is intact"):
        trainer.run()
    monkeypatch.undo()
    assert CheckpointFolder(tmp_path).load().step == 5
    again = make_trainer(tmp_path)
    again.resume()
    assert again.run().step == 20
