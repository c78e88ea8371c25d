"""Forward and backward pass of one batch, as a CUDA graph where that can be.

    step = GraphedStep(model, forward_and_backward, "auto", say)
    loss = step(inputs, targets)                      # the gradients are in the parameters, as after backward()

On a GPU a small model's step is launched by Python more slowly than it is computed. Its launches are the same at every
step, so they are recorded once and replayed (`tinygpt.backends.cupy_graph`). The first two batches run as usual, in the
memory that the graph will use. The launches of the second are recorded. The third batch is done twice, as a replay and
as usual, and the gradients are compared bit for bit: should anything have been recorded that changes from batch to
batch, it shows here. From the fourth on there are replays alone.

Python still draws the batch, looks at the loss and at the norm of the gradients, and launches the optimizer, whose
learning rate, step number and clipping change from step to step: a handful of launches. Gradients that are added to
those of a batch before have a graph of their own; so does each loss scale. A batch that has a weight of its own in its
step (`accumulation.py`) is not recorded, as little as one with ignored targets. Evaluation is never a part of a graph.

Where something can't be recorded, or the comparison fails, all goes on as usual, and one line says why.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import backends
from ..backends.cupy_graph import CaptureError, Recorder
from ..errors import UsageError
from ..gpt import GPT
from ..graph import mode
from ..ops.cross_entropy import IGNORE_INDEX
from ..tensor import Tensor

WARM_UP = 2  # batches that run as usual before there is a graph
MAX_GRAPHS = 8  # kept at a time; a step has one, or two where gradients are accumulated


@dataclass
class Recorded:
    """What is known of one kind of batch."""

    runs: int = 0  # as usual
    graph: Any = None
    loss: Any = None  # where a replay leaves it
    gradients: list[Any] | None = None  # and these; None: in the parameters' own
    rng_streams: int = 0  # how many of them a pass uses up
    checked: bool = False


def forward_and_backward(model: GPT, inputs: np.ndarray, targets: np.ndarray, scale: float) -> Tensor:
    """The loss of one batch; its gradients, times `scale`, are added to the parameters'."""
    loss = model.loss(inputs, targets)
    loss.backward(scale)
    return loss


class GraphedStep:
    """`step(inputs, targets, *numbers)` is `work(inputs, targets, *numbers)`, from a CUDA graph where that can be.

    work: computes the loss of a batch (B, T), adds to the parameters' gradients and returns the loss. It draws random
    numbers from `model.generator` alone. numbers: what else it depends on, such as a loss scale.
    mode: "off"; "auto": where the model is on a GPU, as long as it works; "on": if it does not, UsageError.
    say: called with the line that says why there are no graphs.
    """

    def __init__(
        self, model: GPT, work: Callable[..., Tensor], mode: str = "auto", say: Callable[[str], None] = print
    ) -> None:
        self.model, self.work, self.mode, self.say = model, work, mode, say
        self.parameters = list(model.parameters())
        self.recorder: Any = None
        self.kinds: dict[Hashable, Recorded] = {}
        self.replays = 0
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
        """Batches are of one kind when the same launches do them: to the same places, with the same numbers.

        None for a batch that gives some of the parameters their first gradient, and adds to others'.
        """
        gradients = [p.grad for p in self.parameters]
        present = [g is not None for g in gradients]
        if any(present) and not all(present):
            return None
        places = tuple(map(backends.address, gradients)) if all(present) else ()
        batch = (inputs.shape, inputs.dtype, targets.shape, targets.dtype)
        key = (batch, numbers, places, self.model.training, self.model.activations)
        kind = self.kinds.pop(key, None) or Recorded()
        self.kinds[key] = kind  # now the last
        while len(self.kinds) > MAX_GRAPHS:
            del self.kinds[next(iter(self.kinds))]
        return kind

    # As usual, and then recorded ------------------------------------------------------------------

    def _attempt(self, kind: Recorded, inputs: np.ndarray, targets: np.ndarray, numbers: tuple[Any, ...]) -> Tensor:
        """A batch on the way to a graph. What goes wrong on this way is said, and the batch done as usual."""
        before = self._state()
        try:
            if self.recorder is None:
                self.recorder = Recorder()
            self.recorder.fill((inputs, targets))
        except Exception as error:  # whatever CUDA and its libraries raise: nothing has been done yet
            self._give_up(error)
            return self.work(inputs, targets, *numbers)
        if kind.graph is not None:
            return self._compared(kind, inputs, targets, numbers)
        try:
            with self.recorder.warm_up():
                loss = self.work(inputs, targets, *numbers)
        except (CaptureError, MemoryError) as error:
            return self._done_again(error, before, inputs, targets, numbers)
        kind.runs += 1
        if kind.runs >= WARM_UP:
            try:
                self._capture(kind, before, lambda: self.work(inputs, targets, *numbers))
            except CaptureError as error:
                self._give_up(error)
        return loss

    def _capture(self, kind: Recorded, before: tuple[Any, int], work: Callable[[], Tensor]) -> None:
        """Record a batch that has just been done; all is left as it was."""
        after = self._state()
        made: list[Tensor] = []
        gradients_before, first_rng_stream = before
        self._restore(before)
        try:
            kind.graph = self.recorder.capture(lambda: made.append(work()), first_rng_stream)
            kind.loss = made[0].data
            kind.gradients = None if gradients_before[0] is not None else [p.grad for p in self.parameters]
            kind.rng_streams = self.model.generator.stream - first_rng_stream
        finally:
            self._restore(after)

    def _state(self) -> tuple[list[Any], int]:
        """The gradients (not copies) and the number of the next RNG stream."""
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
        return Tensor(kind.loss.copy())  # the next replay writes to the same place

    def _compared(self, kind: Recorded, inputs: np.ndarray, targets: np.ndarray, numbers: tuple[Any, ...]) -> Tensor:
        """A replay, and then the batch as usual. Where they differ in a single bit, there will be no graphs."""
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
        with self.recorder.warm_up():
            loss = self.work(inputs, targets, *numbers)
        expected = [replayed.data, *found], [loss.data, *(p.grad for p in self.parameters)]
        same = all(bool(array_equal(a, b, equal_nan=True)) for a, b in zip(*expected, strict=True))
        if not same or self.model.generator.stream != after[1]:
            self._give_up(CaptureError("a replayed batch did not give the bits of the batch itself"))
            return loss
        self._restore(after)
        kind.checked = True
        return replayed

    # Without graphs -------------------------------------------------------------------------------

    def _give_up(self, reason: Exception) -> None:
        self.wanted, self.recorder = False, None
        self.kinds.clear()
        if self.mode == "on":
            raise UsageError(f"the step can't be a CUDA graph: {reason}: leave out --cuda-graphs on") from reason
        self.say(f"CUDA graphs are not used, because {reason}: kernels are launched one by one, which takes longer")

    def _done_again(self, reason: Exception, before: Any, inputs: Any, targets: Any, numbers: Any) -> Tensor:
        """The batch that was broken off, without graphs: possible as long as it had nothing to add its gradients to."""
        if before[0][0] is not None:
            raise UsageError(f"the step can't be a CUDA graph: {reason}: add --cuda-graphs off") from reason
        self._give_up(reason)
        self._restore(before)
        return self.work(inputs, targets, *numbers)
