"""The forward and backward pass of one batch on a CPU, from a plan where possible.

    def work(inputs, targets, scale):
        loss = model.loss(inputs, targets)
        loss.backward(scale)
        return loss

    step = PlannedStep(model, work)
    loss = step(inputs, targets, 1.0)                 # what work(...) returns; the gradients are the same

A tenth of a small model's step is Python, which decides what kernels to call. The calls are the same for all batches of
one shape, so they are recorded once and then repeated (`tinygpt.backends.numpy_plan`). The first batch
runs as usual, the second one is recorded while it runs, and the third one is computed twice, from the plan and as
usual: if the results differ in a single bit, the plan has missed something, and there will be none. From the fourth on
there is only the plan.

A plan knows nothing of what it was made from. So it is made only for models that consist of this package's layers, in
float32, and used only while nothing about the model has changed (`model_facts.py`). A batch with targets to ignore or
with a scale is computed as usual, and so is one while hooks watch a layer or the backward pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...backends.numpy_plan import Plan, Tape
from ...graph import mode
from ...kernel import compiled_part
from ...language_model import LanguageModel
from ...nn.known import is_known
from ...tensor import Tensor
from .model_facts import ModelFacts

MAX_KINDS = 4  # plans at a time: a step has one, or two if gradients are accumulated


@dataclass
class Planned:
    """The plan of one kind of batch, and what led up to it."""

    runs: int = 0  # as usual, so far
    plan: Plan | None = None
    recorded: tuple[np.ndarray, ...] = ()  # the batch that it was made from
    rng_streams: int = 0  # how many RNG streams a batch takes
    without_gradient: tuple[int, ...] = ()  # parameters, by index
    checked: bool = False


class PlannedStep:
    """`step(inputs, targets, scale)` is `work(inputs, targets, scale)`, repeated from a plan where possible.

    work: computes the loss of a batch (B, T), adds scale times its gradients to those of the parameters and returns the
    loss. It may draw random numbers only from `model.generator`. wanted: whether to make plans at all.
    """

    def __init__(self, model: Any, work: Callable[..., Tensor], wanted: bool = True) -> None:
        self.model, self.work = model, work
        self.facts = ModelFacts(model)
        self.parameters = self.facts.trained
        self.known = self._is_known()
        self.wanted = wanted and self.known and compiled_part("start_threads") is not None  # its kernels are recorded
        self.kinds: dict[Hashable, Planned] = {}
        self.repeats = 0

    def __call__(self, *batch: Any) -> Tensor:
        if not self.wanted or not self._suits(batch):
            return self.work(*batch)
        if self.facts.changed():
            self.known = self._is_known()
            self.kinds.clear()
        if not self.known:
            return self.work(*batch)
        inputs, targets, _ = batch
        gradients = [parameter.grad for parameter in self.parameters]
        present = [gradient for gradient in gradients if gradient is not None]
        key = (inputs.shape, inputs.dtype, targets.shape, targets.dtype, bool(present))
        if present and not (len(present) == len(gradients) and all(map(_is_whole, present))):
            return self.work(*batch)
        kind = self.kinds.setdefault(key, Planned())
        if len(self.kinds) > MAX_KINDS:
            self.kinds.clear()
        if kind.plan is None:
            return self._recorded(kind, batch, present) if kind.runs else self._as_usual(kind, batch)
        if not kind.checked:
            return self._compared(kind, batch, present)
        return self._repeated(kind, kind.plan, batch, present)

    def _suits(self, batch: Sequence[Any]) -> bool:
        """Whether a plan may compute this batch, if the model has its ids: `_checked`."""
        if mode.detect_anomaly or mode.see_gradients is not None or mode.leaf_ready is not None:
            return False
        if self.model.activations is not None or len(batch) != 3 or batch[2] != 1.0 or int(batch[1].min()) < 0:
            return False
        return all(type(ids) is np.ndarray and ids.dtype.kind in "iu" and _is_whole(ids) for ids in batch[:2])

    def _checked(self, batch: Sequence[Any]) -> Sequence[Any]:
        """The ids of a batch that a plan computes. Raises UsageError for those that the model does not have.

        A model that computes a batch as usual checks them itself.
        """
        return [self.model.check_ids(ids) for ids in batch[:2]]

    def _is_known(self) -> bool:
        """Whether the model consists of what a plan may be made of."""
        facts = self.facts
        return (
            all(map(is_known, facts.modules))
            and all(vars(one).get("generator", self.model.generator) is self.model.generator for one in facts.modules)
            and not facts.hooked
            and type(self.model).loss is LanguageModel.loss
            and all(type(p.data) is np.ndarray and p.dtype == np.float32 for p in facts.parameters)
            and {*map(id, facts.trained)} <= {*map(id, self.parameters)}
        )

    def _as_usual(self, kind: Planned, batch: Sequence[Any]) -> Tensor:
        kind.runs += 1
        return self.work(*batch)

    def _recorded(self, kind: Planned, batch: Sequence[Any], present: list[Any]) -> Tensor:
        """Run a batch as usual, and make the plan from what it calls."""
        first = self.model.generator.stream
        tape = Tape([*batch[:2], *present], first, [parameter.data for parameter in self.model.parameters()])
        with tape.recording():
            loss = self.work(*batch)
        found = [parameter.grad for parameter in self.parameters]
        kind.without_gradient = tuple(i for i, gradient in enumerate(found) if gradient is None)
        kind.plan = tape.plan([loss.data, *(gradient for gradient in found if gradient is not None)])
        kind.rng_streams = self.model.generator.stream - first
        kind.recorded = tuple(array.copy() for array in batch[:2])
        return loss

    def _compared(self, kind: Planned, batch: Sequence[Any], present: list[Any]) -> Tensor:
        """Run a batch as usual. If a plan does not give the same bits, there will be none."""
        if all(map(np.array_equal, batch[:2], kind.recorded)):
            return self.work(*batch)  # a constant that should not be one would not be noticed
        assert kind.plan is not None
        first = self.model.generator.stream
        found = _digest(kind.plan.run([*self._checked(batch), *(array.copy() for array in present)], first, spoil=True))
        loss = self.work(*batch)
        gradients = [parameter.grad for parameter in self.parameters]
        same = found == _digest([loss.data, *(gradient for gradient in gradients if gradient is not None)])
        same = same and self.model.generator.stream - first == kind.rng_streams
        kind.checked = self.wanted = same
        return loss

    def _repeated(self, kind: Planned, plan: Plan, batch: Sequence[Any], present: list[Any]) -> Tensor:
        generator = self.model.generator
        loss, *gradients = plan.run([*self._checked(batch), *present], generator.stream)
        generator.stream += kind.rng_streams
        for i in kind.without_gradient:
            gradients.insert(i, None)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.repeats += 1
        return Tensor(loss)


def _is_whole(array: np.ndarray) -> bool:
    """Whether an array has its memory to itself, all of it and in order."""
    return array.base is None and array.flags.c_contiguous


def _digest(arrays: Sequence[np.ndarray]) -> bytes:
    """The same for the same bits. It stands for the arrays, which may be large, until there is something to compare."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
