"""A step cut into batches has the loss and the gradient of one batch that holds them all, whatever its targets."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.helpers import SHAPE, TRAIN, make_trainer
from tinygpt.data import RandomBatches
from tinygpt.errors import UsageError
from tinygpt.gpt import GPT, GPTConfig
from tinygpt.training import mean_loss, read_metrics
from tinygpt.training.evaluation import count_targets
from tinygpt.training.step.accumulation import batch_weights

ROWS, T = 6, 8


class Given:
    """Batches that are handed out as they are, the same ones at every step."""

    def __init__(self, batches: list[tuple[np.ndarray, np.ndarray]]) -> None:
        self.batches, self.block_size = batches, T

    def batch(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.batches[index % len(self.batches)]


def model(dtype: str = "float64", **shape: Any) -> GPT:
    return GPT(GPTConfig(11, **(SHAPE | {"dropout": 0.0} | shape)), seed=3, dtype=dtype)


def rows_with_ignored(seed: int, lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """(ROWS, T) inputs and targets; of row i the first lengths[i] targets count."""
    tokens = np.random.default_rng(seed).integers(0, 11, (ROWS, T + 1))
    targets = tokens[:, 1:].copy()
    for row, length in zip(targets, lengths, strict=True):
        row[length:] = -100
    return tokens[:, :-1], targets


def step_of(folder: Path, batches: list[tuple[np.ndarray, np.ndarray]], dtype: str) -> tuple[float, list[np.ndarray]]:
    """The loss and the gradient that a trainer makes of these batches."""
    trainer = make_trainer(folder, model=model(dtype), gradient_accumulation=len(batches))
    trainer.batches = Given(batches)  # type: ignore[assignment]
    loss, norm = trainer.accumulation.compute()
    gradient = [p.grad / len(batches) for p in trainer.parameters]
    assert norm == pytest.approx(np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradient)), rel=1e-5)
    return loss, gradient


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-12), ("float32", 2e-6)])
@given(
    cuts=st.sets(st.integers(1, ROWS - 1)),
    lengths=st.lists(st.integers(0, T), min_size=ROWS, max_size=ROWS).filter(any),
    seed=st.integers(0, 99),
)
def test_any_split_has_the_gradient_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, rtol: float, cuts: set[int], lengths: list[int], seed: int
) -> None:
    inputs, targets = rows_with_ignored(seed, lengths)
    whole = model(dtype)
    expected = whole.loss(inputs, targets)
    expected.backward()
    edges = [0, *sorted(cuts), ROWS]
    parts = [(inputs[a:b], targets[a:b]) for a, b in itertools.pairwise(edges)]
    loss, gradient = step_of(tmp_path_factory.mktemp("run"), parts, dtype)
    assert loss == pytest.approx(expected.item(), rel=rtol)
    largest = max(np.abs(p.grad).max() for p in whole.parameters())
    for (name, parameter), found in zip(whole.named_parameters(), gradient, strict=True):
        np.testing.assert_allclose(found, parameter.grad, rtol=0, atol=rtol * largest, err_msg=name)


def test_where_all_targets_count_nothing_is_multiplied(tmp_path: Path) -> None:
    """Bit for bit the sum of the batches' gradients, as the optimizer, which divides by their number, has it."""
    batches = [RandomBatches(TRAIN, 3, T, seed=7).batch(i) for i in range(3)]
    assert batch_weights("a step", [count_targets(targets) for _, targets in batches]) == [1.0] * 3
    trainer = make_trainer(tmp_path, model=model("float32"), gradient_accumulation=3)
    trainer.accumulation.compute()
    other = model("float32")
    for inputs, targets in batches:
        other.loss(inputs, targets).backward()
    for found, expected in zip(trainer.parameters, other.parameters(), strict=True):
        np.testing.assert_array_equal(found.grad, expected.grad)


def test_the_loss_that_is_written_down_is_over_the_targets(tmp_path: Path) -> None:
    inputs, targets = rows_with_ignored(1, [8, 8, 8, 1, 0, 0])
    trainer = make_trainer(tmp_path, model=model(), gradient_accumulation=3, steps=1, log_every=1)
    trainer.batches = Given([(inputs[i : i + 2], targets[i : i + 2]) for i in (0, 2, 4)])  # type: ignore[assignment]
    expected = model().loss(inputs, targets).item()
    trainer.run()
    (record,) = [record for record in read_metrics(tmp_path / "metrics.jsonl") if "loss" in record]
    assert record["loss"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_without_a_target_is_a_sentence(tmp_path: Path, accumulation: int) -> None:
    trainer = make_trainer(tmp_path, gradient_accumulation=accumulation)
    trainer.batches = Given([rows_with_ignored(0, [0] * ROWS)])  # type: ignore[assignment]
    with pytest.raises(UsageError, match=r"step 0: there is no target to learn from: all are -100.*remove such rows"):
        trainer.run()
    assert all(np.isfinite(array).all() for array in trainer.model.state_dict().values())


def test_the_mean_of_an_evaluation_is_over_the_targets() -> None:
    inputs, targets = rows_with_ignored(2, [8, 7, 0, 0, 3, 1])
    parts = [(inputs[i : i + 2], targets[i : i + 2]) for i in (0, 2, 4)]  # the second has none
    assert mean_loss(model(), parts) == pytest.approx(model().loss(inputs, targets).item(), rel=1e-12)
    with pytest.raises(UsageError, match="no target to take the mean over"):
        mean_loss(model(), parts[1:2])
