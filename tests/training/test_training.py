"""The training loop: it does what its documentation says, and goes on bit for bit."""

from __future__ import annotations

import dataclasses
import io
import json
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.helpers import QUICK, SHAPE, TOKENS, TRAIN, VALIDATION, assert_same_outcome, make_trainer
from tinygpt.data import RandomBatches
from tinygpt.errors import CheckpointError, UsageError
from tinygpt.gpt import GPT, GPTConfig
from tinygpt.graph import no_grad
from tinygpt.optim import AdamW, clip_grad_norm, schedules
from tinygpt.training import (
    CheckpointFolder,
    FixedBatches,
    StopRequest,
    Trainer,
    TrainingConfig,
    evaluate,
    mean_loss,
    read_metrics,
)
from tinygpt.training import loop as loop_module
from tinygpt.training import objective as objective_module


def raise_signal_at(step: int, key: str, number: int = signal.SIGINT) -> Any:
    """A callback: the signal comes when the record of this step with this key is written."""

    def callback(record: dict[str, Any]) -> None:
        if record["step"] == step and key in record:
            signal.raise_signal(number)

    return callback


# Settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number, not 2.5"),
        ({"steps": -1}, "steps must be at least 1"),
        ({"lr": float("nan")}, "lr must be above 0, not nan"),
        ({"lr": float("inf")}, "lr must be above 0, not inf"),
        ({"lr": "fast"}, "lr must be a number, not 'fast'"),
        ({"min_lr": 1.0}, "min_lr must be at most lr"),
        ({"beta1": 1.0}, "beta1 must be at least 0 and below 1"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0"),
        ({"schedule": "step"}, "schedule must be one of"),
        ({"validation_fraction": 1.0}, "validation_fraction must be above 0 and below 1"),
        ({"warmup_steps": 50, "decay_steps": 50}, "decay_steps must be above warmup_steps = 50"),
        ({"detect_anomaly": 1}, "detect_anomaly must be True or False"),
        ({"seed": True}, "seed must be a whole number"),
    ],
)
def test_settings_without_sense_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        TrainingConfig(**settings)


def test_settings_that_follow_from_others() -> None:
    config = TrainingConfig(lr=4e-3, steps=300)
    assert (config.min_lr, config.decay_steps) == (4e-4, 300)
    assert TrainingConfig.from_dict(dataclasses.asdict(config)) == config
    with pytest.raises(UsageError, match="no setting colour"):
        TrainingConfig.from_dict({"colour": 1})


# The loop ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("clip", [0.5, 0.0])
def test_steps_are_those_of_the_documentation(tmp_path: Path, accumulation: int, clip: float) -> None:
    """The same run, written out with the library's parts: bit for bit the same where nothing is averaged."""
    settings = {"gradient_accumulation": accumulation, "grad_clip": clip, "steps": 6}
    trainer = make_trainer(tmp_path / "run", model=GPT(GPTConfig(11, **SHAPE), seed=7, dtype="float64"), **settings)
    trainer.run()
    model = GPT(GPTConfig(11, **SHAPE), seed=7, dtype="float64")
    optimizer = AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    schedule = schedules.Cosine(1e-2, 1e-3, warmup_steps=3, total_steps=6)
    batches = RandomBatches(TRAIN, 3, 8, seed=7)
    for step in range(6):
        for i in range(accumulation):
            loss = model.loss(*batches.batch(step * accumulation + i)) * (1 / accumulation)
            loss.backward()
        if clip:
            clip_grad_norm(model.parameters(), clip)
        optimizer.lr = schedule(step)
        optimizer.step()
        optimizer.zero_grad()
    for (name, found), expected in zip(trainer.model.named_parameters(), model.parameters(), strict=True):
        np.testing.assert_allclose(found.data, expected.data, rtol=1e-9, atol=1e-12, err_msg=name)


def test_a_run_learns_and_leaves_its_files(tmp_path: Path) -> None:
    tokens = np.tile(np.arange(10), 60)  # each token has one successor: the loss can go to zero
    trainer = make_trainer(tmp_path, train=tokens, steps=120, eval_every=40)
    trainer.validation = FixedBatches(tokens, 3, 8, 2)
    result = trainer.run()
    assert result.step == 120
    assert result.signal is None
    assert not result.stopped_early
    assert result.validation_loss is not None
    assert result.validation_loss < 0.5
    records = list(read_metrics(tmp_path / "metrics.jsonl"))
    assert [r["step"] for r in records if "validation_loss" in r] == [0, 40, 80, 120]
    training = [r for r in records if "loss" in r]
    assert [r["step"] for r in training] == list(range(3, 121, 3))
    assert training[-1]["tokens"] == 120 * 3 * 8
    assert training[-1]["loss"] < 1.0 < training[0]["loss"]
    assert trainer.model.training  # the evaluations have put it back


def test_the_evaluation_looks_at_the_same_part_each_time(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    assert mean_loss(trainer.model, trainer.validation) == mean_loss(trainer.model, trainer.validation)
    other = make_trainer(tmp_path, seed=8)
    for mine, theirs in zip(trainer.validation, other.validation, strict=True):
        np.testing.assert_array_equal(mine[0], theirs[0])  # runs with different seeds can be compared


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_the_loss_over_the_whole_text_counts_each_token_once(batch_size: int) -> None:
    model = GPT(GPTConfig(11, **SHAPE), seed=3, dtype="float64")
    total = 0.0
    with no_grad():
        model.eval()
        for begin in range(0, len(VALIDATION) - 1, 8):  # one stretch at a time, without padding
            piece = VALIDATION[begin : begin + 9].astype(np.int64)
            total += (len(piece) - 1) * model.loss(piece[None, :-1], piece[None, 1:]).item()
    model.train()
    assert evaluate(model, VALIDATION, batch_size) == pytest.approx(total / (len(VALIDATION) - 1), rel=1e-12)
    assert model.training


@pytest.mark.slow
def test_eval_batches_0_is_the_whole_validation_text(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, eval_batches=0, steps=2)
    result = trainer.run()
    assert result.validation_loss == evaluate(trainer.model, VALIDATION, 3)


@pytest.mark.slow
def test_early_stopping_keeps_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.4, 2.3, 1.0])
    monkeypatch.setattr(objective_module, "mean_loss", lambda *arguments: next(losses))
    result = make_trainer(tmp_path, steps=100, patience=3).run()
    assert result.stopped_early
    assert (result.step, result.best_step, result.best_loss) == (20, 5, 2.0)
    folder = CheckpointFolder(tmp_path)
    assert (folder.load("best").step, folder.load("latest").step) == (5, 20)
    assert "stopped early" in result.summary()


@pytest.mark.parametrize("which", ["train", "validation"])
def test_a_text_shorter_than_the_block_is_refused(tmp_path: Path, which: str) -> None:
    parts = {"train": TRAIN, "validation": VALIDATION} | {which: TOKENS[:8]}
    model = GPT(GPTConfig(11, **SHAPE))
    with pytest.raises(UsageError, match="8 tokens, but block_size 8 needs at least 9"):
        loop_module.Trainer(model, parts["train"], parts["validation"], TrainingConfig(**QUICK), tmp_path)


# Resuming ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    make_trainer(folder, gradient_accumulation=2).run()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("step", "key"), [(3, "loss"), (9, "loss"), (10, "validation_loss"), (18, "loss")])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed_is_undisturbed(
    tmp_path: Path, undisturbed: Path, step: int, key: str, number: int
) -> None:
    trainer = make_trainer(tmp_path, gradient_accumulation=2)
    trainer.callbacks.append(raise_signal_at(step, key, number))
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), threading.current_thread()
    result = trainer.run()
    assert (result.signal, result.step) == (number, step), (
        f"{trainer.config}, {trainer.state}, handlers were {handlers}"
    )
    assert result.summary().startswith(f"Training was interrupted at step {step} after ")
    assert CheckpointFolder(tmp_path).load().step == step
    again = make_trainer(tmp_path, gradient_accumulation=2)
    again.resume()
    assert again.run().signal is None
    assert_same_outcome(tmp_path, undisturbed)


@pytest.mark.slow
def test_interrupted_inside_an_evaluation(tmp_path: Path, undisturbed: Path) -> None:
    trainer = make_trainer(tmp_path, gradient_accumulation=2)
    batches = list(trainer.validation)

    def interrupted() -> Any:
        if trainer.state.step == 10:
            signal.raise_signal(signal.SIGINT)
        yield from batches

    class Once:
        def __iter__(self) -> Any:
            return interrupted()

    trainer.validation = Once()
    assert trainer.run().step == 10
    assert CheckpointFolder(tmp_path).load().state["progression"]["evaluated_at"] == 5
    again = make_trainer(tmp_path, gradient_accumulation=2)
    again.resume()
    again.run()
    assert_same_outcome(tmp_path, undisturbed)


@pytest.mark.slow
def test_metrics_written_after_the_checkpoint_are_dropped(tmp_path: Path, undisturbed: Path) -> None:
    trainer = make_trainer(tmp_path, gradient_accumulation=2)
    trainer.callbacks.append(raise_signal_at(9, "loss"))
    trainer.run()
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 12, "loss": 1.0}\n{"step": 15, "lo')  # as a kill leaves it
    again = make_trainer(tmp_path, gradient_accumulation=2)
    again.resume()
    again.run()
    assert_same_outcome(tmp_path, undisturbed)


@pytest.mark.slow
def test_metrics_that_somebody_removed_do_not_hinder(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.callbacks.append(raise_signal_at(9, "loss"))
    trainer.run()
    (tmp_path / "metrics.jsonl").unlink()
    for last in (15, 20):  # resumed twice: the second time counts on what the first has written
        again = make_trainer(tmp_path)
        if last == 15:
            again.callbacks.append(raise_signal_at(15, "loss"))
        again.resume()
        assert again.run().step == last
    steps = [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl") if "loss" in record]
    assert steps == [12, 15, 18]


@pytest.mark.slow
def test_more_steps_keep_the_schedule(tmp_path: Path) -> None:
    make_trainer(tmp_path / "first", steps=10).run()
    longer = make_trainer(tmp_path / "first", steps=20, decay_steps=10)
    longer.resume()
    longer.run()
    make_trainer(tmp_path / "direct", steps=20, decay_steps=10).run()
    first, direct = CheckpointFolder(tmp_path / "first").load(), CheckpointFolder(tmp_path / "direct").load()
    for name, array in direct.model.items():
        np.testing.assert_array_equal(first.model[name], array)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weight_decay": 0.2}, "weight_decay is 0.1 there and 0.2 here"),
        ({"batch_size": 4}, "batch_size is 3 there and 4 here"),
        ({"train": TRAIN[:-1]}, "of another text"),
        ({"model": GPT(GPTConfig(11, **(SHAPE | {"n_layer": 1})))}, "n_layer is 2 there and 1 here"),
        ({"model": GPT(GPTConfig(12, **SHAPE))}, "vocab_size is 11 there and 12 here"),
    ],
)
def test_another_run_can_not_be_resumed(
    tmp_path: Path, undisturbed: Path, settings: dict[str, Any], words: str
) -> None:
    trainer = make_trainer(tmp_path, gradient_accumulation=2, **settings)
    with pytest.raises(CheckpointError, match=words):
        trainer.resume(CheckpointFolder(undisturbed).load())


# Signals ----------------------------------------------------------------------------------------


def test_a_second_signal_stops_at_once() -> None:
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_follows_the_training_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the picture saves nothing that Ctrl-C would have to wait for."""
    monkeypatch.setattr(
        "tinygpt.training.monitoring.reporting.draw_loss_curve", lambda *_: signal.raise_signal(signal.SIGINT)
    )
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path, steps=3).run()
    assert CheckpointFolder(tmp_path).load().step == 3


@pytest.mark.slow
def test_training_works_outside_the_main_thread(tmp_path: Path) -> None:
    results = []
    thread = threading.Thread(target=lambda: results.append(make_trainer(tmp_path, steps=3).run()))
    thread.start()
    thread.join()
    assert results[0].step == 3


# The picture ------------------------------------------------------------------------------------


def test_the_loss_curve_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="draws with matplotlib, of the extra 'examples'")
    result = make_trainer(tmp_path, steps=5).run()
    assert (tmp_path / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    assert "loss_curve.png" in result.picture
    assert result._repr_png_() == (tmp_path / "loss_curve.png").read_bytes()
    (tmp_path / "loss_curve.png").unlink()
    assert result._repr_png_() is None


def test_without_matplotlib_one_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # the import fails as if it were not installed
    result = make_trainer(tmp_path, steps=5).run()
    assert result.step == 5
    assert "pip install matplotlib" in result.picture
    assert result._repr_png_() is None


@pytest.mark.usefixtures("without_picture")
def test_a_folder_that_is_missing_is_made_when_the_run_begins(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    folder = tmp_path / "out" / "run"
    trainer = Trainer(trainer.model, TRAIN, VALIDATION, trainer.config, folder, stream=io.StringIO())
    assert not folder.parent.exists()
    trainer.run()
    assert (folder / "metrics.jsonl").exists()
    (tmp_path / "file").write_text("")
    trainer = Trainer(trainer.model, TRAIN, VALIDATION, trainer.config, tmp_path / "file" / "run")
    with pytest.raises(UsageError, match=r"^cannot create the folder .*file.run: Not a directory$"):
        trainer.run()


def test_every_line_of_the_metrics_is_json(undisturbed: Path) -> None:
    for line in (undisturbed / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        assert "step" in json.loads(line)
