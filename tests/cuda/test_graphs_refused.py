"""CUDA graphs through the stand-in: what can't be recorded, what breaks off, and whole runs with graphs and without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cuda import capture, emulator, standin
from tests.cuda.graph_runs import Run, assert_same, kernel_body
from tests.training.helpers import SHAPE, make_trainer, outcome
from tinygpt.backends import cupy_graph
from tinygpt.errors import UsageError
from tinygpt.training.step.graphed_step import GraphedStep

pytestmark = [
    pytest.mark.usefixtures("gpu"),
    pytest.mark.slow,
    pytest.mark.skipif(emulator.COMPILER is None, reason="no C++ compiler (g++, c++ or clang++)"),
]


def recorded_number(run: Run, number: Callable[[], float]) -> None:
    """Let the work multiply by a number that Python knows at the time of recording."""
    usual = run.work

    def work(inputs: np.ndarray, targets: np.ndarray, scale: float) -> Any:
        return usual(inputs, targets, scale * number())

    run.graphed_step.work = work


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_a_number_of_the_host_that_changes_is_found_out(mode: str) -> None:
    run, expected = Run(mode), Run("off")
    count = iter(range(1, 100))
    recorded_number(run, lambda: float(next(count)))  # 1, 2, and 3 while it is recorded; then 4
    for step in range(2):
        run.step(step)
        expected.step(step, scale=step + 1.0)
    if mode == "on":
        with pytest.raises(UsageError, match="did not give the same bits"):
            run.step(2)
        return
    assert run.graphed_step.replays == 0
    found = run.step(2)
    assert run.graphed_step.replays == 1
    assert run.said == [
        "CUDA graphs are not used, because a replayed batch did not give the same bits as an eager one: kernels are "
        "launched one by one, which takes longer"
    ]
    del found


def works_with(run: Run, more: Callable[[], object]) -> None:
    """Let the work do something more."""
    usual = run.work

    def work(*arguments: Any) -> Any:
        loss = usual(*arguments)
        more()
        return loss

    run.graphed_step.work = work


REFUSED: dict[str, tuple[Callable[[Run], object], str]] = {
    "a number for the host": (lambda run: run.model.wte.weight.grad.sum().item(), "synchronous API calls"),
    "a copy for the host": (lambda run: run.model.ln_f.weight.grad.get(), "synchronous API calls"),
    "a copy from the host": (lambda run: tg.backends.get("cupy").xp.asarray(np.ones(3)), "a copy from the host"),
    "CuPy's product": (lambda run: run.model.wte.weight.data @ run.model.wte.weight.data.T, "calling cuBLAS"),
    "a shape that depends on values": (
        lambda run: tg.backends.get("cupy").xp.flatnonzero(run.model.ln_f.weight.data),
        "synchronous API calls",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_graph_can_hold_ends_in_the_usual_way_and_is_said(name: str) -> None:
    more, words = REFUSED[name]
    run, expected = Run("auto"), Run("off")
    works_with(run, lambda: more(run))
    for step in range(4):
        assert_same(run.step(step), expected.step(step))
    assert run.graphed_step.replays == 0
    assert len(run.said) == 1
    assert words in run.said[0]
    assert "\n" not in run.said[0]
    assert capture.stack[-1].tape is None  # the stream is one like any other again


def test_without_memory_for_a_graph_all_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool must not free what launches use already, so it never hears of the failure: the capture ends."""
    run, expected = Run("auto"), Run("off")
    assert_same(run.step(0), expected.step(0))

    def nothing_left(size: int) -> Any:
        raise standin.OutOfMemoryError(f"{size} bytes")

    def begin(self: Any, mode: Any = None) -> None:
        self.tape = []
        monkeypatch.setattr(tg.backends.get("cupy").xp.cuda, "Memory", nothing_left)

    monkeypatch.setattr(capture.Stream, "begin_capture", begin)
    for step in range(1, 4):
        assert_same(run.step(step), expected.step(step))
    assert "does not have enough memory" in run.said[0]


@pytest.mark.parametrize("batches", [1, 2])
def test_a_batch_that_is_broken_off(gpu: Any, monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    """It is done again, without graphs; but for one that has added to gradients already: that would add twice."""
    run, expected = Run("auto"), Run("off")
    failing = iter([0] * (15 * batches - 1) + [13] * 100)  # the last of the first step's products, and all after it
    usual = gpu.cublasGemmEx
    monkeypatch.setattr(gpu, "cublasGemmEx", lambda *arguments: next(failing) or usual(*arguments))
    if batches == 1:
        assert_same(run.step(0), expected.step(0))
        assert "cublasGemmEx returned status 13" in run.said[0]
        return
    with pytest.raises(UsageError, match="add --cuda-graphs off"):
        run.step(0, batches=2)


def test_no_cublas_to_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with standin.installed(bodies=kernel_body), tg.use_backend("cupy"):
        tg.backends.get("cupy").xp.cuda.runtime.runtimeGetVersion = lambda: 99000
        run, expected = Run("auto"), Run("off")
        assert_same(run.step(0), expected.step(0))
    assert "the cuBLAS library can't be found" in run.said[0]


def test_products_are_those_of_the_layers(gpu: Any) -> None:
    """Each layer's product, forward and backward, goes to cuBLAS, which has a workspace of its own."""
    run = Run("on")
    run.step(0)
    C, V, N = SHAPE["n_embd"], 11, 2 * 8
    shapes = [(3 * C, C), (C, C), (4 * C, C), (C, 4 * C)]
    expected = [(V, N, C), (C, N, V), (C, V, N)]
    for out, into in shapes:  # as cuBLAS sees them: y, dx and dweight
        expected += [(out, N, into), (into, N, out), (out, into, N)]
    assert sorted(gpu.calls) == sorted(expected)


def test_on_without_a_gpu() -> None:
    with tg.use_backend("numpy"):
        model = tg.GPT(tg.GPTConfig(vocab_size=11, **SHAPE))
        with pytest.raises(UsageError, match="CUDA graphs are for a GPU"):
            GraphedStep(model, lambda *_: None, "on")  # type: ignore[arg-type, return-value]


# Runs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation": 2}])
def test_a_run_with_graphs_has_the_outcome_of_one_without(tmp_path: Path, settings: Any) -> None:
    """Evaluations, checkpoints, a learning rate that changes, clipping: bit for bit, also when resumed."""
    make_trainer(tmp_path / "off", cuda_graphs="off", **settings).run()
    make_trainer(tmp_path / "on", cuda_graphs="on", steps=9, decay_steps=20, **settings).run()
    trainer = make_trainer(tmp_path / "on", cuda_graphs="on", decay_steps=20, **settings)
    trainer.resume()
    trainer.run()
    assert trainer.accumulation.graphed_step.replays >= 7
    found, expected = outcome(tmp_path / "on"), outcome(tmp_path / "off")
    for name in expected:
        if "state" not in name and name != "metrics":  # which hold the settings; and a line where the first run ended
            assert found[name] == expected[name], name


def test_batches_that_weigh_differently_in_a_step(tmp_path: Path) -> None:
    """At every third step a batch has few targets: its weight, and that of the other, is of this step alone."""
    trainers = []
    for graphs in ("off", "on"):
        trainer = make_trainer(tmp_path / graphs, cuda_graphs=graphs, gradient_accumulation=2)
        real = trainer.batches.batch

        def its_batch(index: int, real: Any = real) -> tuple[np.ndarray, np.ndarray]:
            inputs, targets = real(index)
            if index % 6 == 5:
                targets[:, index % 8 :] = -100
            return inputs, targets

        trainer.batches.batch = its_batch  # type: ignore[method-assign]
        trainer.run()
        trainers.append(trainer)
    off, on = trainers
    assert (
        on.accumulation.graphed_step.replays >= 2 * 13 - 5
    )  # of the 14 steps whose batches weigh the same; the first ones are recorded
    assert {numbers for _, numbers, *_ in on.accumulation.graphed_step.kinds} == {(1.0,)}  # none is kept for a weight
    assert_same([p.data.get() for p in on.parameters], [p.data.get() for p in off.parameters])


def test_a_run_says_why_it_has_no_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(cupy: Any) -> Any:
        raise cupy_graph.CaptureError("there is no cuBLAS today")

    monkeypatch.setattr(cupy_graph, "load_cublas", none)
    trainer = make_trainer(tmp_path, steps=6)
    trainer.run()
    said = [line for line in trainer.stream.getvalue().splitlines() if "CUDA graphs" in line]
    assert said == [
        "CUDA graphs are not used, because there is no cuBLAS today: kernels are launched one by one, "
        "which takes longer"
    ]
