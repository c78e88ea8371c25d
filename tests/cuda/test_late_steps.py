"""Steps whose loss and norm are read one step late, on the stand-in for CuPy: the same run, and nothing waits.

Most of it runs the reference bodies, since what is new is on the host; one test runs the kernels. Not shown: that a GPU
does work while the host prepares more of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cuda import emulator, standin
from tests.cuda.graph_runs import kernel_body
from tests.training.helpers import assert_same_outcome, make_trainer
from tinygpt.optim import ScaleOnDevice, clip_coefficient, grad_norm
from tinygpt.tensor import Tensor
from tinygpt.tokenizers import CharTokenizer
from tinygpt.training import DivergedError
from tinygpt.training.monitoring.following import Following, follow
from tinygpt.training.monitoring.watch import Watch
from tinygpt.training.step.late_steps import LateSteps, steps_of

SMALL: dict[str, Any] = {"steps": 11, "decay_steps": 20, "cuda_graphs": "off"}


@pytest.fixture
def gpu() -> Iterator[None]:
    with standin.installed(), tg.use_backend("cupy"):
        yield


def bad_at(trainer: Any, step: int, value: float) -> None:
    """Let the gradients of a step hold a number that is not finite."""
    usual = trainer.accumulation.launch

    def launch_batches(update: Any = None) -> Any:
        losses = usual()
        if trainer.state.step == step:
            trainer.parameters[1].grad[...] = value
        if update is not None:
            update()
        return losses

    trainer.accumulation.launch = launch_batches


def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinygpt.training.loop.steps_of", lambda trainer: trainer.steps)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{}, {"gradient_accumulation": 2, "grad_clip": 0.0}, {"log_every": 4, "eval_every": 7}]
)
def test_a_run_has_the_outcome_of_one_that_waits(
    gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    """Losses, norms, weights, checkpoints, bit for bit; and when it is gone on with."""
    trainer = make_trainer(tmp_path / "late", **(SMALL | settings))
    trainer.run()
    assert isinstance(trainer.steps, LateSteps)
    assert trainer.steps.pending is None
    plain(monkeypatch)
    make_trainer(tmp_path / "plain", **(SMALL | settings)).run()
    assert_same_outcome(tmp_path / "late", tmp_path / "plain")


@pytest.mark.slow
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("step", [0, 5, 6, 9, 10])
def test_a_bad_step_changes_nothing_though_it_is_noticed_late(
    gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, value: float
) -> None:
    """Step 6 is the first after a line of metrics; step 5 is read when step 6 has been launched; 10 is the last one."""
    found = []
    for name in ("late", "plain"):
        trainer = make_trainer(tmp_path / name, **(SMALL | {"eval_every": 100, "checkpoint_every": 100}))
        bad_at(trainer, step, value)
        with pytest.raises(
            DivergedError, match=f"^step {step} can't be computed: the gradients' norm is {value}"
        ) as error:
            trainer.run()
        arrays = [array for slot in trainer.optimizer.slots for array in (slot.parameter.data, *slot.state.values())]
        found.append(
            (
                str(error.value).replace(name, ""), trainer.state.step, {slot.step for slot in trainer.optimizer.slots},
                trainer.model.generator.state_dict(), [array.get().tobytes() for array in arrays],
            )
        )  # fmt: skip
        plain(monkeypatch)
    assert found[0] == found[1]


def test_a_step_that_fails_leaves_the_one_before_it(gpu: None, tmp_path: Path) -> None:
    """Its checkpoint has the steps before, the one that was still on its way among them."""
    trainer = make_trainer(tmp_path, **(SMALL | {"eval_every": 100, "checkpoint_every": 100}))
    usual, failing = trainer.accumulation.launch, iter([False] * 5 + [True])

    def launch_batches(update: Any = None) -> Any:
        if next(failing):
            raise MemoryError("no memory today")
        return usual(update)

    trainer.accumulation.launch = launch_batches  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        trainer.run()
    assert trainer.checkpoints.load("latest").step == 5
    assert len(trainer.state.losses) == 2  # since the line of step 3


class Watching(Watch):
    def __init__(self) -> None:
        self.seen: list[int] = []

    def after_step(self, trainer: Any) -> list[Any]:
        self.seen.append(len(trainer.state.losses) + 3 * ((trainer.state.step - 1) // 3))
        return []


@pytest.mark.slow
def test_whoever_watches_sees_each_step_as_it_is(gpu: None, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, **SMALL)
    trainer.watch = watching = Watching()
    trainer.run()
    assert not isinstance(trainer.steps, LateSteps)
    assert watching.seen == list(range(1, 12))


def test_the_hooks_of_the_command_line_take_late_steps_unless_they_watch_layers(gpu: None, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, **SMALL)
    for settings, late in (({}, True), ({"sample_every": 5}, True), ({"watch_layers": 2}, False)):
        follow(trainer, Following(**settings), CharTokenizer("abcdefghijk"))
        assert isinstance(steps_of(trainer), LateSteps) == late


@pytest.mark.parametrize(
    "settings", [{"dtype": "float16"}, {"ema": 0.9}, {"optimizer": "lion"}, {"detect_anomaly": True}, {"l2": 0.1}]
)
def test_which_runs_wait(gpu: None, tmp_path: Path, settings: Any) -> None:
    trainer = make_trainer(tmp_path, **(SMALL | settings))
    assert not isinstance(steps_of(trainer), LateSteps)


def test_a_run_on_the_cpu_waits(tmp_path: Path) -> None:
    assert not isinstance(steps_of(make_trainer(tmp_path)), LateSteps)


@pytest.mark.slow
@pytest.mark.skipif(emulator.COMPILER is None, reason="no C++ compiler (g++, c++ or clang++)")
def test_nothing_is_read_between_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the kernels: neither the loss nor the norm, nor anything else, but what was asked for before."""
    with standin.installed(bodies=kernel_body), tg.use_kernels("auto"), tg.use_backend("cupy"):
        trainer = make_trainer(tmp_path, **SMALL)
        trainer.steps = steps_of(trainer)
        assert isinstance(trainer.steps, LateSteps)
        trainer.steps.step()

        def waits(*_: Any, **options: Any) -> Any:
            if options.get("blocking", True):
                raise AssertionError("the host waits")
            return usual(*_, **options)

        usual = standin.ndarray.get
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "get", "__float__", "__int__", "__bool__"):
                patch.setattr(standin.ndarray, name, waits)
            for _ in range(3):
                trainer.steps.step()
        trainer.steps.settle()
        assert len(trainer.state.losses) == 4
        assert np.isfinite(trainer.state.losses).all()


# The factor on the device ---------------------------------------------------------------------------


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e6])
def test_the_factor_is_that_of_the_host(gpu: None, max_norm: float) -> None:
    rng = np.random.default_rng(0)
    parameters = [Tensor(standin.on_gpu(np.zeros(shape, np.float32)), requires_grad=True) for shape in ((3, 4), (5,))]
    for p in parameters:
        p.grad = standin.on_gpu(rng.standard_normal(p.shape).astype(np.float32))
    scale = ScaleOnDevice(parameters)
    scale.compute(4.0, max_norm)
    norm = grad_norm(parameters) / 4.0
    expected = 1 / 4.0 * (clip_coefficient(norm, max_norm) if max_norm else 1.0)
    assert scale.on_device.get().tolist() == [expected, norm, 1.0]
    assert float(scale) == expected


def test_after_a_norm_that_is_not_finite_no_step_is_taken_until_someone_says_so(gpu: None) -> None:
    parameter = Tensor(standin.on_gpu(np.ones(3, np.float32)), requires_grad=True)
    optimizers = [tg.optim.AdamW([parameter], lr=0.1), tg.optim.SGD([parameter], lr=0.1)]
    scale = ScaleOnDevice([parameter])
    for grads, goes_on in (([1.0, math.nan, 1.0], False), ([1.0, 1.0, 1.0], False), ([1.0, 1.0, 1.0], True)):
        if goes_on:
            scale.go_on()
        parameter.grad = standin.on_gpu(np.array(grads, np.float32))
        scale.compute(1.0, 0.0)
        for optimizer in optimizers:
            before = parameter.data.get()
            optimizer.step(grad_scale=scale)
            assert (parameter.data.get() != before).all() == goes_on
