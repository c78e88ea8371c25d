"""The forward and backward pass of one batch, as a CUDA graph where possible, and the update of the weights with it.

    def work(inputs, targets):
        loss = model.loss(inputs, targets)
        loss.backward()
        return loss

    step = GraphedStep(model, work, "auto", say)
    loss = step(inputs, targets)                      # what work(inputs, targets) returns; the gradients are the same
    loss = step(inputs, targets, update=update)       # and then update()

On a GPU, Python takes longer to launch a small model's step than the GPU to compute it. The launches are the same at
every step, so they are recorded once and replayed (`tinygpt.backends.cupy_graph`). The first two batches run eagerly,
in the memory that the graph will use, and then the second one is recorded. The third batch runs twice, replayed and
eagerly, and the gradients are compared bit for bit: this detects a recorded launch that should differ from batch to
batch. From the fourth batch on there are only replays.

The first batch also shows how much memory a step takes. If the GPU has plenty, later batches keep the outputs that are
otherwise recomputed in the backward pass (`graph.keep_outputs`), with the same results.

Norm, clipping and AdamW follow the passes in the same graph if nobody has to read the norm in between (`update.py`).
Their inputs from the host, such as the learning rate, are copied to the GPU like the batch. The comparison then covers
the weights and the optimizer's state too, and needs a copy of both. If there is no memory for the copies, and in all
other runs, Python launches the optimizer.

Gradients that are added to those of an earlier batch need a separate graph; so does each loss scale. A batch with a
weight other than 1 (`accumulation.py`) is not recorded, nor is one with ignored targets. Evaluation never uses a graph.
If anything about the model has changed since the last step (`model_facts.py`), it is recorded anew; while hooks watch a
layer, or other parameters are trained than at first, everything runs eagerly.

If something can't be recorded, or the comparison fails, everything runs eagerly, and one line says why.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ... import backends
from ...backends.cupy_graph import CaptureError, Recorder
from ...errors import UsageError
from ...graph import keep_outputs, mode
from ...ops.cross_entropy import IGNORE_INDEX
from ...tensor import Tensor
from .model_facts import ModelFacts
from .update import Update

WARM_UP = 2  # batches that run eagerly before one is recorded
PLENTY = 2.0  # times the memory of the first batch free: outputs are kept, which takes up to 0.6 times as much again
MAX_GRAPHS = 8  # cached at a time; a step has one, or two if gradients are accumulated


class _Batch(NamedTuple):
    """A batch, and what is done with it."""

    inputs: np.ndarray
    targets: np.ndarray
    numbers: tuple[Any, ...]  # the other arguments of the work
    update: Update | None

    @property
    def hosts(self) -> tuple[np.ndarray, ...]:
        """What is copied to the GPU before a replay."""
        return (self.inputs, self.targets) if self.update is None else (self.inputs, self.targets, self.update.numbers)


@dataclass
class Recorded:
    """The graph of one kind of batch, and what led up to it."""

    runs: int = 0  # eager ones so far
    graph: Any = None
    loss: Any = None  # the array that a replay writes the loss to
    gradients: list[Any] | None = None  # the arrays that it writes the gradients to; None: the existing gradients
    rng_streams: int = 0  # how many random streams a pass consumes
    checked: bool = False  # whether a replay was compared


class _State(NamedTuple):
    """What a batch changes on the host."""

    gradients: list[Any]  # not copies
    rng_stream: int  # the index of the next one
    of_update: Any


class GraphedStep:
    """`step(inputs, targets, *numbers)` is `work(inputs, targets, *numbers)`, replayed from a CUDA graph if possible.

    work: computes the loss of a batch (B, T), adds to the parameters' gradients and returns the loss. It may draw
    random numbers only from `model.generator`. numbers: its other arguments, such as a loss scale. update: what
    follows, see `update.py`.
    mode: "off"; "auto": if the model is on a GPU and recording works; "on": raise UsageError if it does not.
    say: called with the line that explains why graphs are not used.
    """

    def __init__(
        self, model: Any, work: Callable[..., Tensor], mode: str = "auto", say: Callable[[str], None] = print
    ) -> None:
        self.model, self.work, self.mode, self.say = model, work, mode, say
        self.facts = ModelFacts(model)
        self.parameters = self.facts.trained
        self.recorder: Any = None
        self.kinds: dict[Hashable, Recorded] = {}
        self.replays = 0
        self.keeps_outputs = False
        self.takes_updates = True  # unless there is no memory to compare them
        self.wanted = mode != "off" and self.parameters[0].backend == "cupy"
        if mode == "on" and not self.wanted:
            raise UsageError("CUDA graphs are for a GPU: leave out --cuda-graphs on, or add --backend cupy")

    def __call__(self, inputs: np.ndarray, targets: np.ndarray, *numbers: Any, update: Update | None = None) -> Tensor:
        if update is not None and not (self.takes_updates and update.recordable):
            loss = self(inputs, targets, *numbers)
            update()
            return loss
        if not self.wanted or mode.detect_anomaly or bool((targets == IGNORE_INDEX).any()):
            return self.eager(inputs, targets, *numbers, update=update)
        if self.facts.changed():
            self.kinds.clear()
        if self.facts.hooked or {*map(id, self.facts.trained)} != {*map(id, self.parameters)}:
            return self.eager(inputs, targets, *numbers, update=update)
        batch = _Batch(inputs, targets, numbers, update)
        kind = self._kind(batch)
        if kind is None:
            return self._eager(batch)
        if kind.graph is not None and kind.checked:
            self.model.check_ids(inputs)
            self.model.check_ids(targets)
            return self._replay(kind, batch)
        return self._attempt(kind, batch)

    def eager(self, *arguments: Any, update: Update | None = None) -> Tensor:
        """Without a graph, whatever the arguments of the work."""
        loss = self.work(*arguments)
        if update is not None:
            update()
        return loss

    def _eager(self, batch: _Batch) -> Tensor:
        return self.eager(batch.inputs, batch.targets, *batch.numbers, update=batch.update)

    def _kind(self, batch: _Batch) -> Recorded | None:
        """The kind of a batch. Batches of one kind need the same launches: same addresses, same numbers.

        None if some parameters have a gradient already and others do not: such a batch is not recorded.
        """
        gradients = [p.grad for p in self.parameters]
        present = [g is not None for g in gradients]
        if any(present) and not all(present):
            return None
        addresses = tuple(map(backends.address, gradients)) if all(present) else ()
        shapes = tuple([(array.shape, array.dtype) for array in batch.hosts])
        updated = None if batch.update is None else batch.update.kind
        key = (shapes, batch.numbers, updated, addresses, self.model.training, self.model.activations)
        kind = self.kinds.pop(key, None) or Recorded()
        self.kinds[key] = kind  # moved to the end: the least recently used one is deleted first
        while len(self.kinds) > MAX_GRAPHS:
            del self.kinds[next(iter(self.kinds))]
        return kind

    # Warm-up and recording ------------------------------------------------------------------------

    def _attempt(self, kind: Recorded, batch: _Batch) -> Tensor:
        """Warm up, record or compare with this batch. If that fails, say why and run the batch eagerly."""
        before = self._state(batch)
        try:
            if self.recorder is None:
                self.recorder = Recorder()
            self.recorder.fill(batch.hosts)
        except Exception as error:  # any error of CUDA and its libraries; nothing has been computed yet
            self._give_up(error)
            return self._eager(batch)
        if kind.graph is not None:
            return self._compared(kind, batch)
        try:
            with self.recorder.warm_up(), keep_outputs(self.keeps_outputs):
                loss = self._eager(batch)
        except (CaptureError, MemoryError) as error:
            if self.keeps_outputs and isinstance(error, MemoryError) and before.gradients[0] is None:
                self.keeps_outputs = False
                self._restore(before, batch)
                return self._attempt(kind, batch)
            return self._run_again(error, before, batch)
        kind.runs += 1
        if not any(other.runs > 1 for other in self.kinds.values()):
            self.keeps_outputs = self.recorder.has_room(PLENTY)
        if kind.runs >= WARM_UP:
            try:
                self._capture(kind, before, batch)
            except CaptureError as error:
                self._give_up(error)
        return loss

    def _capture(self, kind: Recorded, before: _State, batch: _Batch) -> None:
        """Record a batch that has just run, without changing gradients, random state or counts of steps."""
        after = self._state(batch)
        losses: list[Tensor] = []
        self._restore(before, batch)
        try:
            with keep_outputs(self.keeps_outputs):
                kind.graph = self.recorder.capture(lambda: losses.append(self._eager(batch)), before.rng_stream)
            kind.loss = losses[0].data
            kind.gradients = None if before.gradients[0] is not None else [p.grad for p in self.parameters]
            kind.rng_streams = self.model.generator.stream - before.rng_stream
        finally:
            self._restore(after, batch)

    def _state(self, batch: _Batch) -> _State:
        gradients = [p.grad for p in self.parameters]
        return _State(gradients, self.model.generator.stream, None if batch.update is None else batch.update.state())

    def _restore(self, state: _State, batch: _Batch) -> None:
        for parameter, gradient in zip(self.parameters, state.gradients, strict=True):
            parameter.grad = gradient
        self.model.generator.stream = state.rng_stream
        if batch.update is not None:
            batch.update.restore(state.of_update)

    # Replays --------------------------------------------------------------------------------------

    def _replay(self, kind: Recorded, batch: _Batch) -> Tensor:
        generator = self.model.generator
        kind.graph.replay(batch.hosts, generator.stream)
        generator.stream += kind.rng_streams
        if kind.gradients is not None:
            for parameter, gradient in zip(self.parameters, kind.gradients, strict=True):
                parameter.grad = gradient
        if batch.update is not None:
            batch.update.again()
        self.replays += 1
        return Tensor(kind.loss.copy())  # a copy, because the next replay overwrites kind.loss

    def _compared(self, kind: Recorded, batch: _Batch) -> Tensor:
        """Replay the batch, then run it eagerly. If the results differ in a single bit, graphs are given up."""
        changed = [] if batch.update is None else batch.update.arrays()
        try:
            held = [array.copy() for array in changed]
        except MemoryError:
            self.takes_updates = False
            return self(batch.inputs, batch.targets, *batch.numbers, update=batch.update)
        before = self._state(batch)
        values = None if before.gradients[0] is None else [gradient.copy() for gradient in before.gradients]
        replayed = self._replay(kind, batch)
        after = self._state(batch)
        found = [gradient if values is None else gradient.copy() for gradient in after.gradients]
        self._restore(before, batch)
        if values is not None:
            for gradient, value in zip(before.gradients, values, strict=True):
                gradient[...] = value
        for i, array in enumerate(changed):  # one by one: `held` are the results from here on
            result = array.copy()
            array[...] = held[i]
            held[i] = result
        with self.recorder.warm_up(), keep_outputs(self.keeps_outputs):
            loss = self._eager(batch)
        expected = [loss.data, *(p.grad for p in self.parameters), *changed]
        array_equal = backends.array_module(loss.data).array_equal
        pairs = zip([replayed.data, *found, *held], expected, strict=True)
        same = all(bool(array_equal(a, b, equal_nan=True)) for a, b in pairs)
        if not same or self.model.generator.stream != after.rng_stream:
            self._give_up(CaptureError("a replayed batch did not give the same bits as an eager one"))
            return loss
        self._restore(after, batch)
        kind.checked = True
        return replayed

    # Giving up ------------------------------------------------------------------------------------

    def _give_up(self, reason: Exception) -> None:
        self.wanted, self.recorder = False, None
        self.kinds.clear()
        if self.mode == "on":
            raise UsageError(f"the step can't run as a CUDA graph: {reason}: leave out --cuda-graphs on") from reason
        self.say(f"CUDA graphs are not used, because {reason}: kernels are launched one by one, which takes longer")

    def _run_again(self, reason: Exception, before: _State, batch: _Batch) -> Tensor:
        """Run an aborted batch eagerly. Only possible if no gradients were there that it may have added to."""
        if before.gradients[0] is not None:
            raise UsageError(f"the step can't run as a CUDA graph: {reason}: add --cuda-graphs off") from reason
        self._give_up(reason)
        self._restore(before, batch)
        return self._eager(batch)
