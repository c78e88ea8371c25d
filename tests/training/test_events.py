"""What a run says, saves and refuses: callbacks, full disks, ids, modes."""

from __future__ import annotations

import builtins
import errno
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.helpers import SHAPE, TRAIN, VALIDATION, assert_same_outcome, failing_at, make_trainer
from tinygpt.errors import CheckpointError, UsageError
from tinygpt.gpt import GPT, GPTConfig
from tinygpt.training import (
    CallbackError,
    CheckpointFolder,
    DivergedError,
    MetricsFile,
    Trainer,
    TrainingConfig,
    draw_loss_curve,
    evaluate,
    read_metrics,
)

pytestmark = pytest.mark.usefixtures("without_picture")


# Callbacks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "key"), [(9, "loss"), (15, "loss"), (15, "validation_loss")])
def test_a_callback_that_fails_ends_the_run_saved(tmp_path: Path, step: int, key: str) -> None:
    trainer = make_trainer(tmp_path / "run")
    error = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
    trainer.callbacks.append(failing_at(step, key, error))
    with pytest.raises(
        CallbackError, match=rf"the callback .*upload failed at step {step} \(ConnectionRefusedE"
    ) as caught:
        trainer.run()
    assert caught.value.__cause__ is error
    assert "cannot write" not in str(caught.value)
    assert CheckpointFolder(tmp_path / "run").load().step == step
    again = make_trainer(tmp_path / "run")
    again.resume()
    again.run()
    make_trainer(tmp_path / "undisturbed").run()
    assert_same_outcome(tmp_path / "run", tmp_path / "undisturbed")


def test_an_os_error_of_the_data_is_not_blamed_on_the_folder(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    real = trainer.batches.batch

    def batch(index: int) -> Any:
        if index == 5:
            raise OSError(errno.EIO, "Input/output error")
        return real(index)

    trainer.batches.batch = batch  # type: ignore[method-assign]
    with pytest.raises(OSError, match="Input/output error") as caught:
        trainer.run()
    assert not isinstance(caught.value, UsageError)


@pytest.mark.slow
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_a_step_that_fails_for_another_reason_leaves_the_steps_before_it_saved(
    tmp_path: Path, error: Exception
) -> None:
    """In the middle of it, with random numbers drawn and gradients added: the run goes on as if nothing had been."""
    trainer = make_trainer(tmp_path / "run", gradient_accumulation=2)
    real, calls = trainer.accumulation.graphed_step.work, []

    def work(*arguments: Any) -> Any:
        calls.append(real(*arguments))
        if len(calls) == 2 * 7 + 2:  # at step 7: not at a checkpoint's
            raise error
        return calls[-1]

    trainer.accumulation.graphed_step.work = work
    with pytest.raises(type(error)) as caught:
        trainer.run()
    assert caught.value is error
    assert CheckpointFolder(tmp_path / "run").load().step == 7
    again = make_trainer(tmp_path / "run", gradient_accumulation=2)
    again.resume()
    again.run()
    make_trainer(tmp_path / "undisturbed", gradient_accumulation=2).run()
    assert_same_outcome(tmp_path / "run", tmp_path / "undisturbed")


def test_an_evaluation_that_fails_leaves_the_steps_before_it_saved(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    batches = list(trainer.validation)

    class Once:
        def __iter__(self) -> Any:
            yield batches[0]
            if trainer.state.step == 10:
                raise OSError(errno.EIO, "Input/output error")

    trainer.validation = Once()
    with pytest.raises(OSError, match="Input/output error"):
        trainer.run()
    assert CheckpointFolder(tmp_path).load().step == 10


def test_the_callbacks_hear_of_the_last_step_before_a_run_diverged(tmp_path: Path) -> None:
    trainer, heard = make_trainer(tmp_path), []
    trainer.callbacks.append(heard.append)
    trainer.validation = [(np.zeros((1, 8), np.int64), np.zeros((1, 8), np.int64))]
    real = trainer._log_training

    def log(tokens: int) -> None:
        real(tokens)
        trainer.model.wpe.weight.data[0] = np.nan if trainer.state.step == 15 else 0.0

    trainer._log_training = log  # type: ignore[method-assign]
    with pytest.raises(DivergedError, match="the validation loss is nan"):
        trainer.run()
    assert heard[-1]["step"] == 15


def test_a_step_is_saved_before_anyone_is_told_of_it(tmp_path: Path) -> None:
    trainer, folder, seen = make_trainer(tmp_path, checkpoint_every=1), CheckpointFolder(tmp_path), []

    def told(step: int) -> None:
        seen.append(step)
        assert folder.entry("latest")["step"] == step

    class Stream:
        def write(self, words: str) -> None:
            if words.startswith("step"):
                told(int(words.split()[1].rstrip(":")))

    trainer.stream = Stream()
    trainer.callbacks.append(lambda record: told(record["step"]))
    trainer.run()
    assert sorted(set(seen)) == [0, 3, 5, 6, 9, 10, 12, 15, 18, 20]
    assert seen.count(10) == 2  # its line, its record


# The folder -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "words"),
    [(0, "nothing was saved: .* try again"), (9, "the checkpoint of step 8 is intact: .* continue with --resume")],
)
def test_no_room_for_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, words: str) -> None:
    """Resuming is advised where there is something to resume; the file ends with a whole line."""
    append = MetricsFile.append

    def full(self: MetricsFile, record: dict[str, Any]) -> None:
        if record["step"] == step:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, record)

    monkeypatch.setattr(MetricsFile, "append", full)
    with pytest.raises(UsageError, match=f"cannot write to the folder .*No space left on device; {words}") as caught:
        make_trainer(tmp_path).run()
    assert ("resume" in str(caught.value)) == (step > 0)


def test_half_a_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.append({"step": 1})

    class Full:
        """The disk takes some bytes more, and then none."""

        def __init__(self, file: Any) -> None:
            self.file, self.left = file, 5

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, line: bytes) -> int:
            if not self.left:
                raise OSError(errno.ENOSPC, "No space left on device")
            written, self.left = self.file.write(line[: self.left]), 0
            return written

    file = metrics._file
    metrics._file = Full(file)  # type: ignore[assignment]
    with pytest.raises(OSError, match="No space"):
        metrics.append({"step": 2})
    metrics._file = file  # there is room again
    metrics.append({"step": 3})
    metrics.close()
    assert list(read_metrics(metrics.path)) == [{"step": 1}, {"step": 3}]


def test_metrics_that_were_cut_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"st')
    assert list(read_metrics(path)) == [{"step": 1}, {"step": 2}]
    assert MetricsFile(path).restart(3) == 2  # a checkpoint may know of more lines than somebody has left
    metrics = MetricsFile(path)
    metrics.append({"step": 3})
    metrics.close()
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3]
    for damage in (b"\xff\xfe\n", b"[1]\n", b'{"st\n', b"[" * 100_000 + b"\n"):
        path.write_bytes(b'{"step": 1}\n' + damage + b'{"step": 3}\n')
        with pytest.raises(CheckpointError, match=r"line 2 of .*metrics\.jsonl is damaged"):
            list(read_metrics(path))


@pytest.mark.parametrize("error", [RuntimeError("no font was found"), OSError(errno.ENOSPC, "No space left on device")])
def test_a_picture_that_can_not_be_drawn_is_no_error_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr("tinygpt.training.monitoring.reporting.draw_loss_curve", fails)
    result = make_trainer(tmp_path, steps=3).run()
    assert result.step == 3
    assert f"no picture of the loss curve was drawn ({type(error).__name__}: {error})" in result.summary()


def test_a_matplotlib_that_is_broken_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    usual = builtins.__import__

    def broken(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError("libfreetype.so.6: cannot open shared object file")
        return usual(name, *rest)

    monkeypatch.setattr("tinygpt.training.monitoring.reporting.draw_loss_curve", draw_loss_curve)
    monkeypatch.setattr(builtins, "__import__", broken)
    assert "libfreetype.so.6" in make_trainer(tmp_path, steps=3).run().picture


# Ids and modes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["training", "validation"])
@pytest.mark.parametrize("bad", [11, -1])
def test_ids_that_the_model_lacks_are_found_before_anything_is_written(tmp_path: Path, part: str, bad: int) -> None:
    parts = {"training": TRAIN.astype(np.int64), "validation": VALIDATION.astype(np.int64)}
    parts[part][70] = bad
    model = GPT(GPTConfig(11, **SHAPE))
    with pytest.raises(UsageError, match=rf"the {part} tokens contain the id {bad} \(at position 70\).* ids 0 \.\. 10"):
        Trainer(model, parts["training"], parts["validation"], TrainingConfig(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_ids_are_looked_at_stretch_by_stretch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinygpt.data.token_range._CHUNK", 64)
    tokens = TRAIN.copy()
    tokens[499] = 300
    with pytest.raises(UsageError, match=r"the id 300 \(at position 499\).*vocab_size of 301"):
        make_trainer(tmp_path, train=tokens)
    make_trainer(tmp_path)


def test_every_module_is_left_in_its_mode(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, steps=5)
    model = trainer.model
    model.eval()
    model.h[1].train()
    before = [module.training for module in model.modules()]
    dropped: list[bool] = []
    trainer.callbacks.append(lambda record: dropped.append(all(module.training for module in model.modules())))
    trainer.run()
    assert all(dropped)  # in training all of them train
    assert [module.training for module in model.modules()] == before
    evaluate(model, VALIDATION)
    assert [module.training for module in model.modules()] == before
    assert len(set(before)) == 2


def test_a_part_that_is_frozen_in_eval_mode_stays_so(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, steps=7)
    trainer.model.h[0].eval()
    before = [module.training for module in trainer.model.modules()]
    seen: list[list[bool]] = []
    trainer.callbacks.append(lambda record: seen.append([module.training for module in trainer.model.modules()]))
    trainer.run()
    assert len(seen) == 5  # after evaluations, and before
    assert all(modes == before for modes in seen)
    assert not all(before)
