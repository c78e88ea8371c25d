"""The folder of a run: whose files are whose, and an old run that stays until a new one begins."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.helpers import assert_one_sentence, copy_of
from tests.training.helpers import ENVIRONMENT, OPTIONS, assert_same_outcome, make_trainer
from tinygpt import GPT, Tensor, checkpoint, interop, tokenizers
from tinygpt.data import CharacterVocabulary
from tinygpt.errors import UsageError
from tinygpt.files import remove_left_overs
from tinygpt.training import CheckpointFolder, objective
from tinygpt.training.storage.folder import LOCK, MARK

pytestmark = pytest.mark.usefixtures("without_picture")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Whose files are whose --------------------------------------------------------------------------

NAMES = [
    "text.json", "tokens.npy", "metrics.jsonl", "loss_curve.png", "checkpoints.json", "tokenizer.tinygpt.json",
    "tokenizer.json", "merges.txt", "checkpoint-00001000.safetensors", MARK,
]  # fmt: skip


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
