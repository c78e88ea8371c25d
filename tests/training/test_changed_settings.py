"""Runs that go on with other settings: more steps, another rate, steps that would train nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.helpers import copy_of
from tests.training.helpers import OPTIONS, failing_at, make_trainer
from tinygpt.errors import UsageError
from tinygpt.training import (
    CheckpointFolder,
    DivergedError,
    Trainer,
    read_metrics,
)

pytestmark = pytest.mark.usefixtures("without_picture")


def notes(trainer: Trainer) -> str:
    """What was said beside the evaluations."""
    return "\n".join(line for line in trainer.stream.getvalue().splitlines() if "validation loss" not in line)


def test_the_same_settings_with_more_steps(tmp_path: Path) -> None:
    """The decay ends where it did, and it is said what that means; with decay_steps it is stretched."""
    make_trainer(tmp_path, steps=10).run()
    longer = make_trainer(tmp_path, steps=15)  # decay_steps follows from steps in both
    longer.resume()
    assert longer.run().step == 15
    assert longer.optimizer.lr == 1e-3
    assert notes(longer) == (
        "step 10: the learning rate ends its decay at step 10: steps 10 to 15 train at min_lr 0.001; set decay_steps "
        "to 15 to stretch the decay, or a higher min_lr"
    )
    stretched = make_trainer(tmp_path, steps=20, decay_steps=20)
    stretched.resume()
    stretched.run()
    assert notes(stretched) == "step 15: decay_steps is now 20; it was 10"
    rates = {r["step"]: r["lr"] for r in read_metrics(tmp_path / "metrics.jsonl") if "lr" in r}
    assert rates[12] == rates[15] == 1e-3 < rates[18]


def test_a_lower_rate_after_the_run_diverged(tmp_path: Path) -> None:
    """The advice can be followed, is heard, and stands in the metrics and the checkpoint."""
    trainer = make_trainer(tmp_path)
    trainer.callbacks.append(failing_at(9, "loss", KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    trainer.model.wte.weight.data[...] = np.nan
    with pytest.raises(DivergedError, match=r"the checkpoint of step 8 is in .*: resume it with a lower lr"):
        trainer.steps.step()
    lower = make_trainer(tmp_path, lr=2e-3, grad_clip=0.5)
    lower.resume()
    lower.run()
    said = [f"step 8: {name} is now {now}; it was {before}" for name, before, now in (
        ("lr", 0.01, 0.002), ("min_lr", 0.001, 0.0002), ("grad_clip", 1.0, 0.5))]  # fmt: skip
    assert notes(lower).splitlines() == said
    (record,) = [r for r in read_metrics(tmp_path / "metrics.jsonl") if "changed" in r]
    assert record == {"step": 8, "changed": {"lr": [0.01, 0.002], "min_lr": [0.001, 0.0002], "grad_clip": [1.0, 0.5]}}
    assert CheckpointFolder(tmp_path).load().state["training_config"]["lr"] == 2e-3
    assert max(r["lr"] for r in read_metrics(tmp_path / "metrics.jsonl") if "lr" in r and r["step"] > 9) <= 2e-3


def test_nothing_saved_nothing_to_resume(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.model.wte.weight.data[0] = np.nan
    with pytest.raises(DivergedError, match="nothing was saved yet: start again with a lower lr") as caught:
        trainer.steps.step()
    assert "resume" not in str(caught.value)


def test_a_min_lr_that_was_given_stays(tmp_path: Path) -> None:
    make_trainer(tmp_path, steps=10, min_lr=5e-3).run()
    again = make_trainer(tmp_path, steps=12)
    again.resume()
    assert again.config.min_lr == 5e-3
    assert again.changed == {}


def test_steps_that_would_change_nothing_are_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path, steps=10, min_lr=0.0).run()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    longer = make_trainer(tmp_path, steps=20, min_lr=0.0)
    longer.resume()
    with pytest.raises(UsageError, match=r"steps 10 to 20 would change nothing: the learning rate .*decay_steps to 20"):
        longer.run()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_run_shorter_than_its_warm_up_says_so(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, steps=3, warmup_steps=99)
    trainer.run()
    assert "the warm-up of 99 steps does not end within the 3 steps of this run" in notes(trainer)
    assert "only rises to 0.0003" in notes(trainer)
    assert trainer.optimizer.lr == pytest.approx(3e-4)


# The command line -------------------------------------------------------------------------------


def test_resume_with_other_rates(run: Any, model: Path, tmp_path: Path) -> None:
    folder = copy_of(model, tmp_path / "copy")
    answer = run("train", "--resume", f"--out={folder}", "--steps=15", "--lr=0.002", "--decay-steps=15")
    assert answer.code == 0
    assert "step 12: lr is now 0.002; it was 0.01" in answer.err
    assert "step 12: min_lr is now 0.0002; it was 0.001" in answer.err  # it followed from lr
    answer = run("train", "--resume", f"--out={folder}", "--steps=18")
    assert "steps 15 to 18 train at min_lr 0.0002; set decay_steps to 18" in answer.err
    assert "step 15: lr" not in answer.err


def test_a_run_that_has_nothing_left_to_train_says_why(run: Any, model: Path, text: Path, tmp_path: Path) -> None:
    folder = copy_of(model, tmp_path / "copy")
    assert "Nothing to train: the run already finished at step 12" in run("train", "--resume", f"--out={folder}").out
    options = [*OPTIONS, "--steps=400", "--eval-every=2", "--patience=2", "--lr=1", "--min-lr=1"]
    early = tmp_path / "early"
    answer = run("train", *options, f"--data={text}", f"--out={early}")
    assert "stopped early, with no better result in the last 2 evaluations, at step" in answer.out
    answer = run("train", "--resume", f"--out={early}", "--steps=800")
    assert answer.code == 0
    assert "Nothing to train: the run stopped early at step" in answer.out
    assert "patience is still 2: set a larger patience, or 0, to continue" in answer.out
    step = CheckpointFolder(early).load().step
    assert run("train", "--resume", f"--out={early}", f"--steps={step + 3}", "--patience=0").code == 0
    assert CheckpointFolder(early).load().step == step + 3


@pytest.mark.slow
def test_the_loss_at_the_end_is_of_the_weights_that_are_used(run: Any, tmp_path: Path) -> None:
    (tmp_path / "small.txt").write_text("".join(np.random.default_rng(0).choice(list("abcdef"), 700)), encoding="utf-8")
    options = [*OPTIONS, "--steps=200", "--eval-every=20", "--lr=0.05", "--eval-batches=0", "--dropout=0"]
    answer = run("train", *options, f"--data={tmp_path / 'small.txt'}", f"--out={tmp_path / 'run'}")
    index = json.loads((tmp_path / "run" / "checkpoints.json").read_text(encoding="utf-8"))
    assert index["best"]["step"] < index["latest"]["step"]  # overfitted
    said = answer.out.partition("validation text: ")[2].split("\n")[0]
    assert said.endswith(f"(the best weights, from step {index['best']['step']})")
    assert f"loss {said.split()[0]} nats" in run("eval", f"--model={tmp_path / 'run'}").out
