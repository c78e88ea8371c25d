"""CUDA graphs through the stand-in: what is recorded once is what each later step needs.

The CUDA kernels run on the CPU (`emulator.py`), cuBLAS is `capture.Cublas`, and a captured stream computes
nothing, but repeats what it was given. A run with graphs must have the bits of one without: a batch, a dropout mask, a
loss scale or a learning rate that was recorded as a number shows at the next step. What only a GPU can show is in
`tests/gpu/test_gpu.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cuda import capture, emulator, standin
from tests.training.helpers import SHAPE, make_trainer, outcome
from tinygpt._ext import cuda
from tinygpt.backends import cupy_graph, cupy_kernels
from tinygpt.errors import UsageError
from tinygpt.optim import ScaleOnDevice
from tinygpt.training.step.graphed_step import GraphedStep

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(emulator.COMPILER is None, reason="no C++ compiler (g++, c++ or clang++)"),
]

DEVICE = emulator.Device()


class Scale:
    """A `ScaleOnDevice` with NumPy's arrays in the place of the stand-in's."""

    def __init__(self, scale: ScaleOnDevice) -> None:
        self.on_device = scale.on_device.held
        self.rates = None if scale.rates is None else scale.rates.held


def scales_bare(value: Any, made: dict[int, Scale]) -> Any:
    """The arguments of a kernel, or of several calls of it, with each ScaleOnDevice bare."""
    if isinstance(value, (list, tuple)):
        return type(value)(scales_bare(one, made) for one in value)
    if not isinstance(value, ScaleOnDevice):
        return value
    return made.setdefault(id(value), Scale(value))


def kernel_body(name: str) -> Callable[..., Any] | None:
    """A CUDA kernel run on the CPU; in a captured stream it is written down, to run at each replay."""
    launcher = cuda.body(DEVICE, name)  # type: ignore[arg-type]
    if launcher is None:
        return None

    def body(*args: Any) -> Any:
        begin, base = cupy_kernels.device(tg.backends.get("cupy").xp).rng_stream_base
        given = scales_bare(standin.bare(args), {})

        def compute() -> Any:
            DEVICE.rng_stream_base = (begin, None if base is None else base.held)
            try:
                return launcher(*given)
            finally:
                DEVICE.rng_stream_base = (0, None)

        return standin.wrapped(capture.launched(compute, *given, writes=True))

    return body


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with standin.recording(monkeypatch, kernel_body) as library:
        yield library


def batch(step: int, rows: int = 2) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.random.default_rng(step).integers(0, 11, (rows, 9))
    return np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])


class Run:
    """A model, and its steps' losses and gradients; `mode` as in GraphedStep."""

    def __init__(self, mode: str = "auto", dtype: str = "float32", **shape: Any) -> None:
        self.dtype = dtype
        self.model = tg.GPT(tg.GPTConfig(vocab_size=11, **(SHAPE | {"n_layer": 1} | shape)), seed=1).to("cupy")
        self.optimizer = tg.optim.AdamW(self.model.named_parameters(), lr=1e-2)
        self.said: list[str] = []
        self.graphed_step = GraphedStep(self.model, self.work, mode, self.said.append)

    def work(self, inputs: np.ndarray, targets: np.ndarray, scale: float = 1.0) -> Any:
        with self.model.compute_in(self.dtype):
            loss = self.model.loss(inputs, targets)
        loss.backward(scale)
        return loss

    def step(self, number: int, batches: int = 1, rows: int = 2, scale: float = 1.0) -> list[np.ndarray]:
        """Loss, gradients and weights of one step, which ends with an update of a rate of its own."""
        losses = [self.graphed_step(*batch(batches * number + i, rows), scale) for i in range(batches)]
        found = [*(loss.numpy() for loss in losses), *(p.grad.get() for p in self.model.parameters())]
        self.optimizer.lr = 0.01 / (number + 1)
        self.optimizer.step(grad_scale=1 / scale)
        self.optimizer.zero_grad()
        return [*found, *(p.data.get() for p in self.model.parameters())]


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert all(np.array_equal(f, e) for f, e in zip(found, expected, strict=True))


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

        def batch(index: int, real: Any = real) -> tuple[np.ndarray, np.ndarray]:
            inputs, targets = real(index)
            if index % 6 == 5:
                targets[:, index % 8 :] = -100
            return inputs, targets

        trainer.batches.batch = batch  # type: ignore[method-assign]
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
