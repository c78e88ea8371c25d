"""Runs with each optimizer, schedule and an average of the weights: resumed, evaluated, saved, refused."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.helpers import OPTIONS, QUICK, TRAIN, assert_same_outcome, make_trainer, write_text
from tinygpt import UsageError
from tinygpt.cli import main
from tinygpt.errors import CheckpointError, RangeError
from tinygpt.optim import SGD, Adam, AdamW, Lion, Muon
from tinygpt.training import PRESETS, CheckpointFolder, TrainingConfig, add_run_options, choose_settings, evaluation
from tinygpt.training.optimizers import MAKERS, make_schedule
from tinygpt.training.settings.config import LEARNING_RATES, new_settings

KINDS: list[dict[str, Any]] = [
    {"optimizer": "adam", "l1": 1e-4},
    {"optimizer": "sgd", "momentum": 0.8, "nesterov": True, "l2": 1e-3, "schedule": "inverse_sqrt"},
    {"optimizer": "lion", "lr": 1e-3, "layer_decay": 0.7, "schedule": "wsd"},
    {"optimizer": "muon", "lr": 0.02, "adamw_lr": 3e-3, "ema": 0.9},
    {"optimizer": "adamw", "ema": 0.8, "eval_every": 3, "schedule": "linear"},
]


@pytest.mark.slow
@pytest.mark.parametrize("settings", KINDS, ids=lambda settings: settings["optimizer"])
def test_a_run_that_was_stopped_resumes_bit_for_bit(tmp_path: Path, settings: dict[str, Any]) -> None:
    make_trainer(tmp_path / "whole", **settings).run()
    stopped = make_trainer(tmp_path / "stopped", **settings)

    def stop(record: dict[str, Any]) -> None:
        if record["step"] >= 9:
            raise KeyError("stop")

    stopped.callbacks.append(stop)
    with pytest.raises(UsageError, match="stop"):
        stopped.run()
    resumed = make_trainer(tmp_path / "stopped", **settings)
    resumed.resume()
    assert 0 < resumed.state.step < 20
    resumed.run()
    assert_same_outcome(tmp_path / "stopped", tmp_path / "whole")


def test_the_settings_reach_the_optimizer(tmp_path: Path) -> None:
    assert set(MAKERS) == set(LEARNING_RATES)
    common: dict[str, Any] = {"weight_decay": 0.3, "l1": 0.1, "l2": 0.2, "beta1": 0.7, "beta2": 0.8, "layer_decay": 0.5}
    for name, kind in {"adamw": AdamW, "adam": Adam, "lion": Lion, "sgd": SGD, "muon": Muon}.items():
        own = {"momentum": 0.6, "nesterov": False} if name in ("sgd", "muon") else {}
        own |= {"adamw_lr": 5e-3} if name == "muon" else {}
        made = make_trainer(tmp_path / name, optimizer=name, **common, **own).optimizer
        assert type(made) is kind
        for setting, value in {"lr": 1e-2, "weight_decay": 0.3, "l1": 0.1, "l2": 0.2, **own}.items():
            assert getattr(made, setting, value) == value
        assert getattr(made, "betas", (0.7, 0.8)) == (0.7, 0.8)
        assert made.slots[0].lr_scale == 0.5**3
        if isinstance(made, Muon):
            assert made.adamw_scale == 0.5
    assert make_trainer(tmp_path / "default", optimizer="sgd").optimizer.momentum == 0.9  # type: ignore[attr-defined]


def test_the_learning_rate_that_is_not_given_is_the_optimizers() -> None:
    for name, lr in LEARNING_RATES.items():
        assert TrainingConfig(optimizer=name).lr == lr
    preset = {"lr": 6e-4, "steps": 5}
    assert new_settings(preset, {"optimizer": "adamw"}) == {"lr": 6e-4, "steps": 5, "optimizer": "adamw"}
    assert new_settings(preset, {"optimizer": "muon"}) == {"steps": 5, "optimizer": "muon"}  # 6e-4 is for AdamW
    assert new_settings(preset, {"optimizer": "muon", "lr": 1.0}) == {"steps": 5, "optimizer": "muon", "lr": 1.0}
    fast = {"optimizer": "muon", "momentum": 0.9, "adamw_lr": 1e-3}
    assert new_settings(fast, {"optimizer": "adamw"}) == {"optimizer": "adamw"}
    assert TrainingConfig(**new_settings(PRESETS["fast"].training, {"optimizer": "sgd"})).lr == LEARNING_RATES["sgd"]


def test_the_preset_fast_is_tiny_with_another_training() -> None:
    """A figure of one beside the other compares the training alone."""
    assert PRESETS["fast"].model == PRESETS["tiny"].model
    assert TrainingConfig(**PRESETS["fast"].training).optimizer == "muon"
    assert TrainingConfig(**PRESETS["tiny"].training).optimizer == "adamw"


def test_the_decay_fraction_reaches_the_schedule() -> None:
    schedule = make_schedule(
        TrainingConfig(schedule="wsd", lr=1.0, min_lr=0.0, warmup_steps=0, steps=10, decay_fraction=0.5)
    )
    assert [schedule(step) for step in (0, 5, 6)] == [1.0, 1.0, pytest.approx(0.8)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer": "rmsprop"}, "optimizer must be one of adamw, adam, sgd, lion, muon, not 'rmsprop'"),
        ({"momentum": 0.9}, "momentum is a setting of sgd and muon, and the optimizer is adamw: leave out momentum"),
        ({"optimizer": "lion", "nesterov": False}, "nesterov is a setting of sgd and muon"),
        ({"optimizer": "sgd", "adamw_lr": 1e-3}, "adamw_lr is a setting of muon, and the optimizer is sgd"),
        ({"optimizer": "sgd", "nesterov": 1}, "nesterov must be True or False, not 1"),
        ({"ema": 1.0}, "ema must be at least 0 and below 1, not 1"),
        ({"l1": -1.0}, "l1 must be at least 0"),
        ({"layer_decay": 0.0}, "layer_decay must be above 0 and at most 1, not 0"),
        ({"decay_fraction": 2.0}, "decay_fraction must be above 0 and at most 1"),
        ({"schedule": "step"}, "schedule must be one of constant, linear, cosine, inverse_sqrt, wsd"),
    ],
)
def test_settings_without_sense_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        TrainingConfig(**settings)
    assert issubclass(RangeError, UsageError)


# The average ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_evaluations_and_checkpoints_have_the_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, trainer = make_trainer(tmp_path / "plain"), make_trainer(tmp_path / "run", ema=0.7)
    average = {name: p.data.copy() for name, p in trainer.model.named_parameters()}
    seen: list[dict[str, np.ndarray]] = []

    def watched(model: Any, *rest: Any) -> Any:
        seen.append({name: p.data.copy() for name, p in model.named_parameters()})
        return measured(model, *rest)

    measured = evaluation.mean_loss
    monkeypatch.setattr("tinygpt.training.objective.mean_loss", watched)
    for t in range(1, 6):  # the same steps as without an average
        plain.steps.step()
        trainer.steps.step()
        decay = min(0.7, (1 + t) / (10 + t))
        for name, p in plain.model.named_parameters():
            average[name] = decay * average[name] + (1 - decay) * p.data
            assert np.array_equal(p.data, dict(trainer.model.named_parameters())[name].data)
    trainer.run()
    loaded = make_trainer(tmp_path / "run", ema=0.7)
    for name, array in seen[0].items():
        np.testing.assert_allclose(array, average[name], rtol=1e-5, atol=1e-7)
    best = loaded.checkpoints.load("best").model
    trainer.load_best()
    for name, p in trainer.model.named_parameters():
        assert np.array_equal(p.data, best[name])
    latest = loaded.checkpoints.load("latest")
    assert not np.array_equal(latest.model["wte.weight"], latest.optimizer["weights.wte.weight"])


def test_load_best_gives_the_average_of_the_last_step(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", ema=0.5, steps=5)
    trainer.run()
    assert trainer.state.best_step == trainer.state.step == 5
    trainer.load_best()
    saved = trainer.checkpoints.load("best").model
    assert all(np.array_equal(p.data, saved[name]) for name, p in trainer.model.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["array", "steps"])
def test_a_checkpoint_without_the_weights_beside_its_average_is_refused(tmp_path: Path, missing: str) -> None:
    trainer = make_trainer(tmp_path / "run", ema=0.5, steps=5)
    trainer.run()
    checkpoint = trainer.checkpoints.load("latest")
    if missing == "array":
        del checkpoint.optimizer["weights.wte.weight"]
    else:
        del checkpoint.state["ema_steps"]
    with pytest.raises(CheckpointError, match="does not fit"):
        make_trainer(tmp_path / "run", ema=0.5, steps=5).resume(checkpoint)
    checkpoint.state["ema_steps"] = "5"
    with pytest.raises(CheckpointError, match="ema_steps is '5', not a whole number"):
        make_trainer(tmp_path / "run", ema=0.5, steps=5).resume(checkpoint)


# Resuming -------------------------------------------------------------------------------------------

NEWER = (
    "optimizer", "adamw_lr", "decay_fraction", "l1", "l2", "momentum", "nesterov", "layer_decay", "ema",
)  # fmt: skip


def older(trainer: Any) -> Any:
    """The latest checkpoint, as it was before there were these settings."""
    checkpoint = trainer.checkpoints.load("latest")
    del checkpoint.state["ema_steps"]
    for name in NEWER:
        del checkpoint.state["training_config"][name]
    return checkpoint


@pytest.mark.slow
def test_a_run_from_before_these_settings_is_resumed(tmp_path: Path) -> None:
    make_trainer(tmp_path / "whole", steps=20).run()
    trainer = make_trainer(tmp_path / "run", steps=10, decay_steps=20)
    trainer.run()
    resumed = make_trainer(tmp_path / "run", steps=20, decay_steps=20)
    resumed.resume(older(trainer))
    assert resumed.changed == {}
    resumed.run()
    ends = [CheckpointFolder(tmp_path / name).load("latest").model for name in ("whole", "run")]
    assert all(np.array_equal(array, ends[1][name]) for name, array in ends[0].items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer": "muon"}, "optimizer is 'adamw' there and 'muon' here"),
        ({"ema": 0.9}, "ema is 0.0 there and 0.9 here"),
        ({"layer_decay": 0.9}, "layer_decay is 1.0 there and 0.9 here"),
        ({"l1": 0.1}, "l1 is 0.0 there and 0.1 here"),
    ],
)
@pytest.mark.parametrize("before", [False, True])
def test_another_optimizer_is_refused(tmp_path: Path, settings: dict[str, Any], words: str, before: bool) -> None:
    trainer = make_trainer(tmp_path / "run", steps=5)
    trainer.run()
    checkpoint = older(trainer) if before else trainer.checkpoints.load("latest")
    with pytest.raises(CheckpointError, match=f"has a different configuration: {words}"):
        make_trainer(tmp_path / "run", **settings).resume(checkpoint)


def code_of(*arguments: str) -> Any:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return end.value.code


@pytest.mark.slow
def test_the_command_line_has_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, out = write_text(tmp_path / "text.txt"), tmp_path / "run"
    common = ["train", f"--data={text}", f"--out={out}", *[o for o in OPTIONS if not o.startswith("--lr")]]
    given = ["--optimizer=muon", "--momentum=0.9", "--no-nesterov", "--l1=1e-5", "--l2=1e-5", "--layer-decay=0.9"]
    assert code_of(*common, *given, "--ema=0.9", "--schedule=wsd", "--decay-fraction=0.5", "--adamw-lr=0.01") == 0
    state = CheckpointFolder(out).load("latest").state["training_config"]
    wanted = {"optimizer": "muon", "lr": 0.02, "momentum": 0.9, "nesterov": False, "ema": 0.9, "adamw_lr": 0.01}
    assert {name: state[name] for name in wanted} == wanted
    capsys.readouterr()
    assert code_of("train", f"--out={out}", "--resume", "--optimizer=lion") == 2
    assert "has a different configuration: optimizer is 'muon' there and 'lion' here" in capsys.readouterr().err
    assert code_of(*common, "--overwrite", "--momentum=0.9") == 2
    assert "momentum is a setting of sgd and muon" in capsys.readouterr().err
    assert code_of("train", f"--out={out}", "--resume", "--optimizer=muon", "--steps=14") == 0


def test_a_preset_gives_no_learning_rate_to_another_optimizer(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_run_options(parser, out=str(tmp_path / "{preset}"))
    options = parser.parse_args(["--preset=gpt2", "--optimizer=lion", f"--data={write_text(tmp_path / 'text.txt')}"])
    settings = choose_settings(options)
    with settings.folder:
        assert settings.training.lr == LEARNING_RATES["lion"]
        assert dataclasses.asdict(settings.training)["warmup_steps"] == 200
    assert len(TRAIN) > QUICK["steps"]
