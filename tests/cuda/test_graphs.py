"""CUDA graphs through the stand-in: what is recorded once is what each later step needs.

The CUDA kernels run on the CPU (`emulator.py`), cuBLAS is `capture.Cublas`, and a captured stream computes
nothing, but repeats what it was given. A run with graphs must have the bits of one without: a batch, a dropout mask, a
loss scale or a learning rate that was recorded as a number shows at the next step. What only a GPU can show is in
`tests/gpu/test_gpu.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import tinygpt as tg
from tests.cuda import emulator
from tests.cuda.graph_runs import Run, assert_same, batch

pytestmark = [
    pytest.mark.usefixtures("gpu"),
    pytest.mark.slow,
    pytest.mark.skipif(emulator.COMPILER is None, reason="no C++ compiler (g++, c++ or clang++)"),
]


@pytest.mark.parametrize("options", [{}, {"batches": 3}, {"scale": 8.0}])
def test_a_replayed_step_has_the_bits_of_the_step(options: Any) -> None:
    """With dropout, so with new masks at each step; with gradients added up; scaled."""
    on, off = Run("on"), Run("off")
    for step in range(7):
        assert_same(on.step(step, **options), off.step(step, **options))
        assert on.model.generator.state_dict() == off.model.generator.state_dict()
    assert on.graphed_step.replays >= 4 * options.get("batches", 1) - 1
    assert off.graphed_step.replays == 0
    assert on.said == []


def test_layers_that_run_again_in_the_backward_pass_draw_the_same_masks() -> None:
    graphs, eager = Run("on"), Run("off")
    graphs.model.recompute = True
    for i in range(5):
        assert_same(graphs.step(i), eager.step(i))
    assert graphs.graphed_step.replays == 3


def test_in_16_bits() -> None:
    on, off = Run("on", "float16"), Run("off", "float16")
    for step in range(5):
        assert_same(on.step(step, scale=64.0), off.step(step, scale=64.0))
    assert on.graphed_step.replays >= 2


def test_a_replay_launches_no_kernel_from_python(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run("on")
    for step in range(4):
        run.step(step)
    monkeypatch.setattr(run.graphed_step, "work", None)
    replays = run.graphed_step.replays
    run.step(4)
    assert run.graphed_step.replays == replays + 1


def test_another_shape_and_another_scale_have_graphs_of_their_own() -> None:
    on, off = Run("on"), Run("off")
    for step, (rows, scale) in enumerate([(2, 1.0), (2, 1.0), (3, 1.0), (2, 1.0), (2, 4.0), (3, 1.0), (2, 1.0)] * 2):
        assert_same(on.step(step, rows=rows, scale=scale), off.step(step, rows=rows, scale=scale))
    assert on.graphed_step.replays >= 4
    assert on.said == []


def test_evaluation_between_replays() -> None:
    on, off = Run("on"), Run("off")
    for step in range(5):
        assert_same(on.step(step), off.step(step))
        for run in (on, off):
            run.model.eval()
        with tg.no_grad():
            assert on.model.loss(*batch(99)).item() == off.model.loss(*batch(99)).item()
        for run in (on, off):
            run.model.train()


def stop_dropout(run: Run) -> None:
    run.model.h[0].dropout.p = 0.0


def other_array(run: Run) -> None:
    weight = run.model.ln_f.weight
    weight.data = weight.data + 1


def there_and_back(run: Run) -> None:
    run.model.to("numpy")
    run.model.to("cupy")


def layers_swapped(run: Run) -> None:
    run.model.h.reverse()


@pytest.mark.parametrize("change", [stop_dropout, other_array, there_and_back, layers_swapped])
def test_what_changes_between_two_steps_is_noticed(change: Callable[[Run], None]) -> None:
    on, off = Run("on", n_layer=2), Run("off", n_layer=2)
    for step in range(9):
        if step == 5:
            assert on.graphed_step.replays
            for run in (on, off):
                change(run)
        assert_same(on.step(step), off.step(step))
    assert on.graphed_step.replays >= 4


def test_a_hook_and_a_frozen_parameter_take_the_usual_way() -> None:
    on, off, calls = Run("on"), Run("off"), [0]

    def hook(h: Any) -> None:
        calls[0] += 1

    def same_step(number: int) -> None:
        losses = [run.graphed_step(*batch(number), 1.0).numpy() for run in (on, off)]
        found = [[None if p.grad is None else p.grad.get() for p in run.model.parameters()] for run in (on, off)]
        assert_same([*losses[:1], *found[0]], [*losses[1:], *found[1]])
        for run in (on, off):
            run.optimizer.step()
            run.optimizer.zero_grad()

    for step in range(4):
        same_step(step)
    replays = on.graphed_step.replays
    assert replays
    hooks = {"h.0": hook}
    with tg.interpret.hooked(on.model, hooks), tg.interpret.hooked(off.model, hooks):
        for step in range(4, 8):
            same_step(step)
    assert calls == [4 + 4]
    for run in (on, off):
        run.model.h[0].attn.c_attn.weight.requires_grad = False
    for step in range(8, 12):
        same_step(step)
    assert on.graphed_step.replays == replays


def test_ignored_targets_and_anomaly_detection_take_the_usual_way() -> None:
    run = Run("on")
    for step in range(4):
        run.step(step)
    replays = run.graphed_step.replays
    inputs, targets = batch(5)
    targets[0, 0] = -100
    run.graphed_step(inputs, targets, 1.0)
    run.model.zero_grad()
    with tg.detect_anomaly():
        run.graphed_step(*batch(6), 1.0)
    assert run.graphed_step.replays == replays


# What must be noticed -------------------------------------------------------------------------------
