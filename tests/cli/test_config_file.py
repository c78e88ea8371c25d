"""--config: a TOML file of options, and config.toml beside every run, which repeats it bit for bit."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.cli.helpers import assert_one_sentence
from tests.training.helpers import OPTIONS, assert_same_outcome, outcome
from tinygpt.training.settings.config_file import to_toml

pytestmark = pytest.mark.usefixtures("without_picture")


@pytest.fixture
def settings(tmp_path: Path, text: Path) -> Path:
    """The options of the fixture `model`, as a file."""
    lines = [option[2:].replace("-", "_").replace("=", " = ") for option in OPTIONS]
    path = tmp_path / "run.toml"
    path.write_text("\n".join(["[any heading]".replace(" ", "-"), *lines, f"data = {to_toml(str(text))}"]))
    return path


def test_a_file_of_options_is_the_same_as_the_options(run: Any, model: Path, settings: Path, tmp_path: Path) -> None:
    assert run("train", f"--config={settings}", f"--out={tmp_path / 'run'}").code == 0
    assert_same_outcome(tmp_path / "run", model)


def test_a_run_is_repeated_by_the_file_that_it_left(run: Any, model: Path, tmp_path: Path) -> None:
    written = tomllib.loads((model / "config.toml").read_text(encoding="utf-8"))
    assert written["n_embd"] == 8
    assert written["beta2"] == 0.99  # by default
    assert written["tokenizer"] == "character"
    assert not {"out", "overwrite", "min_lr", "decay_steps"} & written.keys()
    assert run("train", "--config", model / "config.toml", f"--out={tmp_path / 'again'}").code == 0
    assert_same_outcome(tmp_path / "again", model)
    assert (tmp_path / "again" / "config.toml").read_bytes() == (model / "config.toml").read_bytes()


@pytest.mark.slow
def test_in_the_same_folder_it_is_repeated_with_overwrite_only(run: Any, settings: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run("train", f"--config={settings}", f"--out={folder}").code == 0
    before = outcome(folder)
    again = ("train", "--config", folder / "config.toml", f"--out={folder}")
    assert_one_sentence(run(*again), "already holds a run: continue it with --resume")
    assert run(*again, "--overwrite").code == 0
    assert outcome(folder) == before
    assert run(*again, "--resume", "--steps=13").code == 0


def test_options_go_before_the_file(run: Any, settings: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("not to be\n" * 40, encoding="utf-8")
    options = ("--steps=3", tmp_path / "other.txt", "--no-bias", "--config", settings, "--lr=0.5")
    assert run("train", *options, f"--out={tmp_path / 'run'}").code == 0
    written = tomllib.loads((tmp_path / "run" / "config.toml").read_text(encoding="utf-8"))
    assert written["files"] == [str(tmp_path / "other.txt")]
    assert (written["steps"], written["bias"], written["lr"], written["batch_size"]) == (3, False, 0.5, 3)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("warmup_step = 3", r"run.toml, line 2: there is no setting warmup_step: did you mean warmup_steps\?"),
        ("learning_rate = 3", r"line 2: there is no setting learning_rate: did you mean lr\?"),
        ("resume = true", "line 2: resume can be given on the command line only"),
        ("xyzzy = 3", "there is no setting xyzzy: the command's --help lists all settings"),
        ('steps = "3"', 'line 2: steps must be a whole number, not "3"'),
        ("steps = 3.0", "line 2: steps must be a whole number, not 3.0"),
        ("lr = true", "line 2: lr must be a number, not true"),
        ("bias = 1", "line 2: bias must be true or false, not 1"),
        ("tokenizer = 1", "line 2: tokenizer must be a text in quotes, not 1"),
        ("files = [1]", "line 2: files must be a text in quotes, not a list"),
        ('optimizer = "adamv"', "line 2: optimizer must be one of adamw, .*, not 'adamv'"),
        ("batch-size = 2\nbatch_size = 3", "line 3: batch_size is set twice"),
        ("lr = 0.0", "lr must be above 0, not 0.0"),
        ("lr =", "run.toml is not a TOML file: .*line 2"),
        ("lr = 1e-3\nlr = 1e-2", "run.toml is not a TOML file: .*line 3"),
    ],
)
def test_mistakes_in_the_file(run: Any, text: Path, tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(f"# a run\n{line}\n")
    assert_one_sentence(run("train", f"--data={text}", f"--config={path}", f"--out={tmp_path / 'run'}"), words)
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_not_there(run: Any, tmp_path: Path) -> None:
    answer = run("train", f"--config={tmp_path / 'none.toml'}")
    assert_one_sentence(answer, "cannot read the configuration .*none.toml: No such file")
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    assert_one_sentence(run("train", f"--config={tmp_path / 'bytes.toml'}"), "is not a TOML file: ")


def test_a_users_own_config_toml_is_not_replaced(run: Any, settings: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    own = settings.rename(tmp_path / "run" / "config.toml")
    before = own.read_bytes()
    answer = run("train", f"--config={own}", f"--out={tmp_path / 'run'}", "--overwrite")
    assert_one_sentence(answer, r"files that no run has written, .* \(config.toml\)")
    assert own.read_bytes() == before


def test_a_finetuning_run_is_repeated_too(run: Any, model: Path, tmp_path: Path) -> None:
    rows = [{"text": "to be or not to be"}, {"text": "that is the question"}, {"text": "to suffer"}] * 4
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = (f"--model={model}", f"--data={tmp_path / 'rows.jsonl'}", "--epochs=2", "--lora-rank=2", "--batch-size=2")
    assert run("finetune", *options, f"--out={tmp_path / 'first'}").code == 0
    written = tomllib.loads((tmp_path / "first" / "config.toml").read_text(encoding="utf-8"))
    assert (written["epochs"], written["lora_rank"], written["model"]) == (2.0, 2, str(model))
    assert "steps" not in written
    command = ("finetune", "--config", tmp_path / "first" / "config.toml")
    assert run(*command, f"--out={tmp_path / 'second'}").code == 0
    assert_same_outcome(tmp_path / "second", tmp_path / "first")
    assert run(*command, f"--out={tmp_path / 'third'}", "--steps=1").code == 0


def test_a_run_of_epochs_is_repeated_too(run: Any, text: Path, tmp_path: Path) -> None:
    options = [option for option in OPTIONS if not option.startswith("--steps")]
    assert run("train", *options, "--epochs=0.1", f"--data={text}", f"--out={tmp_path / 'first'}").code == 0
    written = tomllib.loads((tmp_path / "first" / "config.toml").read_text(encoding="utf-8"))
    assert (written["epochs"], written["order"]) == (0.1, "epochs")
    command = ("train", "--config", tmp_path / "first" / "config.toml", f"--out={tmp_path / 'second'}")
    assert run(*command).code == 0
    assert_same_outcome(tmp_path / "second", tmp_path / "first")


def test_what_is_written_is_read_again() -> None:
    texts = ["plain", 'quotes " and \\', "lines\n\t\x7f\x00", "文 é 🙂", ""]
    for value in (*texts, True, False, 3, 1e-05, 1e16, 0.1, texts, []):
        assert tomllib.loads(f"a = {to_toml(value)}")["a"] == value
