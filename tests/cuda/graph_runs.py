"""A step that is recorded as a CUDA graph, through the stand-in, beside one that is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import tinygpt as tg
from tests.cuda import capture, emulator, standin
from tests.training.helpers import SHAPE
from tinygpt._ext import cuda
from tinygpt.backends import cupy_kernels
from tinygpt.optim import ScaleOnDevice
from tinygpt.training.step.graphed_step import GraphedStep

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
