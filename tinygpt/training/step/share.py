"""This process's share of a run: its rows of each batch, and what it must agree on with the others.

All processes run the same loop, on the same batches, and make the same decisions. Each computes the loss of its own
rows. Row by row nothing depends on how many processes there are: neither the batch, which follows from the seed and the
step, nor the dropout masks, which are indexed by the row in the whole batch (`Generator.rows_before`).

The loss of a step is the mean over all its targets, so each process is weighted by its number of targets: with n_i of
them in part i of the step, N in all and P parts (batches times processes),

    weight_i = P * n_i / N           sum over all parts of weight_i * gradient_i = P * the step's gradient

(`accumulation.py`). Without ignored targets each weight is exactly 1. The gradients are summed over the processes in
buckets, while the backward pass of the last batch still computes (`tinygpt/parallel/buckets.py`).

Only process 0 writes: the metrics, the checkpoints, the screen. A single process has all the rows, and for it
everything here is free.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from ...checkpoint import Checkpoint
from ...console import Lenient
from ...errors import UsageError
from ...graph import no_grad
from ...optim import Optimizer, grad_norm
from ...optim.clip import sum_of_squares
from ...parallel import Communicator, GradientBuckets, ShardedOptimizer, current
from ...parallel.voice import is_silent
from ...random import Generator
from ...tensor import Tensor
from ..interrupt import StopRequest
from ..settings.config import TrainingConfig

T = TypeVar("T")

# Processes whose launcher was killed would run forever, and nobody could end them: they stop as if the terminal had
# been closed. Windows has no SIGHUP.
_ORPHANED = int(getattr(signal, "SIGHUP", signal.SIGTERM))


class Share:
    """One process's share of a run. Raises UsageError if the batches can't be divided among the processes.

    generator: of the model's dropout masks.
    """

    def __init__(self, config: TrainingConfig, parameters: Sequence[Tensor], generator: Generator) -> None:
        whole = current()
        self.team: Communicator = whole.for_backend(parameters[0].backend) if whole.size > 1 else whole
        self.rank, self.size = self.team.rank, self.team.size
        self.parameters, self.generator = parameters, generator
        self.leads = self.rank == 0  # whether this process writes
        self.stop = StopRequest()  # that of the current session
        self.over = ""  # why the run should end, as process 0 has said
        self.ask_over: Callable[[], str] = str  # asks process 0
        self.parent = os.getppid()
        self.buckets: GradientBuckets | None = None
        self.streams: int | None = None  # random streams that a batch uses
        if self.size > 1:
            _require_divisible(config.batch_size, self.size)
            self.buckets = GradientBuckets(parameters, self.team, scatter=config.shard_optimizer)
        self.sharded: ShardedOptimizer | None = None

    def stream(self, given: Any) -> Any:
        """Where to show progress: `given` on process 0."""
        return given if self.leads or is_silent() else Lenient(None)

    def optimizer(self, whole: Optimizer, config: TrainingConfig) -> Any:
        """The optimizer of this process: sharded if the settings say so and there are others."""
        if self.buckets is None or not config.shard_optimizer:
            return whole
        self.sharded = ShardedOptimizer(whole, self.buckets)
        return self.sharded

    def require_same_run(self, trainer: Any) -> None:
        """Raise UsageError unless all processes have the same run before them. It names what differs, and where."""
        if self.size == 1:
            return
        facts = {
            "the training settings": dataclasses.asdict(trainer.config),
            "the model": trainer.model.config.to_dict(),
            "the data": trainer.objective.data,
            "the progress": {"step": trainer.state.step},
        }
        found = self.team.gather_values(facts)
        for what, here in found[0].items():
            for rank, others in enumerate(found):
                differs = [name for name in here if others[what].get(name) != here[name]]
                if differs:
                    there, one = others[what].get(differs[0]), here[differs[0]]
                    raise UsageError(
                        f"process {rank} has other values than process 0 in {what}: {differs[0]} is {there!r} there "
                        f"and {one!r} here; start all processes with the same arguments"
                    )

    # A step -------------------------------------------------------------------------------------------

    def _bounds(self, rows: int, rank: int) -> tuple[int, int]:
        return rows * rank // self.size, rows * (rank + 1) // self.size

    def counts(self, batch: tuple[Any, ...], count: Callable[[Any], float]) -> list[float]:
        """How many targets each process has in a batch."""
        if self.size == 1:
            return [count(batch)]
        return [count(_rows(batch, *self._bounds(len(batch[0]), rank))) for rank in range(self.size)]

    def rows(self, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        """This process's rows of a batch. Dropout masks are those of these rows from now on."""
        if self.size == 1:
            return batch
        begin, end = self._bounds(len(batch[0]), self.rank)
        self.generator.rows_before = begin
        return _rows(batch, begin, end)

    @contextlib.contextmanager
    def computing(self, last: bool) -> Iterator[None]:
        """Around the forward and backward pass of a batch. last: of this process in this step, and no CUDA graph."""
        if self.buckets is None:
            yield
            return
        before = self.generator.stream
        with self.buckets.watching() if last else contextlib.nullcontext():
            yield
        self.streams = self.generator.stream - before

    def sit_out(self, loss: Callable[[], object]) -> None:
        """Use the random streams of a batch in which this process has no targets, so that all processes have the same
        ones. loss: computes that of all rows, to find out how many streams it takes."""
        before = self.generator.stream
        if self.streams is None:
            with no_grad():
                loss()
            self.streams = self.generator.stream - before
        self.generator.stream = before + self.streams

    def sum_gradients(self) -> None:
        """Sum the gradients over all processes; on GPUs the sums need not be there when this returns."""
        if self.sharded is not None:
            self.sharded.finish()
        elif self.buckets is not None:
            self.buckets.finish()

    def sum_loss(self, loss: float) -> float:
        """The sum of a step's losses over all processes, which agree on whether to stop: once in each step."""
        return loss if self.buckets is None else sum(self._agree(loss))

    def grad_norm(self) -> float:
        """The norm of the summed gradients."""
        return grad_norm(self.parameters) if self.sharded is None else self.sharded.grad_norm()

    def gradient_squares(self) -> dict[int, float]:
        """The sum of the squares of each parameter's summed gradient, by the parameter's id. All processes call it."""
        if self.sharded is not None:
            return self.sharded.gradient_squares()
        grads = {id(p): p.present_grad("gradient_squares") for p in self.parameters if p.grad is not None}
        sums = sum_of_squares.each([(grad,) for grad in grads.values()]) if grads else []
        return dict.fromkeys(map(id, self.parameters), 0.0) | dict(zip(grads, sums, strict=True))

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Inside the block this process computes by itself: nothing is summed."""
        kept = self.buckets, self.sharded
        self.buckets = self.sharded = None
        try:
            yield
        finally:
            self.buckets, self.sharded = kept

    def listening(self) -> StopRequest:
        """Catches the signals of a session."""
        self.stop = StopRequest(shared=self.size > 1, tell=self.leads)
        return self.stop

    # Agreement ----------------------------------------------------------------------------------------

    def agree(self) -> None:
        """Learn whether a process was asked to stop. All of them call this together."""
        if self.size > 1:
            self._agree(0.0)

    def _agree(self, loss: float) -> list[float]:
        heard = self.stop.heard
        if heard is None and os.getppid() != self.parent:
            heard = _ORPHANED
        found = self.team.gather_values((loss, heard, self.ask_over()))
        self.over = found[0][2]
        self.stop.settle(next((number for _, number, _ in found if number is not None), None))
        return [value for value, _, _ in found]

    def from_first(self, value: Callable[[], T]) -> T:
        """What `value()` is on process 0, which alone calls it: a plain value (`tinygpt/parallel/values.py`)."""
        if self.size == 1:
            return value()
        return self.team.share_value(value() if self.leads else None)

    def checkpoint_of_first(self, load: Callable[[], Checkpoint]) -> Checkpoint:
        """The checkpoint that `load()` returns on process 0, which alone can read it."""
        if self.size == 1:
            return load()
        found = load() if self.leads else Checkpoint({}, {}, {})
        model, optimizer = map(self.team.share_arrays, (found.model, found.optimizer))
        return Checkpoint(model, optimizer, self.team.share_value(found.state))

    def first_of(self, words: str, none: str) -> str:
        """The words of the first process whose words are not `none`."""
        found = self.team.gather_values(words)
        named = [f"process {rank}: {said}" for rank, said in enumerate(found) if said != none]
        return words if self.size == 1 else next(iter(named), none)

    def require_same_weights(self, arrays: dict[str, np.ndarray]) -> None:
        """Raise UsageError if the processes have different weights: before they are saved."""
        if self.size == 1:
            return
        digest = hashlib.sha256()
        for array in arrays.values():
            digest.update(np.ascontiguousarray(array).data)
        found = self.team.gather_values(digest.hexdigest())
        other = next((rank for rank, one in enumerate(found) if one != found[0]), None)
        if other is not None:
            raise UsageError(
                f"process {other} has other weights than process 0, so this step is not saved: their machines compute "
                "differently; resume the run from its last checkpoint, on machines of one kind"
            )


def _rows(batch: tuple[Any, ...], begin: int, end: int) -> tuple[Any, ...]:
    return tuple(array[begin:end] for array in batch)


def _require_divisible(rows: int, size: int) -> None:
    if rows % size:
        few = f"there are more processes than rows in a batch: {size}, and batch_size is {rows}"
        uneven = f"batch_size {rows} is not divisible by the {size} processes, which share its rows"
        near = max(size, rows // size * size)
        raise UsageError(
            f"{few if rows < size else uneven}: set batch_size to {near}, or start a different number of processes"
        )
