"""The folder of a run is used by one run at a time, and loading while it changes gives one run or the other."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.helpers import assert_one_sentence, copy_of
from tests.processes import Process
from tests.training.helpers import ENVIRONMENT, OPTIONS, assert_same_outcome, make_trainer, write_text
from tinygpt import interop, lock, tokenizers
from tinygpt.errors import UsageError
from tinygpt.files import sync_folder
from tinygpt.training import CheckpointFolder, RunFolder
from tinygpt.training.storage.folder import LOCK

pytestmark = pytest.mark.usefixtures("without_picture")


def test_a_folder_has_one_run_at_a_time(run: Any, text: Path, tmp_path: Path) -> None:
    folder, answers = tmp_path / "run", []
    trainer = make_trainer(folder)

    def start(record: dict[str, Any]) -> None:
        if record["step"] in (0, 10) and "validation_loss" in record:  # before its first checkpoint, and later
            answers.append(run("train", *OPTIONS, f"--data={text}", f"--out={folder}", "--overwrite"))
            if record["step"]:
                answers.append(run("train", "--resume", f"--out={folder}"))
            with pytest.raises(UsageError, match="another run is using"):
                make_trainer(folder).run()

    trainer.callbacks.append(start)
    assert trainer.run().step == 20
    assert len(answers) == 3
    for answer in answers:
        assert_one_sentence(answer, rf"another run is using the folder .* \(process {os.getpid()} on ")
    make_trainer(tmp_path / "alone").run()
    assert_same_outcome(folder, tmp_path / "alone")
    assert not (folder / LOCK).exists()


HOLD = "import sys; from tinygpt.training import RunFolder; RunFolder(sys.argv[1]).lock(); print(); sys.stdin.read()"


@pytest.mark.slow
def test_a_lock_dies_with_its_process(run: Any, model: Path, tmp_path: Path) -> None:
    folder = copy_of(model, tmp_path / "copy")
    command = [sys.executable, "-c", HOLD, str(folder)]
    with Process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        answer = run("train", "--resume", f"--out={folder}")
        assert_one_sentence(answer, f"another run is using .*process {process.pid} on")
        process.kill()
    assert (folder / LOCK).exists()  # and says nothing by being there
    assert run("train", "--resume", f"--out={folder}").code == 0
    assert not (folder / LOCK).exists()


def test_a_file_system_without_locks_is_no_obstacle(
    run: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(descriptor: int) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    folder = copy_of(model, tmp_path / "copy")
    monkeypatch.setattr(lock, "_lock", none)
    answer = run("train", "--resume", f"--out={folder}", "--steps=13")
    assert answer.code == 0
    assert answer.err.count("can't be locked (No locks available): don't start another run there now.") == 1
    assert not (folder / LOCK).exists()


def test_a_lock_that_is_given_back_while_it_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is removed between its opening and its locking: a lock on it would keep nobody out."""
    first, second, third = (lock.Lock(tmp_path / "lock") for _ in range(3))
    assert first.take()
    assert not second.take()
    real = lock._lock

    def slowly(descriptor: int) -> bool:
        first.give_back()
        return real(descriptor)

    monkeypatch.setattr(lock, "_lock", slowly)
    assert second.take()
    assert not third.take()
    second.give_back()
    assert third.take()


def test_loading_while_a_run_saves(tmp_path: Path) -> None:
    """The checkpoint that is read is replaced meanwhile, at each of the moments of a load."""
    trainer = make_trainer(tmp_path, checkpoint_every=100, eval_every=100)
    trainer.run()
    trainer.state.step = 21
    trainer.save()  # the latest, which is not the best and goes when the next is there
    folder, real = CheckpointFolder(tmp_path), CheckpointFolder.entry

    def entry(self: CheckpointFolder, which: str = "latest") -> dict[str, Any]:
        found = real(self, which)
        if trainer.state.step < 25:
            trainer.state.step += 1
            trainer.save()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointFolder, "entry", entry)
        assert folder.load().step == 25
    (tmp_path / real(folder)["file"]).write_bytes(b"")
    with pytest.raises(UsageError, match="damaged or cut short"):
        folder.load()


def test_loading_while_a_new_run_takes_the_place(
    run: Any, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the checkpoint and the tokenizer: they are read again, both of the new run."""
    folder = copy_of(model, tmp_path / "copy")
    (tmp_path / "other.txt").write_text("abc" * 200)
    real, calls = tokenizers.load, []

    def load(place: Any) -> Any:
        if not calls:
            calls.append(place)
            options = (*OPTIONS, f"--data={tmp_path / 'other.txt'}", f"--out={folder}", "--overwrite")
            assert run("train", *options).code == 0
        return real(place)

    monkeypatch.setattr(tokenizers, "load", load)
    loaded, tokenizer = interop.load(folder)
    assert tokenizer.vocab_size == loaded.config.vocab_size == 3


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_a_file_system_that_can_not_sync_a_folder_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert make_trainer(tmp_path / "run").run().step == 20
    code = errno.EIO  # a disk that fails is another thing
    with pytest.raises(OSError, match=os.strerror(code)):
        sync_folder(tmp_path)


def test_nothing_is_advised_that_can_not_be_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--resume only where something was saved."""

    def full(*arguments: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer = make_trainer(tmp_path / "run")
    monkeypatch.setattr("tinygpt.checkpoint.atomic_write", full)
    with pytest.raises(UsageError, match="nothing was saved: make room there, or allow writing, and try again"):
        trainer.run()


def test_a_folder_that_a_run_made_and_did_not_need_is_gone(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "a" / "b") as folder:
        folder.begin()
        assert {path.name for path in folder.path.iterdir()} == {LOCK, folder.place.name}
    assert list(tmp_path.iterdir()) == []
    write_text(tmp_path / "a")
    with pytest.raises(UsageError, match="cannot create the folder"):
        folder.begin()
