"""The command line: every command, and one sentence with exit code 2 for every mistake."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import tinygpt
from tests.cli.helpers import assert_one_sentence, copy_of
from tests.processes import Process
from tests.training.helpers import ENVIRONMENT, OPTIONS, VERSE, outcome
from tinygpt import cli
from tinygpt.training import PRESETS, Preset, TrainingConfig, add_run_options
from tinygpt.training.settings.options import add_field_options, given_options

# Train, sample, eval ----------------------------------------------------------------------------


def test_train_says_what_it_does_and_how_it_ended(run: Any, text: Path, tmp_path: Path) -> None:
    answer = run("train", *OPTIONS, f"--data={text}", f"--out={tmp_path / 'run'}")
    assert answer.code == 0
    assert f"the file {text}" in answer.out
    assert "1 layers, 2 heads, 8 channels" in answer.out
    assert re.search(r"Loss over the whole validation text: \d\.\d{4}", answer.out)
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {
        "checkpoints.json", "metrics.jsonl", "text.json", "tokenizer.tinygpt.json", "tokens.npy",
    }  # fmt: skip


def test_sample_writes_the_same_text_for_the_same_seed(run: Any, model: Path) -> None:
    command = ("sample", f"--model={model}", "--prompt=To be", "--max-new-tokens=30", "--top-k=5")
    first, again, other = (run(*command, f"--seed={seed}") for seed in (1, 1, 2))
    assert first.code == 0
    assert first.out.startswith("To be")
    assert len(first.out) == len("To be") + 30 + 1
    assert set(first.out) <= set(VERSE)
    assert first.out == again.out != other.out


def test_sample_from_the_latest_greedily(run: Any, model: Path) -> None:
    command = ("sample", f"--model={model}", "--checkpoint=latest", "--temperature=0", "--max-new-tokens=5")
    assert run(*command).out == run(*command).out


def test_eval_of_the_validation_text_is_what_training_said(run: Any, text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    trained = run("train", *OPTIONS, f"--data={text}", f"--out={folder}")
    said = trained.out.partition("validation text: ")[2].split()[0]
    answer = run("eval", f"--model={folder}")
    assert answer.code == 0
    assert answer.out.startswith(f"loss {said} nats per token")


def test_eval_of_another_text(run: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("not to be\n" * 5, encoding="utf-8")
    answer = run("eval", f"--model={model}", f"--data={tmp_path / 'other.txt'}")
    assert answer.code == 0
    assert "over 49 tokens" in answer.out


def test_bytes_as_tokens(run: Any, tmp_path: Path) -> None:
    (tmp_path / "accents.txt").write_text("Être ou ne pas être\n" * 40, encoding="utf-8")
    folder = tmp_path / "run"
    command = ("train", *OPTIONS, f"--data={tmp_path / 'accents.txt'}", "--tokenizer=byte", f"--out={folder}")
    assert run(*command).code == 0
    assert run("sample", f"--model={folder}", "--prompt=☃", "--max-new-tokens=9").out.startswith("☃")


@pytest.mark.slow
def test_a_loss_of_zero_is_a_loss(run: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" * 400, encoding="utf-8")
    answer = run("train", *OPTIONS, f"--data={tmp_path / 'a.txt'}", f"--out={tmp_path / 'run'}")
    assert re.search(r"after \d+ s; the best validation loss was 0\.0000 at step 0; ", answer.out)


@pytest.mark.slow
def test_a_text_of_one_line_needs_no_prompt(run: Any, tmp_path: Path) -> None:
    (tmp_path / "line.txt").write_text("abcdefgh" * 40, encoding="utf-8")
    folder = tmp_path / "run"
    assert run("train", *OPTIONS, f"--data={tmp_path / 'line.txt'}", f"--out={folder}").code == 0
    assert run("sample", f"--model={folder}", "--max-new-tokens=9").out.startswith("a")


@pytest.mark.parametrize("command", [["--help"], ["train", "--help"], ["sample", "--help"], ["eval", "--help"]])
def test_help(run: Any, command: list[str]) -> None:
    answer = run(*command)
    assert answer.code == 0
    assert "usage: tinygpt" in answer.out


def test_finetune_has_no_settings_of_texts_and_of_several_processes(run: Any) -> None:
    shown = run("finetune", "--help").out
    assert "--batch-size" in shown
    assert not [name for name in ("--order", "--pack", "--shard-optimizer") if name in shown]


def test_every_setting_is_an_option_with_its_default() -> None:
    parser = argparse.ArgumentParser()
    add_run_options(parser, out="out")
    words = " ".join(parser.format_help().split())
    for name in ("--lr", "--batch-size", "--no-bias", "--eval-batches", "--layer-norm-epsilon", "--detect-anomaly"):
        assert name in words
    sizes = "64 for baby, 4 for gpt2 and gpt2-medium, 2 for gpt2-large, 1 for gpt2-xl, otherwise 12"
    assert f"rows in a batch (default: {sizes})" in words
    rates = "0.02 for fast, 0.0006 for gpt2, 0.0003 for gpt2-medium, 0.00025 for gpt2-large, 0.0002 for gpt2-xl"
    assert f"(default: {rates})" in words  # the others have the optimizer's, which the help text names
    for preset in PRESETS.values():
        TrainingConfig(**preset.training)


def test_options_that_were_not_given_are_absent() -> None:
    parser = argparse.ArgumentParser()
    add_field_options(parser, TrainingConfig, "training")
    given = given_options(
        parser.parse_args(["--lr", "0.5", "--no-detect-anomaly", "--decay-steps", "7"]), TrainingConfig
    )
    assert given == {"lr": 0.5, "detect_anomaly": False, "decay_steps": 7}


def test_version(run: Any) -> None:
    assert run("--version").out == f"tinygpt {tinygpt.__version__}\n"


# Mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--batch-size=0"], "batch_size must be at least 1, not 0"),
        (["--lr=nan"], "lr must be above 0, not nan"),
        (["--lr=fast"], "invalid float value: 'fast'"),
        (["--steps=1.5"], "invalid int value"),
        (["--n-head=3"], "n_embd must be a multiple of n_head"),
        (["--dropout=1"], "dropout must be"),
        (["--block-size=100000"], "block_size 100000 needs at least 100001"),
        (["--validation-fraction=0.0001"], "block_size 8 needs at least 9"),
        (["--preset=huge"], "invalid choice: 'huge'"),
        (["--no-such-option"], "unrecognized arguments"),
        (["--data=/no/such/file"], "No such file or directory"),
        (["--resume"], "there is no checkpoint in"),
        (["--resume", "--overwrite"], "not allowed with argument --resume"),
        (["--seed=-1"], "seed must be at least 0"),
    ],
)
def test_mistakes_in_training_are_one_sentence(
    run: Any, text: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    answer = run("train", *OPTIONS, f"--data={text}", f"--out={tmp_path / 'run'}", *options)
    assert_one_sentence(answer, words)
    assert not (tmp_path / "run" / "checkpoints.json").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"\xff\x00", "is not UTF-8 text"),
        (b"\xff\xfe\x00", "is not utf-16-le text"),  # as its byte order mark says
        (b"a\0b", "there is a NUL character"),
        (b"short", "needs at least 9"),
    ],
)
def test_texts_that_can_not_be_trained_on(run: Any, tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    answer = run("train", *OPTIONS, f"--data={tmp_path / 'text.txt'}", f"--out={tmp_path / 'run'}")
    assert_one_sentence(answer, words)


def test_a_folder_that_can_not_be_made(run: Any, text: Path) -> None:
    answer = run("train", *OPTIONS, f"--data={text}", f"--out={text / 'run'}")
    assert_one_sentence(answer, "cannot create the folder")


def test_cupy_where_it_is_not(run: Any, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)  # the import fails as if it were not installed
    monkeypatch.setattr("tinygpt.backends.cupy.xp", None)
    answer = run("train", *OPTIONS, f"--data={text}", f"--out={tmp_path}", "--backend=cupy")
    assert_one_sentence(answer, r"pip install 'cupy-cuda12x\[ctk\]' ml_dtypes")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompt=#"], "the character '#'"),
        (["--prompt="], "the prompt is empty"),
        (["--temperature=-1"], "temperature must be at least 0"),
        (["--top-k=0"], "top_k must be at least 1"),
        (["--max-new-tokens=-1"], "max_new_tokens must be at least 0"),
        (["--model=/no/such/folder"], "there is no folder /no/such/folder"),
    ],
)
def test_mistakes_in_sampling_are_one_sentence(run: Any, model: Path, options: list[str], words: str) -> None:
    assert_one_sentence(run("sample", f"--model={model}", *options), words)


def test_mistakes_in_evaluating_are_one_sentence(run: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("Zürich is a town", encoding="utf-8")
    answer = run("eval", f"--model={model}", f"--data={tmp_path / 'other.txt'}")
    assert_one_sentence(answer, "the character 'Z' at position 0 of .*other.txt is not in the text that the model was")
    assert "CharTokenizer" not in answer.err  # no advice in Python on a command line
    assert_one_sentence(run("eval", f"--model={model}", "--batch-size=0"), "batch_size must be at least 1")


def test_a_tokenizer_of_another_model(run: Any, model: Path, tmp_path: Path) -> None:
    folder = copy_of(model, tmp_path / "copy")
    tokenizer = json.loads((folder / "tokenizer.tinygpt.json").read_text(encoding="utf-8"))
    tokenizer["characters"] = tokenizer["characters"][:-1]
    (folder / "tokenizer.tinygpt.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    assert_one_sentence(run("sample", f"--model={folder}"), "do not belong together")


# A run that is there already --------------------------------------------------------------------


def test_a_run_is_never_silently_replaced(
    run: Any, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(model, tmp_path / "copy")
    before = outcome(folder)
    answer = run("train", *OPTIONS, f"--data={text}", f"--out={folder}", "--seed=3")
    assert_one_sentence(answer, "already holds a run: .*--resume.*--out.*--overwrite")
    assert outcome(folder) == before
    answer = run("train", *OPTIONS, f"--data={text}", f"--out={folder}", "--seed=3", "--batch-size=0", "--overwrite")
    assert_one_sentence(answer, "batch_size")  # and not before the new run makes sense
    answer = run("train", *OPTIONS, f"--data={tmp_path / 'nothing.txt'}", f"--out={folder}", "--overwrite")
    assert_one_sentence(answer, "No such file")
    monkeypatch.setattr("tinygpt.data.corpora.find_plays", list)
    monkeypatch.setenv("TINYGPT_CACHE", str(tmp_path / "nothing"))
    monkeypatch.setenv("TINYGPT_OFFLINE", "1")
    assert_one_sentence(run("train", *OPTIONS, f"--out={folder}", "--overwrite"), "no Shakespeare text available")
    assert outcome(folder) == before
    assert run("train", *OPTIONS, f"--data={text}", f"--out={folder}", "--seed=3", "--overwrite").code == 0
    assert outcome(folder) != before


@pytest.mark.slow
def test_resume_takes_everything_from_the_checkpoint(run: Any, model: Path, text: Path, tmp_path: Path) -> None:
    folder = copy_of(model, tmp_path / "copy")
    (tmp_path / "direct").mkdir()
    answer = run("train", "--resume", f"--out={folder}", "--steps=20")
    assert answer.code == 0
    assert "steps 12 to 20" in answer.out
    direct = tmp_path / "direct"
    assert run("train", *OPTIONS, "--steps=20", "--decay-steps=12", f"--data={text}", f"--out={direct}").code == 0
    found, expected = outcome(folder), outcome(direct)
    for name in expected:
        if name.startswith(("latest model", "latest optimizer")):
            assert found[name] == expected[name], name


@pytest.mark.slow
def test_a_preset_does_not_undo_the_steps_of_the_run(
    run: Any, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8, "bias": False, "dropout": 0.0}
    monkeypatch.setitem(PRESETS, "tiny", Preset("smaller", small, {"steps": 9, "batch_size": 3}))
    command = ("train", "--preset=tiny", f"--data={text}", f"--out={tmp_path / 'run'}")
    assert run(*command, "--steps=5").code == 0
    assert "steps 5 to 5" in run(*command, "--resume").out
    assert "steps 5 to 7" in run(*command, "--resume", "--steps=7").out


def test_resume_accepts_the_options_of_the_run(run: Any, model: Path, text: Path, tmp_path: Path) -> None:
    folder = copy_of(model, tmp_path / "copy")
    assert run("train", *OPTIONS, f"--data={text}", f"--out={folder}", "--resume").code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--beta1=0.8"], "beta1 is 0.9 there and 0.8 here"),
        (["--n-layer=2"], "n_layer is 1 there and 2 here"),
        (["--preset=tiny"], "block_size is 8 there and 64 here"),
        (["--seed=9"], "seed is 0 there and 9 here"),
        (["--steps=11"], "is already at step 12: steps must be at least that, not 11"),
        (["--tokenizer=byte"], "character tokens, not byte"),
    ],
)
def test_resume_refuses_another_run(run: Any, model: Path, tmp_path: Path, options: list[str], words: str) -> None:
    folder = copy_of(model, tmp_path / "copy")
    before = outcome(folder)
    assert_one_sentence(run("train", "--resume", f"--out={folder}", *options), words)
    assert outcome(folder) == before


def test_resume_refuses_another_text(run: Any, model: Path, tmp_path: Path) -> None:
    folder = copy_of(model, tmp_path / "copy")
    (tmp_path / "other.txt").write_text("not to be\n" * 50, encoding="utf-8")
    answer = run("train", "--resume", f"--out={folder}", f"--data={tmp_path / 'other.txt'}")
    assert_one_sentence(answer, "uses a different text than")


@pytest.mark.parametrize("name", ["checkpoints.json", "text.json", "tokenizer.tinygpt.json", "tokens.npy"])
def test_resume_says_what_is_damaged(run: Any, model: Path, tmp_path: Path, name: str) -> None:
    folder = copy_of(model, tmp_path / "copy")
    (folder / name).write_bytes((folder / name).read_bytes()[:20])
    assert_one_sentence(run("train", "--resume", f"--out={folder}"), re.escape(name))


# The process ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="uses a POSIX shell")
@pytest.mark.parametrize(("closed", "code"), [("sample --seed=1 >&-", 0), ("eval --batch-size=0 2>&-", 2)])
def test_without_an_output(model: Path, closed: str, code: int) -> None:
    command = f"{shlex.quote(sys.executable)} -m tinygpt {closed} --model={shlex.quote(str(model))}"
    begin, files = time.monotonic(), {path.name: path.stat().st_size for path in model.iterdir()}
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, env=ENVIRONMENT, check=False)
    state = f"{command}, of {files}, took {time.monotonic() - begin:.1f} s; load {os.getloadavg()}"
    assert (done.returncode, done.stdout, done.stderr) == (code, "", ""), state


@pytest.mark.slow
def test_a_module_that_is_run_has_the_name_of_the_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tinygpt", "sample", f"--model={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=ENVIRONMENT, check=False)
    assert done.stderr.startswith("tinygpt: there is no model in")


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # as if the disk had no more room for a file
runpy.run_module("tinygpt", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
def test_no_room_for_a_checkpoint(model: Path, tmp_path: Path) -> None:
    folder = copy_of(model, tmp_path / "copy")
    before = outcome(folder)
    command = [sys.executable, "-c", LIMITED, "train", "--resume", f"--out={folder}", "--steps=30"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "File too large; the checkpoint of step 12 is intact" in done.stderr
    found = outcome(folder)
    found.pop("metrics"), before.pop("metrics")  # the lines after the checkpoint are dropped when it is resumed
    assert found == before


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error(model: Path) -> None:
    command = [sys.executable, "-m", "tinygpt", "sample", f"--model={model}", "--max-new-tokens=300"]
    with Process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == b""


def test_the_command_to_type_next(monkeypatch: pytest.MonkeyPatch) -> None:
    for program, words in (
        ("/usr/bin/tinygpt", "tinygpt"),
        ("examples/my run.py", "python 'examples/my run.py'"),
        ("/site/tinygpt/__main__.py", "python -m tinygpt"),
    ):
        monkeypatch.setattr(sys, "argv", [program, "train"])
        command = cli.again("--resume", "--out", "a folder")
        assert command == f"{words} --resume --out 'a folder'"
        assert shlex.split(command)[-1] == "a folder"
