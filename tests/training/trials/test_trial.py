"""Trying a run: it changes no bit of it, and what it says is so."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.helpers import assert_one_sentence
from tests.training.helpers import ENVIRONMENT, OPTIONS, assert_same_outcome, make_trainer
from tinygpt.errors import RangeError, UsageError
from tinygpt.tokenizers import CharTokenizer
from tinygpt.training import CheckpointFolder
from tinygpt.training.storage import export
from tinygpt.training.trials import dry_run
from tinygpt.training.trials.dry_run import duration, measure_run, require_disk
from tinygpt.training.trials.lr_find import RangeTest, find_lr, suggestion
from tinygpt.training.trials.trial import on_trial, trial_step

pytestmark = pytest.mark.usefixtures("without_picture")


@pytest.fixture(autouse=True)
def without_rehearsed_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinygpt.training.trials.dry_run.draw_losses", lambda records, file: None)


@pytest.mark.parametrize("settings", [{}, {"ema": 0.5, "optimizer": "muon", "gradient_accumulation": 2}])
def test_a_trial_changes_no_bit_of_the_run(tmp_path: Path, settings: dict[str, Any]) -> None:
    make_trainer(tmp_path / "plain", **settings).run()
    trainer = make_trainer(tmp_path / "tried", **settings)
    find_lr(trainer, steps=12, shown=False)
    measure_run(trainer)
    assert not list((tmp_path / "tried").iterdir())
    trainer.run()
    assert_same_outcome(tmp_path / "tried", tmp_path / "plain")


@pytest.mark.slow
def test_a_trial_that_fails_in_the_middle_of_a_run_changes_nothing_either(tmp_path: Path) -> None:
    make_trainer(tmp_path / "plain").run()
    trainer = make_trainer(tmp_path / "tried")

    def fail() -> None:
        with on_trial(trainer):
            trial_step(trainer, 0.5)
            raise ZeroDivisionError

    def try_it(record: dict[str, Any]) -> None:
        if record["step"] == 9 and "loss" in record:
            with pytest.raises(ZeroDivisionError):
                fail()

    trainer.callbacks.append(try_it)
    trainer.run()
    assert_same_outcome(tmp_path / "tried", tmp_path / "plain")


def test_trial_steps_are_those_of_the_run(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "tried")
    with on_trial(trainer):
        found = [trial_step(trainer) for _ in range(3)]
    other = make_trainer(tmp_path / "stepped")
    with other.model.in_mode(True):
        assert found == [other.steps.step() for _ in range(3)]


# The range test ---------------------------------------------------------------------------------


def test_the_rates_rise_exponentially_and_the_loss_falls(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", batch_size=16)
    used = []
    step = trainer.optimizer.step

    def see(**settings: Any) -> None:
        used.append(trainer.optimizer.lr)
        step(**settings)

    trainer.optimizer.step = see  # type: ignore[method-assign]
    found = find_lr(trainer, 1e-4, 1.0, 41, shown=False)
    assert found.lrs == used
    np.testing.assert_allclose(np.diff(np.log(found.lrs)), math.log(1e4) / 40, rtol=1e-9)
    assert found.lrs[0] == 1e-4


def test_it_ends_where_the_loss_diverges(tmp_path: Path) -> None:
    found = find_lr(make_trainer(tmp_path / "run", optimizer="sgd", grad_clip=0.0), 1e-2, 1e12, 40, shown=False)
    assert found.ended
    assert len(found.lrs) < 40
    assert all(map(math.isfinite, found.losses))
    assert f"at {found.lrs[-1]:.2g} it diverges" in found.summary()


def test_the_suggestion_is_the_steepest_fall_before_the_lowest_loss() -> None:
    lrs = list(np.geomspace(1e-5, 1.0, 51))
    # A fall around 1e-2; behind the lowest loss, a rise and a much steeper fall.
    losses = [3 - math.tanh(math.log10(lr) + 2) if lr < 0.2 else 60 - 50 * lr for lr in lrs]
    assert suggestion(lrs, losses) == pytest.approx(1e-2, rel=0.3)
    noisy_start = [9.0, *losses[1:]]  # the loss of the first batch says nothing
    assert suggestion(lrs, noisy_start) == suggestion(lrs, losses)


def test_a_loss_that_only_rises_gives_no_suggestion() -> None:
    lrs = list(np.geomspace(1e-5, 1.0, 20))
    losses = list(np.linspace(1, 2, 20))
    assert suggestion(lrs, losses) is None
    assert "did not fall" in RangeTest(lrs, losses, losses, None, False).summary()


def test_a_first_loss_that_is_not_finite_is_said(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run")
    trainer.model.wte.weight.data[:] = np.nan  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="not finite before any step"):
        find_lr(trainer, shown=False)
    with pytest.raises(UsageError, match="at step 0 already"):
        measure_run(trainer)


@pytest.mark.parametrize("wrong", [{"first": 0.0}, {"first": 1.0, "last": 0.1}, {"last": math.inf}, {"steps": 9}])
def test_a_range_that_is_none_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(RangeError):
        find_lr(make_trainer(tmp_path / "run"), **wrong)


# What a run takes -------------------------------------------------------------------------------


def test_what_a_dry_run_counts(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", ema=0.5, freeze="wte")
    found = measure_run(trainer, final_batches=3, data=1000)
    weights = 4 * trainer.model.num_parameters()
    frozen = trainer.model.wte.weight.data.nbytes  # type: ignore[attr-defined]
    assert (found.weights, found.gradients) == (weights, weights - frozen)
    assert found.peak > found.weights + found.gradients + found.optimizer
    assert (found.steps, found.evaluations, found.tokens) == (20, 5, 24)
    assert found.seconds >= 20 * found.step + 3 * found.evaluation / 2
    trainer.run()
    saved = CheckpointFolder(tmp_path / "run").load("latest")
    assert found.checkpoint == sum(array.nbytes for array in (*saved.model.values(), *saved.optimizer.values()))
    assert found.disk == 3 * found.checkpoint + 1000


def test_the_peak_leaves_out_the_copy_that_the_trial_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinygpt.training.trials.dry_run._peak", lambda backend: 10**6)
    found = measure_run(make_trainer(tmp_path / "run"))
    assert found.peak == 10**6 - found.checkpoint


def test_the_peak_of_building_the_run_counts(tmp_path: Path) -> None:
    assert measure_run(make_trainer(tmp_path / "run"), so_far=10**12).peak == 10**12


@pytest.mark.parametrize("final", [None, 0])
def test_the_trial_ends_in_the_order_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, final: int | None
) -> None:
    """The export's copy of the weights is freed before the picture is drawn, whose memory matplotlib keeps."""
    order: list[str] = []

    def noted(word: str, does: Any = lambda *given: {}) -> Any:
        def call(*given: Any) -> Any:
            order.append(word)
            return does(*given)

        return call

    trainer = make_trainer(tmp_path / "run")
    trainer.tokenizer = CharTokenizer.from_text("abcdefghijk")
    monkeypatch.setattr(dry_run, "merged", noted("export"))
    monkeypatch.setattr(dry_run, "draw_losses", noted("picture"))
    monkeypatch.setattr(dry_run, "_weights_read", noted("read"))
    measure_run(trainer, final)
    tried, order[:] = list(order), []

    monkeypatch.setattr(CheckpointFolder, "load", noted("read", CheckpointFolder.load))
    monkeypatch.setattr(export, "merged", noted("export", export.merged))
    monkeypatch.setattr("tinygpt.training.monitoring.reporting.draw_loss_curve", noted("picture"))
    trainer.run()
    if final is not None:
        trainer.load_best()
    assert tried == order == ["read", "export", "picture", "read"][: 3 if final is None else 4]


# A process says at its end the most memory that it had. (A child's resource usage counts what its parent had.)
MEASURED = """
import atexit, sys
from tinygpt import cli
def tell():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
    print("VmHWM", 1024 * int(line.split()[1]) / 1e6)
atexit.register(tell)
cli.main(sys.argv[1:])
"""


def measured(*arguments: Any) -> tuple[str, float]:
    """The output of a command, and the most memory that its process had, in MB."""
    command = [sys.executable, "-c", MEASURED, *map(str, arguments)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    return done.stdout, float(done.stdout.split("VmHWM")[1])


@pytest.fixture(scope="module")
def heavy(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path, float]:
    """A run whose memory is that of its model: its command, its folder, and the most memory that it had."""
    shape = ["--block-size=32", "--n-layer=3", "--n-head=2", "--n-embd=320", "--batch-size=2", "--steps=2", "--lr=0.3"]
    command = ["train", *shape, "--eval-every=1", "--eval-batches=1", "--final-eval=1", f"--data={text}"]
    folder = tmp_path_factory.mktemp("heavy") / "run"
    return command, folder, measured(*command, "--out", folder)[1]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="a part of a process has a peak on Linux only")
@pytest.mark.parametrize("options", [None, [], ["--lora-rank=2"]])
def test_the_peak_is_that_of_the_run(heavy: Any, tmp_path: Path, options: list[str] | None) -> None:
    command, folder, peak = heavy
    if options is not None:
        (tmp_path / "rows.csv").write_text("text\n" + "".join(f"{'To ' * n}be\n" for n in range(1, 9)))
        command = ["finetune", f"--model={folder}", f"--data={tmp_path / 'rows.csv'}", "--batch-size=2", *options]
        command += ["--steps=2", "--eval-every=1"]
        peak = measured(*command, "--out", tmp_path / "run")[1]
    said = re.search(r"Peak: +([0-9.]+) MB", measured(*command, "--out", tmp_path / "other", "--dry-run")[0])
    assert said is not None
    assert float(said[1]) == pytest.approx(peak, rel=0.1)


def test_a_disk_without_room_is_said(tmp_path: Path) -> None:
    assert require_disk(1, tmp_path / "not" / "there") > 1
    with pytest.raises(UsageError, match="GB on the disk, but only"):
        require_disk(10**18, tmp_path / "not" / "there")


def test_figures_for_people() -> None:
    assert [duration(s) for s in (0.0123, 45, 600, 9000)] == ["12.3 ms", "45 s", "10 min", "2.5 h"]


# The command line -------------------------------------------------------------------------------


def test_a_dry_run_writes_nothing(run: Any, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    answer = run("train", *OPTIONS, f"--data={text}", f"--out={tmp_path / 'run'}", "--dry-run")
    assert answer.code == 0, answer.err
    for words in ("parameters", "tokens", "Peak:", "Time:", "Disk:", "nothing was written", str(tmp_path / "run")):
        assert words in answer.out
    assert not (tmp_path / "run").exists()
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.slow
def test_a_range_test_leaves_its_picture_alone(run: Any, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "run"
    options = [*OPTIONS, f"--data={text}", f"--out={out}"]
    answer = run("train", *options, "--lr-find")
    assert answer.code == 0, answer.err
    assert "learning rate" in answer.out
    assert [path.name for path in out.iterdir()] == ["lr_find.png"]
    assert run("train", *options).code == 0  # the picture is not in the way of the run


def test_finetuning_is_tried(run: Any, model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("text\n" + "".join(f"{'To ' * n}be\n" for n in range(1, 10)), encoding="utf-8")
    out = tmp_path / "out"
    answer = run("finetune", f"--model={model}", f"--data={rows}", f"--out={out}", "--dry-run")
    assert answer.code == 0, answer.err
    assert "nothing was written" in answer.out
    assert f"saved in {out}" in answer.out
    assert not out.exists()


def test_mistakes_are_said_by_a_dry_run(run: Any, text: Path, model: Path, tmp_path: Path) -> None:
    options = ["train", *OPTIONS, f"--data={text}", "--dry-run"]
    assert_one_sentence(run(*options, f"--out={model}"), "already holds a run")
    assert run(*options, f"--out={model}", "--overwrite").code == 0
    assert_one_sentence(run(*options, f"--out={model}", "--resume"), "leave out --resume")
    (tmp_path / "file").write_bytes(b"")
    assert_one_sentence(run(*options, f"--out={tmp_path / 'file' / 'run'}"), "it is a file")
    assert_one_sentence(run(*options, f"--out={tmp_path / 'run'}", "--n-head=3"), "n_head")
