"""Gradients are summed over the processes in buckets, while the backward pass still computes.

The backward pass begins at the last layer, so the gradients of the last parameters are ready first. Those of linear
layers are made where they belong in a bucket (`graph.mode.gradient_room`), others are copied there. As soon as all the
parameters of a bucket are ready, its sum starts, and the backward pass goes on meanwhile. Only the sum of the last
bucket has no computation left to overlap with.

    buckets = GradientBuckets(parameters, communicator)
    with buckets.watching():
        loss.backward()          # the last batch of the step; the sums start in here
    buckets.finish()             # p.grad is the sum over all processes

The order in which gradients become ready is at first taken to be the reverse order of the parameters. After the first
backward pass the buckets follow the order that process 0 observed, unless `scatter` fixes them. A parameter that is
used twice (tied embeddings) is ready after its last use and is summed once. If no process has a gradient for a
parameter, it stays without one.

A small bucket starts earlier, and a large one has less overhead: 25 MB, as in PyTorch's DDP. If the gradients would
fill only a few of these, there are eight smaller ones, so that about an eighth of the bytes is left for the end.
Source: Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", VLDB 2020, section 3.2.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..graph import mode
from ..tensor import Tensor
from ..typing import Array
from .communicator import Communicator, Pending, Room, padded

BUCKET_BYTES = 25 * 2**20
_FEWEST, _LEAST_BYTES = 8, 2**18  # at least this many buckets, unless they would be smaller than this


def bucket_size(total: int) -> int:
    """The bytes of a bucket, for gradients of `total` bytes."""
    return min(BUCKET_BYTES, max(_LEAST_BYTES, total // _FEWEST))


@dataclass
class Place:
    """Where the gradient of a parameter is in its bucket."""

    parameter: Tensor
    number: int  # of the parameter, in the order given
    begin: int
    end: int


@dataclass
class Bucket:
    """Some parameters, and the memory for their gradients, one after the other."""

    places: list[Place]
    size: int  # a multiple of the number of processes
    missing: set[int]  # parameters that are not ready yet
    pending: Pending | None = None

    @property
    def like(self) -> Array:
        """An array of the gradients' dtype and backend."""
        return self.places[0].parameter.data

    def move_into(self, room: Room) -> None:
        """Take this memory, before the first step."""
        self.room = room
        self.homes = [self.view(room.array, place) for place in self.places]  # where the gradients are made

    def view(self, array: Array, place: Place) -> Array:
        """The part of `array`, as long as the bucket, that belongs to a parameter, in its shape."""
        return array[place.begin : place.end].reshape(place.parameter.shape)


class GradientBuckets:
    """Sums the gradients of `parameters` over all processes.

    scatter: each process gets only its part of each bucket's sum, for a sharded optimizer (`sharded.py`), whose parts
    need the buckets to stay as they are; the parameters are then left without gradients. bucket_bytes: the most bytes
    in a bucket, unless a single parameter has more; by default `bucket_size`. hidden, waited: seconds of the last step
    for which the sums overlapped with the backward pass, and for which `finish` waited for them.
    """

    def __init__(
        self, parameters: Sequence[Tensor], communicator: Communicator, bucket_bytes: int | None = None,
        scatter: bool = False,
    ) -> None:  # fmt: skip
        self.parameters, self.communicator, self.scatter = list(parameters), communicator, scatter
        total = sum(parameter.size * parameter.dtype.itemsize for parameter in self.parameters)
        self.bucket_bytes = bucket_size(total) if bucket_bytes is None else bucket_bytes
        self.numbers = {id(parameter): number for number, parameter in enumerate(self.parameters)}
        self.order: list[int] = []  # in which gradients became ready in this step
        self.started = 0  # buckets whose sum has begun
        self.early = 0  # of these, during the backward pass
        self.hidden = self.waited = 0.0
        self.absent: set[int] = set()  # parameters that had no gradient on any process in the last step
        self.settled = scatter  # whether the buckets will stay as they are
        self.homes: dict[int, Array] = {}  # where each gradient is made, by the parameter's id
        self.buckets = self._make(range(len(self.parameters) - 1, -1, -1))

    def _move_in(self) -> None:
        """Get memory for the buckets. All processes do this together, so not when this object is created."""
        rooms = self.communicator.rooms([(bucket.size, bucket.like) for bucket in self.buckets])
        for bucket, room in zip(self.buckets, rooms, strict=True):
            bucket.move_into(room)
            self.homes |= {id(p.parameter): home for p, home in zip(bucket.places, bucket.homes, strict=True)}

    def _make(self, order: Sequence[int]) -> list[Bucket]:
        groups: list[list[int]] = []
        filled, last = 0, None
        for number in order:
            parameter = self.parameters[number]
            size = parameter.size * parameter.dtype.itemsize
            if not groups or filled + size > self.bucket_bytes or parameter.dtype != last:
                groups.append([])
                filled = 0
            groups[-1].append(number)
            filled, last = filled + size, parameter.dtype
        return [self._bucket(group) for group in groups]

    def _bucket(self, numbers: list[int]) -> Bucket:
        places, begin = [], 0
        for number in numbers:
            parameter = self.parameters[number]
            places.append(Place(parameter, number, begin, begin + parameter.size))
            begin += parameter.size
        return Bucket(places, padded(begin, self.communicator.size), set(numbers))

    # During the backward pass -------------------------------------------------------------------------

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Inside the block, the backward pass starts the sum of each bucket that is full."""
        self._begin = 0.0
        if not self.homes:
            self._move_in()
        before = mode.leaf_ready, mode.gradient_room
        mode.leaf_ready, mode.gradient_room = self._ready, self._home
        try:
            yield
        finally:
            mode.leaf_ready, mode.gradient_room = before
            self.early = self.started
            self.hidden = time.perf_counter() - self._begin if self._begin else 0.0

    def _home(self, leaf: Any) -> Array | None:
        return self.homes.get(id(leaf))

    def _ready(self, leaf: Any) -> None:
        number = self.numbers.get(id(leaf))
        if number is None:
            return
        self.order.append(number)
        for bucket in self.buckets[self.started :]:
            bucket.missing.discard(number)
        self._start_full()
        for bucket in self.buckets[: self.started]:
            if bucket.pending is not None:
                bucket.pending.advance()

    def _start_full(self) -> None:
        """Start the sums of the next buckets that are full: all processes in the same order."""
        while self.started < len(self.buckets) and not self.buckets[self.started].missing:
            self._start(self.buckets[self.started])

    def _start(self, bucket: Bucket) -> None:
        for place, home in zip(bucket.places, bucket.homes, strict=True):
            grad = place.parameter.present_grad("GradientBuckets")
            if grad is not home:
                home[...] = 0 if grad is None else grad
            if grad is not None and not self.scatter:  # frees its own memory
                place.parameter.grad = home
        if not self.started:
            self._begin = time.perf_counter()
        bucket.pending = bucket.room.start(self.scatter)
        self.started += 1

    # Afterwards ---------------------------------------------------------------------------------------

    def finish(self) -> list[Array]:
        """Wait for all sums. Returns each bucket's; without `scatter`, the parameters' gradients are now views of them.

        A parameter keeps `grad` None if it has none on any process (`absent`).
        """
        if not self.homes:  # this process had nothing to compute in the first step
            self._move_in()
        begin = time.perf_counter()
        for bucket in self.buckets[self.started :]:
            self._start(bucket)
        self.absent = self._find_absent()
        sums = [bucket.pending.wait() for bucket in self.buckets if bucket.pending is not None]
        self.waited = time.perf_counter() - begin
        for bucket, total in zip(self.buckets, sums, strict=True):
            for place in bucket.places:
                without = self.scatter or place.number in self.absent
                place.parameter.grad = None if without else bucket.view(total, place)
            bucket.pending, bucket.missing = None, {place.number for place in bucket.places}
        self._settle()
        return sums

    def _find_absent(self) -> set[int]:
        """The parameters without a gradient on any process."""
        here = [number for number, parameter in enumerate(self.parameters) if parameter.grad is None]
        return set.intersection(*map(set, self.communicator.gather_values(here)))

    def _settle(self) -> None:
        """After the first backward pass: fill the buckets in the order in which process 0 had its gradients."""
        if not self.settled:
            order: list[int] = list(self.communicator.share_value(self.order))
            order += sorted(set(range(len(self.parameters))) - set(order), reverse=True)
            kept = [(place.parameter, place.parameter.grad) for bucket in self.buckets for place in bucket.places]
            self.buckets = self._make(order)
            self._move_in()
            for parameter, grad in kept:  # views of the former buckets
                parameter.grad = grad
            self.settled = True
        self.order, self.started = [], 0
