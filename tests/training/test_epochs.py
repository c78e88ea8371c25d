"""Runs over epochs, packed rows, and the evaluation at a run's end."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.helpers import assert_one_sentence
from tests.training.helpers import OPTIONS, TRAIN, VERSE, assert_same_outcome, make_trainer, outcome, write_text
from tinygpt.data import DataLoader, RandomBatches, open_tokens, split
from tinygpt.training import CheckpointFolder, final_evaluation

pytestmark = pytest.mark.usefixtures("without_picture")
BY_EPOCHS = [option for option in OPTIONS if not option.startswith("--steps")]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Sixty short documents."""
    path = tmp_path / "rows.jsonl"
    lines = [{"text": VERSE[number : number + 3 + number % 4]} for number in range(60)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def settings_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = CheckpointFolder(folder).load("latest").state["training_config"]
    return config


def test_the_default_draws_as_before(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    assert type(trainer.batches) is RandomBatches
    for part, wanted in zip(trainer.batches.batch(4), RandomBatches(TRAIN, 3, 8, 7).batch(4), strict=True):
        np.testing.assert_array_equal(part, wanted)


def test_a_trainer_takes_each_window_once_an_epoch_and_resumes(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"order": "epochs", "gradient_accumulation": 2, "steps": 13, "decay_steps": 13}
    whole = make_trainer(tmp_path / "whole", **settings)
    assert isinstance(whole.batches, DataLoader)
    assert whole.batches.windows_per_epoch == (len(TRAIN) - 1) // 8
    seen: list[np.ndarray] = []
    drawn = whole.batches.batch
    whole.batches.batch = lambda index: seen.append(drawn(index)[0]) or drawn(index)  # type: ignore[func-returns-value,method-assign]
    whole.run()
    firsts = np.concatenate(seen)
    assert len(firsts) == 13 * 6
    epoch = np.concatenate([inputs for inputs, _ in whole.batches.epoch(0)])
    np.testing.assert_array_equal(firsts[: len(epoch)], epoch)
    make_trainer(tmp_path / "parts", **{**settings, "steps": 5}).run()  # before the first epoch ends
    again = make_trainer(tmp_path / "parts", **settings)
    again.resume()
    again.run()
    for which in ("latest model wte.weight", "latest optimizer m.wte.weight"):
        assert outcome(tmp_path / "parts")[which] == outcome(tmp_path / "whole")[which]


@pytest.mark.slow
def test_epochs_give_the_steps(run: Any, tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt")
    command = ("train", str(text), *BY_EPOCHS, "--gradient-accumulation=2")
    answer = run(*command, "--epochs=2", f"--out={tmp_path / 'run'}")
    assert answer.code == 0, answer.err
    train = split(open_tokens(tmp_path / "run" / "tokens.npy"), 0.1)[0]
    windows = (len(train) - 1) // 8
    steps = -(-2 * windows // 6)
    assert f"Run:   steps 0 to {steps}, each 2 x 3 x 8 tokens" in answer.out
    assert f"Rows:  {steps * 6 / windows:.2f} epochs of {windows} windows, {windows / 6:.1f} steps each" in answer.out
    config = settings_of(tmp_path / "run")
    assert (config["steps"], config["decay_steps"], config["order"]) == (steps, steps, "epochs")
    # More epochs: the same as so many steps, and the decay stays where it was.
    assert run("train", "--resume", "--epochs=3", f"--out={tmp_path / 'run'}").code == 0
    config = settings_of(tmp_path / "run")
    assert (config["steps"], config["decay_steps"]) == (-(-3 * windows // 6), steps)
    by_steps = (f"--steps={config['steps']}", f"--decay-steps={steps}", "--order=epochs")
    assert run(*command, *by_steps, f"--out={tmp_path / 'steps'}").code == 0
    ours, theirs = outcome(tmp_path / "run"), outcome(tmp_path / "steps")
    assert ours["latest model wte.weight"] == theirs["latest model wte.weight"]
    answer = run("train", "--resume", "--epochs=1", f"--out={tmp_path / 'run'}")
    assert_one_sentence(answer, f"already at step {config['steps']}: 1 epochs would end at step .*, so give more")


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_windows(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = write_text(tmp_path / "text.txt")
    command = ("train", str(text), *BY_EPOCHS, "--epochs=0.5")
    assert run(*command, f"--out={tmp_path / 'whole'}").code == 0
    monkeypatch.setattr(DataLoader, "batch", stopping_at(6, DataLoader.batch))
    answer = run(*command, f"--out={tmp_path / 'run'}")
    assert answer.code == 130, answer.err
    assert answer.out.splitlines()[-1].strip().endswith(f"train --resume --out {tmp_path / 'run'}")
    monkeypatch.undo()
    assert run("train", "--resume", f"--out={tmp_path / 'run'}").code == 0
    assert_same_outcome(tmp_path / "run", tmp_path / "whole")


def stopping_at(index: int, batch: Any) -> Any:
    """DataLoader.batch, with a Ctrl-C before the batch of this index."""

    def stop(self: DataLoader, number: int) -> Any:
        if number == index:
            os.kill(os.getpid(), signal.SIGINT)
        return batch(self, number)

    return stop


def test_contradictions(run: Any, tmp_path: Path) -> None:
    text = str(write_text(tmp_path / "text.txt"))
    out = f"--out={tmp_path / 'run'}"
    for options, words in (
        (("--epochs=1", "--steps=5"), "give either --epochs or --steps, not both"),
        (("--epochs=1", "--order=random"), "--order random contradicts it: leave one out"),
        (("--epochs=0",), "epochs must be above 0 and at most 1,000,000, not 0"),
        (("--epochs=nan",), "epochs must be above 0 and at most 1,000,000, not nan"),
        (("--pack",), "this text does not consist of documents .*: leave pack out"),
        (("--final-eval=some",), "must be a number of batches, whole or none, not 'some'"),
        (("--final-eval=0",), "must be a number of batches, whole or none, not '0'"),
    ):
        assert_one_sentence(run("train", text, *BY_EPOCHS, *options, out), words)
        assert not (tmp_path / "run").exists()
    assert run("train", text, *OPTIONS, out).code == 0
    answer = run("train", "--resume", "--epochs=2", out)
    assert_one_sentence(answer, "order")
    assert run("train", "--resume", "--steps=12", out).code == 0


@pytest.mark.slow
def test_the_configuration_repeats_epochs(run: Any, tmp_path: Path) -> None:
    command = ("train", str(write_text(tmp_path / "text.txt")), *BY_EPOCHS, "--epochs=0.5", "--final-eval=2")
    assert run(*command, f"--out={tmp_path / 'run'}").code == 0
    answer = run("train", f"--config={tmp_path / 'run' / 'config.toml'}", f"--out={tmp_path / 'again'}")
    assert answer.code == 0, answer.err
    assert "Loss over 2 batches" in answer.out
    assert_same_outcome(tmp_path / "again", tmp_path / "run")
    longer = run("train", f"--config={tmp_path / 'run' / 'config.toml'}", "--steps=2", f"--out={tmp_path / 'steps'}")
    assert "steps 0 to 2," in longer.out


# Packed rows ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_packed_documents(run: Any, rows: Path, tmp_path: Path) -> None:
    command = ("train", str(rows), *BY_EPOCHS, "--block-size=16", "--epochs=2")
    apart, packed = (run(*command, *more, f"--out={tmp_path / name}") for name, more in (
        ("apart", ()), ("packed", ("--pack",)),
    ))  # fmt: skip
    assert apart.code == packed.code == 0, apart.err + packed.err
    train = split(open_tokens(tmp_path / "packed" / "tokens.npy"), 0.1)[0]
    for answer, name, pack in ((apart, "apart", False), (packed, "packed", True)):
        loader = DataLoader(train, 3, 16, pack=pack)
        places = loader.windows_per_epoch * 16
        waste = places - loader.target_count
        assert f"epochs of {loader.windows_per_epoch} windows" in answer.out
        assert f"steps 0 to {-(-2 * loader.windows_per_epoch // 3)}, each 1 x 3" in answer.out
        assert f"{waste} of {places} positions ({waste / places:.1%}) are padding" in answer.out
        assert ("--pack puts several documents into a row" in answer.out) == (not pack)
        assert settings_of(tmp_path / name)["pack"] is pack
    assert DataLoader(train, 3, 16, pack=True).windows_per_epoch < 0.6 * DataLoader(train, 3, 16).windows_per_epoch
    assert run(*command[:-1], "--pack", "--steps=3", f"--out={tmp_path / 'drawn'}").code == 0  # rows drawn at random
    across = run(*command, "--pack", "--cross-documents", f"--out={tmp_path / 'across'}")
    assert_one_sentence(across, "leave pack out")


def test_both_are_evaluated_alike(tmp_path: Path) -> None:
    """Packing is for training: losses of both kinds of runs are comparable."""
    tokens = np.where(TRAIN == 0, 10, TRAIN)
    trainers = []
    for name, pack in (("apart", False), ("packed", True)):
        text = Ended(tokens)
        trainer = make_trainer(tmp_path / name, train=text, pack=pack)
        trainers.append(trainer)
    a, b = (list(trainer.validation) for trainer in trainers)
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
    assert not np.array_equal(trainers[0].batches.batch(0)[0], trainers[1].batches.batch(0)[0])


class Ended(np.ndarray):
    """Tokens of which 10 ends a document."""

    end_token = 10

    def __new__(cls, tokens: np.ndarray) -> Ended:
        return tokens.view(cls)


# The evaluation at the end --------------------------------------------------------------------------


def test_the_last_evaluation_is_bounded_or_left_out(run: Any, tmp_path: Path) -> None:
    text = str(write_text(tmp_path / "text.txt"))
    outs = [
        run("train", text, *OPTIONS, f"--final-eval={how}", f"--out={tmp_path / how}").out for how in ("none", "3")
    ]  # fmt: skip
    assert "Loss over" not in outs[0]
    assert "the best validation loss was" in outs[0]
    assert "sample --model" in outs[0]
    assert "Loss over 3 batches of the validation text: " in outs[1]


@pytest.mark.slow
def test_ctrl_c_in_the_last_evaluation(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = str(write_text(tmp_path / "text.txt"))
    batch = final_evaluation.SequentialBatches.batch

    def stop(self: Any, index: int) -> Any:
        if index == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return batch(self, index)

    monkeypatch.setattr(final_evaluation.SequentialBatches, "batch", stop)
    answer = run("train", text, *OPTIONS, f"--out={tmp_path / 'run'}")
    assert answer.code == 130
    said = answer.out.splitlines()
    result = next(number for number, line in enumerate(said) if line.startswith("Training finished at step 12"))
    assert said[result + 1].startswith("Stopped after 2 of ")
    assert f" eval --model {tmp_path / 'run'}" in said[result + 1]
    assert "Traceback" not in answer.err
    monkeypatch.undo()
    assert run("eval", f"--model={tmp_path / 'run'}").code == 0
    assert "Nothing to train" in run("train", "--resume", f"--out={tmp_path / 'run'}", "--final-eval=none").out


def test_the_last_evaluation_tells_how_far_it_is(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(final_evaluation, "_LINE", 0.0)
    answer = run("train", str(write_text(tmp_path / "text.txt")), *OPTIONS, f"--out={tmp_path / 'run'}")
    assert "evaluating the whole validation text: 1 of " in answer.err
