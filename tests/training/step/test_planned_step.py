"""A planned step has the bits of the step, whatever changes between two of them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.training.helpers import SHAPE, assert_same_outcome, make_trainer
from tinygpt import optim
from tinygpt.kernel import compiled_part, use_kernels
from tinygpt.training import Objective
from tinygpt.training.step.planned_step import PlannedStep

pytestmark = pytest.mark.skipif(
    compiled_part("start_threads") is None, reason="plans are of compiled kernels, which are not built or not used here"
)


def batch(number: int, rows: int = 2) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.random.default_rng(number).integers(0, 11, (rows, 9))
    return tokens[:, :-1].copy(), tokens[:, 1:].copy()


class Run:
    """A model, and its steps' losses, gradients and weights."""

    def __init__(self, planned: bool, prepare: Callable[[Any], Any] = lambda model: model, **shape: Any) -> None:
        model = tg.GPT(tg.GPTConfig(vocab_size=11, **(SHAPE | shape)), seed=1)
        self.model = prepare(model) or model
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = optim.AdamW(self.trained, lr=1e-2)
        self.planned_step = PlannedStep(self.model, self.work, planned)

    def work(self, inputs: np.ndarray, targets: np.ndarray, scale: float = 1.0) -> Any:
        loss = self.model.loss(inputs, targets)
        loss.backward(scale)
        return loss

    def step(self, number: int, batches: int = 1, rows: int = 2, scale: float = 1.0) -> list[np.ndarray]:
        """It ends with an update, with a learning rate of its own."""
        losses = [self.planned_step(*batch(batches * number + i, rows), scale) for i in range(batches)]
        found = [*(loss.numpy() for loss in losses), *(p.grad for p in self.trained if p.grad is not None)]
        self.optimizer.lr = 0.01 / (number + 1)
        self.optimizer.step(grad_scale=optim.clip_coefficient(optim.grad_norm(self.trained), 1.0))
        self.optimizer.zero_grad()
        return [*found, *(p.data.copy() for p in self.model.parameters())]


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert all(f.tobytes() == e.tobytes() for f, e in zip(found, expected, strict=True))


def assert_same_steps(planned: Run, usual: Run, count: int = 10, begin: int = 0, **options: Any) -> None:
    for number in range(begin, begin + count):
        assert_same(planned.step(number, **options), usual.step(number, **options))
        assert planned.model.generator.state_dict() == usual.model.generator.state_dict()
    assert usual.planned_step.repeats == 0


def layers_again(model: Any) -> None:
    model.recompute = True


def first_layers_frozen(model: Any) -> None:
    for parameter in (*model.wte.parameters(), *model.wpe.parameters(), *model.h[0].parameters()):
        parameter.requires_grad = False


@pytest.mark.parametrize(
    "shape",
    [
        {}, {"dropout": 0.0, "bias": False}, {"tie_word_embeddings": False}, {"activation_function": "gelu"},
        {"scale_attn_by_inverse_layer_idx": True}, {"n_layer": 1, "n_inner": 12},
        {"prepare": layers_again}, {"prepare": first_layers_frozen},
    ],
)  # fmt: skip
def test_a_planned_step_has_the_bits_of_the_step(shape: Any) -> None:
    """With dropout, so with new masks at each step, and with new weights and another learning rate."""
    planned, usual = Run(True, **shape), Run(False, **shape)
    assert_same_steps(planned, usual)
    assert planned.planned_step.repeats >= 3


def test_gradients_are_accumulated() -> None:
    """The first batch of a step makes the gradients, the others add to them: two plans."""
    planned, usual = Run(True), Run(False)
    assert_same_steps(planned, usual, batches=3)
    assert planned.planned_step.repeats >= 3 * 3
    assert len(planned.planned_step.kinds) == 2


def test_repeating_runs_none_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(True)
    for number in range(8):
        run.step(number)
    repeats = run.planned_step.repeats
    monkeypatch.setattr(run.planned_step, "work", None)
    run.step(8)
    assert run.planned_step.repeats == repeats + 1


def test_batches_of_two_shapes_have_a_plan_each() -> None:
    planned, usual = Run(True), Run(False)
    for number in range(16):
        rows = 2 + number % 2
        assert_same(planned.step(number, rows=rows), usual.step(number, rows=rows))
    assert planned.planned_step.repeats >= 6


def evaluate(run: Run) -> None:
    with run.model.evaluating(), tg.no_grad():
        run.model.loss(*batch(99))


def stop_dropout(run: Run) -> None:
    run.model.h[0].dropout.p = 0.0


def evaluation_mode(run: Run) -> None:
    run.model.h[1].eval()


def freeze(run: Run) -> None:
    run.model.h[0].attn.c_attn.weight.requires_grad = False


def other_array(run: Run) -> None:
    weight = run.model.ln_f.weight
    weight.data = weight.data + 1


def other_seed(run: Run) -> None:
    run.model.generator.seed = 5


def other_layer(run: Run) -> None:
    run.model.h[0].ln_1 = run.model.h[1].ln_1


def layers_swapped(run: Run) -> None:
    run.model.h.reverse()


def layer_removed(run: Run) -> None:
    run.model.h.pop()


def layer_added(run: Run) -> None:
    run.model.h.append(tg.GPT(run.model.config, seed=9).h[0])


def other_forward(run: Run) -> None:
    usual = run.model.h[0].mlp.forward
    run.model.h[0].mlp.forward = lambda h: usual(h) * 2.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        evaluate, stop_dropout, evaluation_mode, freeze, other_array, other_seed, other_layer, layers_swapped,
        layer_removed, layer_added, other_forward,
    ],
)  # fmt: skip
def test_what_changes_between_two_steps_is_noticed(change: Callable[[Run], None]) -> None:
    planned, usual = Run(True), Run(False)
    assert_same_steps(planned, usual)
    assert planned.planned_step.repeats >= 3
    for run in (planned, usual):
        change(run)
    assert_same_steps(planned, usual, begin=10)


def test_another_array_of_a_frozen_parameter_is_noticed() -> None:
    planned, usual = Run(True, first_layers_frozen), Run(False, first_layers_frozen)
    assert_same_steps(planned, usual)
    assert planned.planned_step.repeats >= 3
    for run in (planned, usual):
        run.model.wte.weight.data = run.model.wte.weight.data * 2
    assert_same_steps(planned, usual, begin=10)


@pytest.mark.parametrize("of", ["instance", "class", "loss"])
def test_a_method_that_is_replaced_is_called_in_each_step(of: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook of the user's own, which changes no number."""
    run, calls = Run(True), [0]
    for number in range(8):
        run.step(number)
    repeats = run.planned_step.repeats
    assert repeats
    place, name = {
        "instance": (run.model.h[0].mlp, "forward"), "class": (type(run.model.h[0].attn), "branch"),
        "loss": (run.model, "loss"),
    }[of]  # fmt: skip
    usual = getattr(place, name)

    def hook(*arguments: Any) -> Any:
        calls[0] += 1
        return usual(*arguments)

    monkeypatch.setattr(place, name, hook)
    for number in range(8, 14):
        run.step(number)
    assert calls == [12 if of == "class" else 6]
    assert run.planned_step.repeats == repeats


def test_masks_from_another_generator_are_not_planned() -> None:
    """In this model it is used as often as the model's own."""

    def prepare(model: Any) -> None:
        model.h[0].dropout = tg.nn.Dropout(0.1, other)

    other = tg.Generator(5)
    run = Run(True, prepare, n_layer=1)
    for number in range(8):
        run.step(number)
    assert other.stream == 16


def test_ignored_targets_scales_anomaly_detection_and_hooks_take_the_usual_way() -> None:
    run = Run(True)
    for number in range(8):
        run.step(number)
    repeats = run.planned_step.repeats
    assert repeats
    inputs, targets = batch(8)
    targets[0, 0] = -100
    run.planned_step(inputs, targets, 1.0)
    run.model.zero_grad()
    run.planned_step(*batch(9), 0.5)
    run.model.zero_grad()
    with tg.detect_anomaly():
        run.planned_step(*batch(10), 1.0)
    run.model.zero_grad()
    with use_kernels("reference"):
        run.planned_step(*batch(11), 1.0)
    assert run.planned_step.repeats == repeats
    with pytest.raises(tg.UsageError, match=r"ids must be in 0 \.\. 10"):
        run.planned_step(inputs + 5, np.abs(targets), 1.0)


# What must be noticed -------------------------------------------------------------------------------


def by_numpy(h: Any) -> Any:
    """A product that no kernel computes."""
    return h * 1.5


@pytest.mark.parametrize("own", ["number", "array", "layer"])
def test_what_a_plan_can_not_know_is_noticed(own: str) -> None:
    """The work itself, or a layer, computes with numbers that no kernel has made: the bits stay those of the work."""
    runs = Run(True), Run(False)
    for run in runs:
        usual, count = run.work, [0]

        def work(
            inputs: Any, targets: Any, scale: float, usual: Any = usual, count: Any = count, run: Any = run
        ) -> Any:
            count[0] += 1
            if own == "number":
                run.model.h[0].ln_1.weight.data *= np.float32(1 + count[0] / 64)
            loss = usual(inputs, targets, scale)
            if own == "array":
                run.model.ln_f.weight.grad = run.model.ln_f.weight.grad * np.float32(loss.item())
            return loss

        run.planned_step.work = work
        if own == "layer":
            run.model.h[0].mlp.forward = lambda h, usual=run.model.h[0].mlp.forward: by_numpy(usual(h))
            run.planned_step._is_known = lambda: True  # type: ignore[method-assign]
    assert_same_steps(*runs)
    assert runs[0].planned_step.repeats == 0
    assert not runs[0].planned_step.wanted


def test_a_model_with_a_layer_of_a_users_own_gets_no_plan() -> None:
    class Mine(tg.nn.LayerNorm):
        def forward(self, x: Any) -> Any:
            return super().forward(x) * (2.0 if float(x.data.max()) > 0 else 1.0)

    def prepare(model: Any) -> None:
        model.h[0].ln_1 = Mine(8)

    assert not Run(True, prepare).planned_step.wanted
    assert not Run(True, lambda model: tg.GPT(model.config, dtype="float64")).planned_step.wanted


def test_the_same_batch_again_is_no_test_of_a_plan() -> None:
    run = Run(True)
    for _ in range(8):
        run.planned_step(*batch(0), 1.0)
        run.model.zero_grad()
    assert run.planned_step.repeats == 0
    assert run.planned_step.wanted


# In a run -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation": 2}, {"optimizer": "sgd", "ema": 0.9}])
def test_a_run_with_plans_is_the_run_without(tmp_path: Path, settings: Any) -> None:
    """With evaluations and checkpoints between the steps."""
    planned, usual = (make_trainer(tmp_path / name, **settings) for name in ("planned", "usual"))
    usual.accumulation.planned_step.wanted = False
    planned.run()
    usual.run()
    assert planned.accumulation.planned_step.repeats >= 8
    assert_same_outcome(tmp_path / "planned", tmp_path / "usual")


def test_only_the_loss_of_a_text_is_planned(tmp_path: Path) -> None:
    class Mine(Objective):
        def loss(self, model: Any, *batch: np.ndarray) -> Any:
            return super().loss(model, *batch)

    trainer = make_trainer(tmp_path)
    assert trainer.accumulation.planned_step.wanted
    mine = Mine(trainer.batches, trainer.validation, 24, {})
    own = tg.Trainer(trainer.model, None, None, trainer.config, tmp_path, objective=mine)
    assert not own.accumulation.planned_step.wanted
    usual = trainer.objective.loss
    trainer.objective.loss = lambda *arguments: usual(*arguments)  # type: ignore[method-assign]
    trainer.accumulation.compute()
    assert not trainer.accumulation.planned_step.wanted


@pytest.mark.slow
def test_a_planned_step_needs_no_more_memory() -> None:
    """Neither in a step that records or compares: 3% is the room for the lists of calls."""
    shape = {"n_embd": 64, "block_size": 64, "n_layer": 3}

    def peak(run: Run) -> int:
        tokens, most = np.random.default_rng(0).integers(0, 11, (9, 8, 65)), 0
        for number in range(9):
            tracemalloc.start()
            run.planned_step(tokens[number, :, :-1].copy(), tokens[number, :, 1:].copy(), 1.0)
            most = max(most, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            run.optimizer.zero_grad()
        return most

    planned, usual = Run(True, **shape), Run(False, **shape)
    assert peak(planned) <= 1.03 * peak(usual)
    assert planned.planned_step.repeats
