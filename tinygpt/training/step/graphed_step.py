"""The forward and backward pass of one batch, as a CUDA graph where possible.

    def work(inputs, targets):
        loss = model.loss(inputs, targets)
        loss.backward()
        return loss

    step = GraphedStep(model, work, "auto", say)
    loss = step(inputs, targets)                      # what work(inputs, targets) returns; the gradients are the same

On a GPU, Python takes longer to launch a small model's step than the GPU to compute it. The launches are the same at
every step, so they are recorded once and replayed (`tinygpt.backends.cupy_graph`). The first two batches run eagerly,
in the memory that the graph will use, and then the second one is recorded. The third batch runs twice, replayed and
eagerly, and the gradients are compared bit for bit: this detects a recorded launch that should differ from batch to
batch. From the fourth batch on there are only replays.

The first batch also shows how much memory a step takes. If the GPU has plenty, later batches keep the outputs that are
otherwise recomputed in the backward pass (`graph.keep_outputs`), with the same results.

Python still draws the batch, reads the loss and the norm of the gradients, and launches the optimizer, whose learning
rate, step number and clipping change from step to step: a handful of launches. Gradients that are added to those of an
earlier batch need a separate graph; so does each loss scale. A batch with a weight other than 1 (`accumulation.py`) is
not recorded, nor is one with ignored targets. Evaluation never uses a graph.

If something can't be recorded, or the comparison fails, everything runs eagerly, and one line says why.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ... import backends
from ...backends.cupy_graph import CaptureError, Recorder
from ...errors import UsageError
from ...graph import keep_outputs, mode
from ...ops.cross_entropy import IGNORE_INDEX
from ...tensor import Tensor

WARM_UP = 2  # batches that run eagerly before one is recorded
PLENTY = 2.0  # times the memory of the first batch free: outputs are kept, which takes up to 0.6 times as much again
MAX_GRAPHS = 8  # cached at a time; a step has one, or two if gradients are accumulated


@dataclass
class Recorded:
    """The graph of one kind of batch, and what led up to it."""

    runs: int = 0  # eager ones so far
    graph: Any = None
    loss: Any = None  # the array that a replay writes the loss to
    gradients: list[Any] | None = None  # the arrays that it writes the gradients to; None: the existing gradients
    rng_streams: int = 0  # how many random streams a pass consumes
    checked: bool = False  # whether a replay was compared


class GraphedStep:
    """`step(inputs, targets, *numbers)` is `work(inputs, targets, *numbers)`, replayed from a CUDA graph if possible.

    work: computes the loss of a batch (B, T), adds to the parameters' gradients and returns the loss. It may draw
    random numbers only from `model.generator`. numbers: its other arguments, such as a loss scale.
    mode: "off"; "auto": if the model is on a GPU and recording works; "on": raise UsageError if it does not.
    say: called with the line that explains why graphs are not used.
    """

    def __init__(
        self, model: Any, work: Callable[..., Tensor], mode: str = "auto", say: Callable[[str], None] = print
    ) -> None:
        self.model, self.work, self.mode, self.say = model, work, mode, say
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.recorder: Any = None
        self.kinds: dict[Hashable, Recorded] = {}
        self.replays = 0
        self.keeps_outputs = False
        self.wanted = mode != "off" and self.parameters[0].backend == "cupy"
        if mode == "on" and not self.wanted:
            raise UsageError("CUDA graphs are for a GPU: leave out --cuda-graphs on, or add --backend cupy")

    def __call__(self, inputs: np.ndarray, targets: np.ndarray, *numbers: Any) -> Tensor:
        if not self.wanted or mode.detect_anomaly or bool((targets == IGNORE_INDEX).any()):
            return self.work(inputs, targets, *numbers)
        kind = self._kind(inputs, targets, numbers)
        if kind is None:
            return self.work(inputs, targets, *numbers)
        if kind.graph is not None and kind.checked:
            self.model.check_ids(inputs)
            self.model.check_ids(targets)
            return self._replay(kind, (inputs, targets))
        return self._attempt(kind, inputs, targets, numbers)

    def _kind(self, inputs: np.ndarray, targets: np.ndarray, numbers: tuple[Any, ...]) -> Recorded | None:
        """The kind of a batch. Batches of one kind need the same launches: same addresses, same numbers.

        None if some parameters have a gradient already and others do not: such a batch is not recorded.
        """
        gradients = [p.grad for p in self.parameters]
        present = [g is not None for g in gradients]
        if any(present) and not all(present):
            return None
        addresses = tuple(map(backends.address, gradients)) if all(present) else ()
        batch = (inputs.shape, inputs.dtype, targets.shape, targets.dtype)
        key = (batch, numbers, addresses, self.model.training, self.model.activations)
        kind = self.kinds.pop(key, None) or Recorded()
        self.kinds[key] = kind  # moved to the end: the least recently used one is deleted first
        while len(self.kinds) > MAX_GRAPHS:
            del self.kinds[next(iter(self.kinds))]
        return kind

    # Warm-up and recording ------------------------------------------------------------------------

    def _attempt(self, kind: Recorded, inputs: np.ndarray, targets: np.ndarray, numbers: tuple[Any, ...]) -> Tensor:
        """Warm up, record or compare with this batch. If that fails, say why and run the batch eagerly."""
        before = self._state()
        try:
            if self.recorder is None:
                self.recorder = Recorder()
            self.recorder.fill((inputs, targets))
        except Exception as error:  # any error of CUDA and its libraries; nothing has been computed yet
            self._give_up(error)
            return self.work(inputs, targets, *numbers)
        if kind.graph is not None:
            return self._compared(kind, inputs, targets, numbers)
        try:
            with self.recorder.warm_up(), keep_outputs(self.keeps_outputs):
                loss = self.work(inputs, targets, *numbers)
        except (CaptureError, MemoryError) as error:
            if self.keeps_outputs and isinstance(error, MemoryError) and before[0][0] is None:
                self.keeps_outputs = False
                self._restore(before)
                return self._attempt(kind, inputs, targets, numbers)
            return self._run_again(error, before, inputs, targets, numbers)
        kind.runs += 1
        if not any(other.runs > 1 for other in self.kinds.values()):
            self.keeps_outputs = self.recorder.has_room(PLENTY)
        if kind.runs >= WARM_UP:
            try:
                self._capture(kind, before, lambda: self.work(inputs, targets, *numbers))
            except CaptureError as error:
                self._give_up(error)
        return loss

    def _capture(self, kind: Recorded, before: tuple[Any, int], work: Callable[[], Tensor]) -> None:
        """Record a batch that has just run, without changing gradients or random state."""
        after = self._state()
        losses: list[Tensor] = []
        gradients_before, first_rng_stream = before
        self._restore(before)
        try:
            with keep_outputs(self.keeps_outputs):
                kind.graph = self.recorder.capture(lambda: losses.append(work()), first_rng_stream)
            kind.loss = losses[0].data
            kind.gradients = None if gradients_before[0] is not None else [p.grad for p in self.parameters]
            kind.rng_streams = self.model.generator.stream - first_rng_stream
        finally:
            self._restore(after)

    def _state(self) -> tuple[list[Any], int]:
        """The gradients (not copies) and the index of the next RNG stream."""
        return [p.grad for p in self.parameters], self.model.generator.stream

    def _restore(self, state: tuple[list[Any], int]) -> None:
        for parameter, gradient in zip(self.parameters, state[0], strict=True):
            parameter.grad = gradient
        self.model.generator.stream = state[1]

    # Replays --------------------------------------------------------------------------------------

    def _replay(self, kind: Recorded, batch: tuple[np.ndarray, np.ndarray]) -> Tensor:
        generator = self.model.generator
        kind.graph.replay(batch, generator.stream)
        generator.stream += kind.rng_streams
        if kind.gradients is not None:
            for parameter, gradient in zip(self.parameters, kind.gradients, strict=True):
                parameter.grad = gradient
        self.replays += 1
        return Tensor(kind.loss.copy())  # a copy, because the next replay overwrites kind.loss

    def _compared(self, kind: Recorded, inputs: np.ndarray, targets: np.ndarray, numbers: tuple[Any, ...]) -> Tensor:
        """Replay the batch, then run it eagerly. If the results differ in a single bit, graphs are given up."""
        array_equal = backends.array_module(self.parameters[0].data).array_equal
        before = self._state()
        values = None if before[0][0] is None else [gradient.copy() for gradient in before[0]]
        replayed = self._replay(kind, (inputs, targets))
        after = self._state()
        found = [gradient if values is None else gradient.copy() for gradient in after[0]]
        self._restore(before)
        if values is not None:
            for gradient, value in zip(before[0], values, strict=True):
                gradient[...] = value
        with self.recorder.warm_up(), keep_outputs(self.keeps_outputs):
            loss = self.work(inputs, targets, *numbers)
        expected = [replayed.data, *found], [loss.data, *(p.grad for p in self.parameters)]
        same = all(bool(array_equal(a, b, equal_nan=True)) for a, b in zip(*expected, strict=True))
        if not same or self.model.generator.stream != after[1]:
            self._give_up(CaptureError("a replayed batch did not give the same bits as an eager one"))
            return loss
        self._restore(after)
        kind.checked = True
        return replayed

    # Giving up ------------------------------------------------------------------------------------

    def _give_up(self, reason: Exception) -> None:
        self.wanted, self.recorder = False, None
        self.kinds.clear()
        if self.mode == "on":
            raise UsageError(f"the step can't run as a CUDA graph: {reason}: leave out --cuda-graphs on") from reason
        self.say(f"CUDA graphs are not used, because {reason}: kernels are launched one by one, which takes longer")

    def _run_again(self, reason: Exception, before: Any, inputs: Any, targets: Any, numbers: Any) -> Tensor:
        """Run an aborted batch eagerly. Only possible if there were no gradients that it may have added to already."""
        if before[0][0] is not None:
            raise UsageError(f"the step can't run as a CUDA graph: {reason}: add --cuda-graphs off") from reason
        self._give_up(reason)
        self._restore(before)
        return self.work(inputs, targets, *numbers)
