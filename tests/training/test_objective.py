"""What the trainer asks of an objective, and parameters that are frozen."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.helpers import QUICK, SHAPE, TRAIN, VALIDATION, assert_same_outcome, make_trainer
from tinygpt import ops
from tinygpt.engine import _reachable
from tinygpt.errors import UsageError
from tinygpt.gpt import GPT, GPTConfig
from tinygpt.training import (
    CallbackError,
    CheckpointFolder,
    Objective,
    TextObjective,
    Trainer,
    TrainingConfig,
    freeze,
    read_metrics,
)


def model(**shape: Any) -> GPT:
    return GPT(GPTConfig(11, **(SHAPE | {"dropout": 0.0} | shape)), seed=7)


class Pairs(Objective):
    """Batches of three arrays: two texts, and which of them the model should find likelier; weights of the rows."""

    class Batches:
        def batch(self, index: int) -> tuple[np.ndarray, ...]:
            draw = np.random.default_rng(index)
            return draw.integers(0, 11, (3, 5)), draw.integers(0, 2, 3), draw.integers(1, 4, 3)

    def __init__(self) -> None:
        validation = [self.Batches().batch(100 + index) for index in range(2)]
        super().__init__(self.Batches(), validation, tokens=15, data={"pairs": "drawn"})

    def count(self, batch: tuple[np.ndarray, ...]) -> float:
        return float(batch[2].sum())

    def loss(self, model: Any, *batch: np.ndarray) -> Any:
        ids, answers, weights = batch
        scores = model.next_logits(ids)[:, 0]  # (B,)
        losses = ops.log(1 + ops.exp(scores * (1 - 2 * answers).astype(np.float32)))
        return (losses * weights.astype(np.float32)).sum() / float(weights.sum())

    def evaluate(self, model: Any, batches: Any) -> dict[str, float]:
        return super().evaluate(model, batches) | {"agreement": 0.5}


def trainer_of(folder: Path, **settings: Any) -> Trainer:
    folder.mkdir(exist_ok=True)
    config = TrainingConfig(**(QUICK | settings))
    return Trainer(model(), None, None, config, folder, stream=io.StringIO(), objective=Pairs())


def interrupted(trainer: Trainer) -> None:
    """Run the trainer until a callback fails, at step 9."""

    def fail(record: dict[str, Any]) -> None:
        if record["step"] == 9:
            raise RuntimeError("enough")

    trainer.callbacks.append(fail)
    with pytest.raises(CallbackError):
        trainer.run()


def test_any_objective_is_trained_and_evaluated(tmp_path: Path) -> None:
    result = trainer_of(tmp_path, gradient_accumulation=2).run()
    records = list(read_metrics(tmp_path / "metrics.jsonl"))
    assert {record["agreement"] for record in records if "validation_loss" in record} == {0.5}
    assert records[-1]["tokens" if "tokens" in records[-1] else "step"] > 0
    losses = [record["validation_loss"] for record in records if "validation_loss" in record]
    assert result.best_loss == min(losses) < losses[0]


def test_its_targets_weigh_the_batches_of_a_step(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, gradient_accumulation=3)
    loss, _ = trainer.accumulation.compute()
    batches = [trainer.batches.batch(index) for index in range(3)]
    whole = tuple(np.concatenate(parts) for parts in zip(*batches, strict=True))
    other = model()
    expected = trainer.objective.loss(other, *whole)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    for found, wanted in zip(trainer.parameters, other.parameters(), strict=True):
        np.testing.assert_allclose(found.grad / 3, wanted.grad, rtol=1e-4, atol=1e-7)
    figures = trainer.objective.evaluate(other, batches)
    assert figures["validation_loss"] == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.slow
def test_any_objective_goes_on_bit_for_bit(tmp_path: Path) -> None:
    trainer_of(tmp_path / "whole").run()
    interrupted(trainer_of(tmp_path / "parts"))
    again = trainer_of(tmp_path / "parts")
    again.resume()
    again.run()
    assert_same_outcome(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.slow
def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    trainer_of(tmp_path).run()
    other = trainer_of(tmp_path)
    other.objective.data["pairs"] = "others"
    with pytest.raises(UsageError, match="is of other data: these are not the rows that it was trained on"):
        other.resume()


def test_either_texts_or_an_objective(tmp_path: Path) -> None:
    for texts, objective in ((TRAIN, Pairs()), (None, None)):
        with pytest.raises(UsageError, match="either train_tokens and validation_tokens, or an objective"):
            Trainer(model(), texts, None, TrainingConfig(), tmp_path, objective=objective)


@pytest.mark.slow
def test_a_text_is_the_objective_of_tokens(tmp_path: Path) -> None:
    config = TrainingConfig(**QUICK)
    objective = TextObjective(model(), TRAIN, VALIDATION, config)
    Trainer(model(), None, None, config, tmp_path, objective=objective).run()
    (tmp_path / "tokens").mkdir()
    make_trainer(tmp_path / "tokens", model=model()).run()
    assert_same_outcome(tmp_path, tmp_path / "tokens")


# Frozen parameters ----------------------------------------------------------------------------------


def frozen(patterns: str) -> list[str]:
    made = model(n_layer=3)
    freeze(made, patterns)
    return [name for name, parameter in made.named_parameters() if not parameter.requires_grad]


def test_patterns_name_modules_parameters_and_ranges() -> None:
    names = [name for name, _ in model(n_layer=3).named_parameters()]
    assert frozen("wte") == ["wte.weight"]
    assert frozen("wte, ln_f.bias") == ["wte.weight", "ln_f.bias"]
    assert frozen("h.1-2") == [name for name in names if name.startswith(("h.1.", "h.2."))]
    assert frozen("h.*.mlp.c_fc") == [name for name in names if ".mlp.c_fc." in name]
    assert frozen("h.0.ln_1") == ["h.0.ln_1.weight", "h.0.ln_1.bias"]


@pytest.mark.parametrize("pattern", ["wtf", "h.3", "h.3-5", "wte.weight.x", "wte,", "w"])
def test_a_pattern_that_matches_nothing_is_named(pattern: str) -> None:
    last = pattern.split(",")[-1]
    with pytest.raises(UsageError, match=rf"freeze: '{last}' matches none.*such as wte, wpe, h\.0-2, ln_f$"):
        frozen(pattern)


def test_something_must_be_left_to_train(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="all parameters of the model are frozen"):
        make_trainer(tmp_path, freeze="*")


@pytest.mark.slow
def test_what_is_frozen_costs_no_gradient_and_no_state(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, freeze="wte,wpe,h.0")
    still = {name: array.copy() for name, array in trainer.model.state_dict().items()}
    trained = {id(parameter) for parameter in trainer.parameters}
    assert len(trained) == len(still) - 2 - 12
    loss = trainer.model.loss(*trainer.batches.batch(0))
    nodes = _reachable(loss.node)
    leaves = {id(parent) for node in nodes for parent in node.parents if parent is not None and parent.is_leaf}
    assert leaves <= trained  # no gradient is asked for
    whole = model().loss(*trainer.batches.batch(0))
    assert len(nodes) < len(_reachable(whole.node)) * 2 / 3  # the frozen block at the bottom is not even in the graph
    trainer.run()
    for name, parameter in trainer.model.named_parameters():
        moved = name.startswith(("h.1", "ln_f"))
        assert parameter.requires_grad is moved
        assert np.array_equal(parameter.data, still[name]) is not moved, name
    checkpoint = CheckpointFolder(tmp_path).load()
    moved_names = {name for name in still if name.startswith(("h.1", "ln_f"))}
    assert {name.partition(".")[2] for name in checkpoint.optimizer} == moved_names
    assert set(checkpoint.model) == set(still)


@pytest.mark.slow
def test_a_frozen_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    make_trainer(tmp_path / "whole", freeze="wte,h.0").run()
    interrupted(make_trainer(tmp_path / "parts", freeze="wte,h.0"))
    again = make_trainer(tmp_path / "parts", freeze="wte,h.0")
    again.resume()
    again.run()
    assert_same_outcome(tmp_path / "parts", tmp_path / "whole")
    with pytest.raises(UsageError, match=r"freeze is 'wte,h\.0' there and None here"):
        make_trainer(tmp_path / "parts").resume()
