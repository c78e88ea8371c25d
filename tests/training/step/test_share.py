"""A process's share of a run: its rows, and what it leaves to process 0."""

from __future__ import annotations

import io
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.training.helpers import QUICK, SHAPE, TRAIN, VALIDATION, make_trainer
from tinygpt.errors import UsageError
from tinygpt.parallel import Communicator
from tinygpt.training.evaluation import mean_loss
from tinygpt.training.interrupt import StopRequest


class Pretended(Communicator):
    """Process `rank` of `size` that exist in a test's head only: all say what this one says."""

    kind = "pretended"

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def gather_values(self, value: Any) -> list[Any]:
        return [value] * self.size

    def start_all_reduce(self, array: Any) -> Any:
        array *= self.size
        return super().start_all_reduce(array)


@pytest.fixture
def pretend() -> Iterator[Any]:
    yield lambda rank, size: tg.parallel.use(Pretended(rank, size))
    tg.parallel.use(None)


@pytest.mark.parametrize(
    ("size", "rows", "words"),
    [
        (4, 3, "there are more processes than rows in a batch: 4, and batch_size is 3: set batch_size to 4"),
        (2, 5, "batch_size 5 is not divisible by the 2 processes, which share its rows: set batch_size to 4"),
    ],
)
def test_batches_that_cannot_be_shared(pretend: Any, tmp_path: Path, size: int, rows: int, words: str) -> None:
    pretend(0, size)
    with pytest.raises(UsageError, match=words):
        make_trainer(tmp_path, batch_size=rows)


def test_rows_and_masks(pretend: Any, tmp_path: Path) -> None:
    pretend(1, 3)
    trainer = make_trainer(tmp_path, batch_size=6)
    batch = trainer.batches.batch(0)
    inputs, targets = trainer.share.rows(batch)
    assert np.array_equal(inputs, batch[0][2:4])
    assert np.array_equal(targets, batch[1][2:4])
    assert trainer.model.generator.rows_before == 2
    assert trainer.share.counts(batch, lambda part: len(part[0])) == [2, 2, 2]


def test_a_process_that_does_not_lead_writes_nothing(pretend: Any, tmp_path: Path) -> None:
    pretend(1, 2)
    seen: list[Any] = []
    config = tg.TrainingConfig(**(QUICK | {"batch_size": 4}))
    model = tg.GPT(tg.GPTConfig(vocab_size=11, **SHAPE), seed=7)
    stream = io.StringIO()
    trainer = tg.Trainer(model, TRAIN, VALIDATION, config, tmp_path / "run", [seen.append], stream)
    result = trainer.run()
    assert result.step == 20
    assert not (tmp_path / "run").exists()
    assert not stream.getvalue()
    assert not seen


def test_sharding_alone_changes_nothing(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, shard_optimizer=True)
    assert isinstance(trainer.optimizer, tg.optim.AdamW)
    trainer.run()


def test_a_shared_signal_waits_for_the_others() -> None:
    with StopRequest(shared=True, tell=False) as stop:
        signal.raise_signal(signal.SIGTERM)
        assert not stop.requested
        assert stop.heard == signal.SIGTERM
        stop.settle(None)
        assert not stop.requested
        stop.settle(signal.SIGINT)  # what the first process heard
        stop.settle(signal.SIGTERM)
        assert stop.signal == signal.SIGINT


def test_a_signal_to_one_process_ends_the_run(pretend: Any, tmp_path: Path) -> None:
    """At the end of the step in which the others learn of it."""
    pretend(0, 2)
    trainer = make_trainer(tmp_path / "run", batch_size=4)
    step = trainer.steps.step

    def stopped() -> float:
        if trainer.state.step == 3:
            signal.raise_signal(signal.SIGTERM)
        return step()

    trainer.steps.step = stopped  # type: ignore[method-assign]
    result = trainer.run()
    assert (result.signal, result.step) == (signal.SIGTERM, 4)
    assert trainer.saved_at == 4


def test_an_evaluation_is_shared_out(tmp_path: Path) -> None:
    """Each process computes its batches; all get the sum that one process makes, bit for bit."""
    trainer = make_trainer(tmp_path)
    batches = [tuple(array.copy() for array in batch) for batch in [*trainer.validation] * 3]
    batches[2][1][:] = -100
    asked: list[int] = []

    class Part(Communicator):
        """Keeps what its process found, and then gets what all have found."""

        size = 2
        all: list[Any] = []  # noqa: RUF012

        def __init__(self, rank: int) -> None:
            self.rank = rank

        def gather_values(self, value: Any) -> list[Any]:
            self.all.append(value)
            return self.all if len(self.all) == self.size else [value]

    def loss(model: Any, *batch: Any) -> Any:
        asked.append(1)
        return model.loss(*batch)

    for rank in (0, 1):
        found = mean_loss(trainer.model, batches, loss, team=Part(rank))
    expected = mean_loss(trainer.model, batches)
    assert found == expected
    assert len(asked) == len([batch for batch in batches if (batch[1] != -100).any()])


def test_other_weights_are_not_saved(pretend: Any, tmp_path: Path) -> None:
    pretend(0, 2)
    trainer = make_trainer(tmp_path, batch_size=4)

    def gather(value: Any) -> list[Any]:
        return [value, "0" * 64 if isinstance(value, str) and len(value) == 64 else value]

    trainer.share.team.gather_values = gather  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="process 1 has other weights than process 0, so this step is not saved"):
        trainer.save()
    assert not list(tmp_path.glob("checkpoint*"))


def test_other_settings_are_named(pretend: Any, tmp_path: Path) -> None:
    pretend(0, 2)
    trainer = make_trainer(tmp_path, batch_size=4)
    team = trainer.share.team

    def changed(what: str, name: str, value: Any) -> Any:
        return lambda facts: [facts, facts | {what: facts[what] | {name: value}}]

    for what, name, words in (
        ("the training settings", "lr", "in the training settings: lr is 5 there and 0.01 here"),
        ("the data", "train", "in the data: train is 5 there"),
        ("the model", "n_layer", "in the model: n_layer is 5 there and 2 here"),
    ):
        team.gather_values = changed(what, name, 5)  # type: ignore[method-assign]
        with pytest.raises(UsageError, match=f"process 1 has other values than process 0 {words}"):
            trainer.run()
