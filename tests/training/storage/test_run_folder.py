"""The folder of a run: whose files are whose, one run at a time, and an old run that stays until a new one begins."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.helpers import assert_one_sentence, copy_of
from tests.processes import Process
from tests.training.helpers import ENVIRONMENT, OPTIONS, assert_same_outcome, make_trainer, write_text
from tinygpt import GPT, Tensor, checkpoint, interop, lock, tokenizers
from tinygpt.data import CharacterVocabulary
from tinygpt.errors import UsageError
from tinygpt.files import remove_left_overs, sync_folder
from tinygpt.training import CheckpointFolder, RunFolder, objective
from tinygpt.training.storage.folder import LOCK, MARK

pytestmark = pytest.mark.usefixtures("without_picture")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Whose files are whose --------------------------------------------------------------------------

NAMES = [
    "text.json", "tokens.npy", "metrics.jsonl", "loss_curve.png", "checkpoints.json", "tokenizer.tinygpt.json",
    "tokenizer.json", "merges.txt", "checkpoint-00001000.safetensors", MARK,
]  # fmt: skip


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize("name", NAMES)
def test_files_of_the_users_are_in_the_way(
    run: Any, text: Path, tmp_path: Path, name: str, overwrite: list[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_bytes(b"{}")
    answer = run("train", *OPTIONS, f"--data={text}", f"--out={tmp_path / 'mine'}", *overwrite)
    assert_one_sentence(answer, rf"names of a run's files \({name}\): choose another folder")
    assert contents(tmp_path / "mine") == {name: b"{}"}
    if name.startswith(
        ("to", "merges", "text")
    ):  # a trainer writes no text: a tokenizer may have been saved there for it
        make_trainer(tmp_path / "mine").run()
        assert contents(tmp_path / "mine")[name] == b"{}"
    else:
        with pytest.raises(UsageError, match=name):
            make_trainer(tmp_path / "mine").run()
        assert contents(tmp_path / "mine") == {name: b"{}"}


def test_other_files_are_not_in_the_way(run: Any, text: Path, tmp_path: Path) -> None:
    mine = {"notes.md": b"1", "checkpoint-1000.safetensors": b"2", ".metrics.jsonl.tmp": b"3", "paper/text.json": b"4"}
    folder = tmp_path / "mine"
    (folder / "paper").mkdir(parents=True)
    for name, content in mine.items():
        (folder / name).write_bytes(content)
    command = ("train", *OPTIONS, f"--data={text}", f"--out={folder}")
    assert run(*command).code == 0
    assert run(*command, "--overwrite").code == 0
    assert run(*command, "--resume", "--steps=20").code == 0
    assert contents(folder).items() >= mine.items()


def test_a_gpt2_folder_keeps_its_model(run: Any, text: Path, model: Path, tmp_path: Path) -> None:
    assert run("convert", model, tmp_path / "gpt2").code == 0
    before = contents(tmp_path / "gpt2")
    command = ("train", *OPTIONS, f"--data={text}", f"--out={tmp_path / 'gpt2'}", "--overwrite")
    assert_one_sentence(run(*command), "names of a run's")
    (tmp_path / "gpt2" / "tokenizer.tinygpt.json").unlink()  # then nothing of it has a name of a run's
    assert_one_sentence(run(*command), "holds a config.json, so a run there would be taken for a GPT-2 model")
    before.pop("tokenizer.tinygpt.json")
    assert contents(tmp_path / "gpt2") == before


@pytest.mark.parametrize("name", ["text.json", "tokens.npy"])
def test_the_text_is_not_replaced_by_the_run(run: Any, model: Path, tmp_path: Path, name: str) -> None:
    folder = copy_of(model, tmp_path / "copy")
    before = contents(folder)
    command = ("train", *OPTIONS, f"--data={folder / name}", f"--out={folder}", "--overwrite")
    assert_one_sentence(run(*command), "is a file of the run in .*, which the new run would replace")
    assert contents(folder) == before


def test_what_a_new_run_takes_away_is_what_the_old_one_wrote(run: Any, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="needs the extra bpe: pip install -e '.[bpe]'")
    folder = tmp_path / "run"
    command = ("train", *OPTIONS, f"--data={text}", f"--out={folder}")
    assert run(*command, "--tokenizer=bpe", "--vocab-size=260", "--steps=30").code == 0
    assert {"tokenizer.json", "merges.txt"} < set(json.loads((folder / MARK).read_text())["files"])
    (folder / "notes.txt").write_text("mine")
    assert run(*command, "--overwrite").code == 0
    names = set(contents(folder))
    assert "checkpoint-00000030.safetensors" not in names
    assert not names & {"tokenizer.json", "merges.txt", "vocab.json", "tokenizer_config.json", LOCK}
    assert names >= {"notes.txt", "tokenizer.tinygpt.json", "text.json", "tokens.npy", MARK}
    assert [path.name for path in folder.iterdir() if path.is_dir()] == []
    (folder / "merges.txt").write_text("mine")  # now it is not the run's, whatever the run before had
    assert_one_sentence(run(*command, "--overwrite", "--tokenizer=bpe"), r"names of a run's files \(merges.txt\)")


def test_a_run_from_before_there_was_a_mark(run: Any, model: Path, text: Path, tmp_path: Path) -> None:
    folder = copy_of(model, tmp_path / "old")
    (folder / MARK).unlink()
    assert run("sample", f"--model={folder}", "--max-new-tokens=3").code == 0
    assert_one_sentence(run("train", *OPTIONS, f"--data={text}", f"--out={folder}"), "already holds a run")
    assert not (folder / MARK).exists()
    assert run("train", "--resume", f"--out={folder}", "--steps=20").code == 0
    assert (folder / MARK).exists()
    (folder / MARK).unlink()
    assert run("train", *OPTIONS, f"--data={text}", f"--out={folder}", "--overwrite").code == 0
    assert CheckpointFolder(folder).load().step == 12


def test_a_trainer_does_not_replace_a_run(tmp_path: Path) -> None:
    make_trainer(tmp_path).run()
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=r"already holds a run: call resume\(\) before run\(\)"):
        make_trainer(tmp_path, steps=5).run()
    assert contents(tmp_path) == before
    assert json.loads(before[MARK])["files"] == ["checkpoints.json", "loss_curve.png", "metrics.jsonl", MARK]


def test_what_killed_processes_left_is_removed(run: Any, text: Path, tmp_path: Path) -> None:
    folder, names = tmp_path / "run", ["tokens.npy", "text.json", "metrics.jsonl", "loss_curve.png", "merges.txt"]
    names += ["checkpoints.json", "checkpoint-00000004.safetensors", MARK]
    left = [f".{name}.0badf00d.tmp" for name in names]
    mine = [".thesis.txt.0badf00d.tmp", ".tokens.npy.tmp", ".tokens.npy.0badf00d.tmp~", "tokens.npy.0badf00d.tmp"]
    folder.mkdir()
    (folder / ".tinygpt-new-0badf00d.tmp").mkdir()
    (folder / ".tinygpt-new-0badf00d.tmp" / "tokens.npy").write_bytes(b"half")
    for name in left + mine:
        (folder / name).write_bytes(b"half")
    assert run("train", *OPTIONS, f"--data={text}", f"--out={folder}").code == 0
    assert not [name for name in left if (folder / name).exists()]
    assert all((folder / name).exists() for name in mine)
    assert not (folder / ".tinygpt-new-0badf00d.tmp").exists()
    remove_left_overs(folder, lambda name: name == "thesis.txt", age=3600)
    assert (folder / mine[0]).exists()
    remove_left_overs(folder, lambda name: name == "thesis.txt")
    assert not (folder / mine[0]).exists()


# When a new run takes an old one's place --------------------------------------------------------


def limited(limit: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command in a process with a limit of the shell's."""
    command = ["bash", "-c", f'{limit}; exec "$@"', "bash", sys.executable, "-m", "tinygpt", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=ENVIRONMENT, check=False)


@pytest.mark.skipif(sys.platform == "win32", reason="uses a POSIX shell")
def test_no_room_for_a_new_run_keeps_the_old_one(model: Path, text: Path, tmp_path: Path) -> None:
    folder = copy_of(model, tmp_path / "copy")
    before = contents(folder)
    for blocks in (1, 8):  # no room for the tokens; no room for the first checkpoint
        done = limited(f"ulimit -f {blocks}", "train", *OPTIONS, f"--data={text}", f"--out={folder}", "--overwrite")
        assert done.returncode == 2, done.stderr
        assert "File too large" in done.stderr
        assert "--resume" not in done.stderr
        assert "Traceback" not in done.stderr
        assert contents(folder) == before


@pytest.mark.parametrize("where", ["encode", "model", "evaluate", "step", "save"])
def test_a_new_run_that_can_not_begin_keeps_the_old_one(
    run: Any, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Ctrl-C or no memory at each of its beginnings."""
    folder = copy_of(model, tmp_path / "copy")
    before = contents(folder)

    def fail(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt if where == "encode" else MemoryError("8 TB")

    owner, name = {
        "encode": (CharacterVocabulary, "encode"), "model": (GPT, "__init__"), "step": (Tensor, "backward"),
        "evaluate": (objective, "mean_loss"), "save": (checkpoint, "write_safetensors"),
    }[where]  # fmt: skip
    monkeypatch.setattr(owner, name, fail)
    answer = run("train", *OPTIONS, f"--data={text}", f"--out={folder}", "--overwrite")
    assert answer.code == (130 if where == "encode" else 2)
    assert contents(folder) == before
    monkeypatch.undo()
    fresh = tmp_path / "deep" / "fresh"
    monkeypatch.setattr(owner, name, fail)
    assert run("train", *OPTIONS, f"--data={text}", f"--out={fresh}").code != 0
    if where != "step":  # a run in a free folder has saved its first checkpoint then
        assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_first_evaluation_the_old_run_stays(
    run: Any, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    folder = copy_of(model, tmp_path / "copy")
    before = contents(folder)
    real = objective.mean_loss

    def stopped(*arguments: Any) -> float:
        signal.raise_signal(number)
        return real(*arguments)

    monkeypatch.setattr(objective, "mean_loss", stopped)
    answer = run("train", *OPTIONS, f"--data={text}", f"--out={folder}", "--overwrite", "--seed=4")
    assert answer.code == 130
    assert contents(folder) == before
    assert "--resume" not in answer.out + answer.err


def test_a_rehearsal_changes_nothing(run: Any, model: Path, text: Path, tmp_path: Path) -> None:
    """A run that replaces another has tried a step before; it is the run that it would be elsewhere."""
    folder = copy_of(model, tmp_path / "copy")
    command = ("train", *OPTIONS, f"--data={text}", "--seed=5")
    assert run(*command, f"--out={folder}", "--overwrite").code == 0
    assert run(*command, f"--out={tmp_path / 'elsewhere'}").code == 0
    assert_same_outcome(folder, tmp_path / "elsewhere")


def watch(monkeypatch: pytest.MonkeyPatch, folder: Path, work: Any) -> list[Path]:
    """Copies of a folder, from before everything that changes a name in it: as a kill at that moment would leave it."""
    kept: list[Path] = []

    def watched(real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if folder.exists():
                kept.append(folder.with_name(f"kept-{len(kept)}"))
                shutil.copytree(folder, kept[-1])
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for owner, name in ((os, "rename"), (os, "replace"), (Path, "unlink"), (Path, "rmdir"), (Path, "mkdir")):
            patch.setattr(owner, name, watched(getattr(owner, name)))
        work()
    assert len(kept) > 20
    return kept


def other_text(folder: Path) -> Path:
    path = folder / "other.txt"
    path.write_text("quite another text, of other characters; 0123456789\n" * 30)
    return path


def test_at_every_step_of_an_exchange_the_folder_holds_one_run(
    run: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(model, tmp_path / "copy")
    command = ("train", *OPTIONS, f"--data={other_text(tmp_path)}", "--steps=4")
    kept = watch(monkeypatch, folder, lambda: run(*command, f"--out={folder}", "--overwrite"))
    found = []
    for copy in kept:
        before = contents(copy)
        loaded, tokenizer = interop.load(copy)  # the one or the other, and never a mixture
        assert GPT.from_pretrained(copy).config == loaded.config
        assert tokenizers.load(copy) == tokenizer
        assert contents(copy) == before
        found.append("new" if CheckpointFolder(copy).load("best").state["training_config"]["steps"] == 4 else "old")
    assert found == sorted(found, reverse=True)
    assert set(found) == {"old", "new"}
    pending = [copy for copy in kept if (copy / ".saved").exists()]
    assert len(pending) > 5
    for number, copy in enumerate(pending):
        assert run("sample", f"--model={copy}", "--prompt=quite", "--max-new-tokens=3").code == 0
        if number % 2:
            assert run("train", "--resume", f"--out={copy}").code == 0
            assert_same_outcome(copy, folder)
        else:
            assert_one_sentence(run(*command, f"--out={copy}"), "already holds a run")
            assert run(*command, f"--out={copy}", "--overwrite").code == 0
        assert not [path for path in copy.iterdir() if path.name.startswith(".")]


def test_at_every_step_of_a_first_run_the_next_command_works(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    command = ("train", *OPTIONS, f"--data={other_text(tmp_path)}", "--steps=4")
    for number, copy in enumerate(watch(monkeypatch, folder, lambda: run(*command, f"--out={folder}"))):
        if (copy / "checkpoints.json").exists() or (copy / ".saved" / "manifest.json").exists():
            assert_one_sentence(run(*command, f"--out={copy}"), "already holds a run")
            assert run("train", "--resume", f"--out={copy}").code == 0
            assert_same_outcome(copy, folder)
        elif number % 3 == 0:
            assert_one_sentence(run("train", "--resume", f"--out={copy}"), "there is no checkpoint in")
            assert run(*command, f"--out={copy}").code == 0
            assert_same_outcome(copy, folder)


# One run at a time ------------------------------------------------------------------------------


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
