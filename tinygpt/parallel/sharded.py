"""An optimizer whose state is divided up: each of N processes holds 1 / N of it (ZeRO, stage 1).

AdamW keeps two numbers for each weight, twice the model's memory, and without sharding every process holds the same
ones. With it, a step is

    reduce-scatter     each process gets the sum of the gradients for its part of each bucket
    clip               by the norm of the whole gradient, from the sums of squares of the parts
    update             of its part of the weights, with its part of the state
    all-gather         every process gets the new weights

which sends as much as the all-reduce of the gradients that it replaces. The update of a weight must not depend on
others (`Optimizer.elementwise`), so Muon, which works on whole matrices, can't be sharded.

A checkpoint holds the whole state, in the format of a single process: `state_dict` gathers it.

Source: Rajbhandari, Rasley, Ruwase, He, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", SC
2020, section 5.1 (P_os).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backends import address, array_module, move
from ..changes import note_change
from ..errors import ShapeError, UsageError
from ..optim import Optimizer
from ..optim.clip import sum_of_squares
from ..optim.optimizer import Slot
from ..tensor import Tensor
from ..typing import Array
from .buckets import Bucket, GradientBuckets


@dataclass
class Piece:
    """The part of one parameter that this process updates."""

    whole: Slot  # of the parameter, without state
    slot: Slot  # of the part: its parameter is a view of the whole one's array
    bucket: int
    in_parameter: slice
    in_part: slice  # of this process's part of the bucket


class ShardedOptimizer:
    """`optimizer` over the same parameters, with 1 / N of its state. It replaces an `Optimizer` in a loop.

    buckets: those of the parameters' gradients, with `scatter`. Raises UsageError for an optimizer that can't be
    sharded.
    """

    keeps_rounded = False
    takes_scale_on_device = False  # the norm is computed on the host

    def __init__(self, optimizer: Optimizer, buckets: GradientBuckets) -> None:
        if not optimizer.elementwise:
            raise UsageError(
                f"the optimizer {optimizer.where} works on whole matrices, so its state can't be sharded: leave out "
                "--shard-optimizer, or choose another optimizer"
            )
        self.buckets, self.communicator = buckets, buckets.communicator
        self.slots = optimizer.slots
        self.kinds = {slot.name: tuple(slot.state) for slot in self.slots}  # the state arrays of each parameter
        for slot in self.slots:
            slot.state = {}  # frees the whole state
        self.inner = copy.copy(optimizer)
        self.sums: list[Array] = []
        self._cut()

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.inner.lr

    @lr.setter
    def lr(self, value: float) -> None:
        self.inner.lr = value

    @property
    def state_bytes(self) -> int:
        """How much memory the state takes in this process."""
        return sum(array.nbytes for slot in self.inner.slots for array in slot.state.values())

    def _cut(self) -> None:
        """Make the pieces of this process."""
        by_parameter = {id(slot.parameter): slot for slot in self.slots}
        self.pieces: list[Piece] = []
        for number, bucket in enumerate(self.buckets.buckets):
            first, n = self._first(bucket), self._part(bucket)
            for place in bucket.places:
                begin, end = max(place.begin, first), min(place.end, first + n)
                if begin < end:
                    inside = slice(begin - place.begin, end - place.begin)
                    whole = by_parameter[id(place.parameter)]
                    slot = self._slot(whole, inside)
                    self.pieces.append(Piece(whole, slot, number, inside, slice(begin - first, end - first)))
        self.inner.slots = [piece.slot for piece in self.pieces]

    def _slot(self, whole: Slot, inside: slice) -> Slot:
        part = Tensor(flat(whole.parameter)[inside])
        slot = Slot(whole.name, part, whole.lr_scale, whole.weight_decay, whole.l1, whole.l2, whole.settings)
        zeros = array_module(part.data).zeros
        slot.state = {kind: zeros(part.shape, part.dtype) for kind in self.kinds[whole.name]}
        return slot

    # A step -------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Wait for the sums of the gradients: call after the backward pass."""
        self.sums = self.buckets.finish()

    def grad_norm(self) -> float:
        """The norm of the whole gradient."""
        with np.errstate(all="ignore"):
            here = float(sum(sum_of_squares(part) for part in self.sums))
            return math.sqrt(sum(self.communicator.gather_values(here)))

    def gradient_squares(self) -> dict[int, float]:
        """The sum of the squares of each parameter's gradient, by the parameter's id. All processes call it."""
        here = dict.fromkeys((slot.name for slot in self.slots), 0.0)
        for piece in self.pieces:
            here[piece.whole.name] += sum_of_squares(self.sums[piece.bucket][piece.in_part])
        everywhere = self.communicator.gather_values(here)
        return {id(slot.parameter): sum(found[slot.name] for found in everywhere) for slot in self.slots}

    def step(self, grad_scale: float = 1.0) -> None:
        """Update this process's part of the weights, and get the others'. `finish` must have been called."""
        numbers = self.buckets.numbers
        for piece in self.pieces:
            data = flat(piece.whole.parameter)[piece.in_parameter]
            if address(data) != address(piece.slot.parameter.data):  # the model has other arrays now
                piece.slot.parameter.data = data
            absent = numbers[id(piece.whole.parameter)] in self.buckets.absent
            piece.slot.parameter.grad = None if absent else self.sums[piece.bucket][piece.in_part]
            piece.slot.step = piece.whole.step
        for slot in self.slots:
            slot.step += numbers[id(slot.parameter)] not in self.buckets.absent
        self.inner.step(grad_scale)
        self._gather_weights()

    def _first(self, bucket: Bucket) -> int:
        """Where this process's part of a bucket begins."""
        return self.communicator.rank * self._part(bucket)

    def _part(self, bucket: Bucket) -> int:
        """The length of each process's part."""
        return bucket.size // self.communicator.size

    def _gather_weights(self) -> None:
        for piece in self.pieces:
            self.buckets.buckets[piece.bucket].room.part[piece.in_part] = piece.slot.parameter.data
        gathering = [bucket.room.start_gather() for bucket in self.buckets.buckets]
        for bucket, pending in zip(self.buckets.buckets, gathering, strict=True):
            values, first = pending.wait(), self._first(bucket)
            for place in bucket.places:
                weights = flat(place.parameter)
                for begin, end in ((0, first), (first + self._part(bucket), place.end)):  # what the others have updated
                    begin, end = max(begin, place.begin), min(end, place.end)
                    if begin < end:
                        weights[begin - place.begin : end - place.begin] = values[begin:end]
        note_change([slot.parameter.data for slot in self.slots])

    def _gathered(self, number: int, bucket: Bucket, kind: str) -> Array:
        """A state array of all parameters in a bucket, from all processes: as long as the bucket."""
        mine = array_module(bucket.like).zeros(self._part(bucket), bucket.like.dtype)
        for piece in self.pieces:
            if piece.bucket == number and kind in piece.slot.state:
                mine[piece.in_part] = piece.slot.state[kind]
        return self.communicator.all_gather(mine)

    def zero_grad(self) -> None:
        """Set the gradients of all parameters to None."""
        self.sums = []
        for slot in [*self.slots, *self.inner.slots]:
            slot.parameter.grad = None

    # Checkpoints --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """The whole state, as `Optimizer.state_dict` has it, on every process: all of them call this together."""
        names = {id(slot.parameter): slot.name for slot in self.slots}
        state: dict[str, dict[str, Any]] = {"step": {slot.name: slot.step for slot in self.slots}}
        for kind in dict.fromkeys(kind for kinds in self.kinds.values() for kind in kinds):
            state[kind] = {slot.name: None for slot in self.slots if kind in self.kinds[slot.name]}  # in their order
            for number, bucket in enumerate(self.buckets.buckets):
                values = self._gathered(number, bucket, kind)
                for place in bucket.places:
                    name = names[id(place.parameter)]
                    if kind in self.kinds[name]:
                        state[kind][name] = values[place.begin : place.end].reshape(place.parameter.shape)
        return state

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Take this process's part of a `state_dict()`. Raises UsageError, ShapeError."""
        where = f"{self.inner.where}.load_state_dict"
        expected = {"step", *(kind for kinds in self.kinds.values() for kind in kinds)}
        if set(state) != expected:
            raise UsageError(f"{where}: expected the entries {sorted(expected)}, got {sorted(state)}")
        for slot in self.slots:
            for kind in ("step", *self.kinds[slot.name]):
                if slot.name not in state[kind]:
                    raise UsageError(f"{where}: {kind!r} has nothing for the parameter {slot.name!r}")
            for kind in self.kinds[slot.name]:
                if np.shape(state[kind][slot.name]) != slot.parameter.shape:
                    raise ShapeError(
                        f"{where}: {kind!r} of {slot.name!r} has shape {np.shape(state[kind][slot.name])}, the "
                        f"parameter has {slot.parameter.shape}"
                    )
        for slot in self.slots:
            slot.step = int(state["step"][slot.name])
        for piece in self.pieces:
            for kind, array in piece.slot.state.items():
                whole = state[kind][piece.whole.name].reshape(-1)
                array[...] = move(whole[piece.in_parameter], piece.slot.parameter.backend)


def flat(parameter: Tensor) -> Array:
    """The parameter's array as one row: a view, so what is written into it is written into the parameter."""
    if not parameter.data.flags.c_contiguous:
        parameter.data = array_module(parameter.data).ascontiguousarray(parameter.data)
    return parameter.data.reshape(-1)
