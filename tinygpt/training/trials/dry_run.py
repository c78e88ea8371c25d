"""What a run will take in memory, time and disk space, measured in three of its steps.

    print(measure_run(trainer).describe())        # leaves the trainer as it was

The steps are those of the run, with its batches. The steps before them, in which threads start and a GPU's kernels are
compiled and recorded, don't count.

The memory peak is measured, not computed. A formula would have to track what each operation saves for its backward pass
and frees, in every kernel, layer and objective, and what Python, NumPy and matplotlib take; it would be wrong as soon
as one of them changes, and for every user-defined layer. The measured peak includes all of that, because the trial does
what the run does, in the same order: it builds the model, takes steps, evaluates, and at the end copies the weights for
the export, draws the picture, and copies the weights again if the best ones are evaluated.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import shutil
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import backends
from ...console import in_bytes
from ...errors import MissingExtraError, UsageError
from ...files import shown
from ...interop.packed_run import is_packed, packed_bytes
from ..monitoring.picture import draw_losses
from ..optimizers import averaged
from ..step.graphed_step import WARM_UP
from ..storage.export import merged
from ..storage.saving import checkpoint_of
from .trial import on_trial, trial_step

if TYPE_CHECKING:
    from ..loop import Trainer

TIMED = 3  # steps
_CHECKPOINTS = 3  # the latest, the best, and the one that is being written


@dataclass(frozen=True)
class DryRun:
    """What a run will take. Bytes and seconds.

    peak: memory of the whole process (on a GPU: of its arrays), measured. step: the median of three.
    evaluation: of one evaluation. final: of the one over the whole validation text at the end. checkpoint: its size.
    data: of the token file.
    """

    weights: int
    gradients: int
    optimizer: int
    peak: int
    step: float
    steps: int
    evaluation: float
    evaluations: int
    final: float
    checkpoint: int
    data: int
    tokens: int

    @property
    def seconds(self) -> float:
        return self.step * self.steps + self.evaluation * self.evaluations + self.final

    @property
    def disk(self) -> int:
        return _CHECKPOINTS * self.checkpoint + self.data

    def describe(self) -> str:
        """A few lines in the form of `describe_run`."""
        evaluations = f"{self.evaluations:,} evaluations of {duration(self.evaluation)}"
        final = f" and {duration(self.final)} for the one at the end" if self.final else ""
        lines = {
            "Peak": f"{in_bytes(self.peak)} of memory, measured; in it {in_bytes(self.weights)} of weights, "
            f"{in_bytes(self.gradients)} of gradients, {in_bytes(self.optimizer)} of the optimizer",
            "Time": f"{duration(self.step)} a step, the median of {TIMED} ({self.tokens / self.step:,.0f} tokens/s); "
            f"about {duration(self.seconds)} for the run, with {evaluations}{final}",
            "Disk": f"{in_bytes(self.disk)}: {_CHECKPOINTS} checkpoints of {in_bytes(self.checkpoint)} while one is "
            "written" + (f", {in_bytes(self.data)} of tokens" if self.data else ""),
        }
        return "\n".join(f"{name + ':':<7}{line}" for name, line in lines.items())


def measure_run(trainer: Trainer, final_batches: int | None = None, data: int = 0, so_far: int = 0) -> DryRun:
    """Take a few steps and one batch of an evaluation, and measure them. Nothing of the run changes.

    final_batches: of the evaluation of the best weights at the end; None if nothing loads these after the run. data:
    bytes that the run writes besides its checkpoints. so_far: the peak memory until now (`peak_so_far`), if this run
    caused it. Raises UsageError if the loss of a step is not finite.
    """
    config, now = trainer.config, checkpoint_of(trainer)
    backend = trainer.parameters[0].backend
    checkpoint = sum(array.nbytes for array in (*now.model.values(), *now.optimizer.values()))
    optimizer = sum(array.nbytes for array in now.optimizer.values())
    del now
    times = []
    with on_trial(trainer):
        _reset_peak(backend)
        for number in range(TIMED + (2 * WARM_UP if backend == "cupy" else 1)):
            begin = time.perf_counter()
            loss = trial_step(trainer)
            if not math.isfinite(loss):
                raise UsageError(
                    f"the loss is {loss} at step {number} already: use a lower lr or a longer warm-up; "
                    "--detect-anomaly names the operation"
                )
            _wait(trainer)
            times.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        with averaged(trainer.average):
            trainer.objective.evaluate(trainer.model, itertools.islice(iter(trainer.validation), 1))
        batch = time.perf_counter() - begin
        if backend == "numpy":
            _end(trainer, final_batches is not None)
            peak = _peak(backend) - checkpoint  # without the copy that the trial holds
        else:
            peak = _peak(backend)
    left = config.steps - trainer.state.step
    return DryRun(
        weights=sum(p.data.nbytes for p in trainer.model.parameters()) + packed_bytes(trainer.model),
        gradients=sum(p.data.nbytes for p in trainer.parameters),
        optimizer=optimizer, peak=max(peak, so_far), step=statistics.median(times[-TIMED:]), steps=left,
        evaluation=batch * _length(trainer.validation), evaluations=1 + -(-left // config.eval_every),
        final=batch * (final_batches or 0), checkpoint=checkpoint, data=data,
        tokens=config.gradient_accumulation * trainer.objective.tokens,
    )  # fmt: skip


def require_disk(needed: int, folder: Path) -> int:
    """The free bytes where `folder` is or will be made. Raises UsageError if they are fewer than `needed`."""
    there = next((place for place in (folder, *folder.absolute().parents) if place.is_dir()), Path("/"))
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UsageError(
            f"the run takes {in_bytes(needed)} on the disk, but only {in_bytes(free)} are free in {shown(there)}: "
            "choose another --out, or make room"
        )
    return free


def _length(batches: Any) -> int:
    return len(batches) if hasattr(batches, "__len__") else sum(1 for _ in batches)


def _wait(trainer: Trainer) -> None:
    """Wait until the weights are updated: a GPU is still working when Python has finished."""
    data = trainer.parameters[0].data
    np.asarray(backends.move(data.reshape(-1)[:1], "numpy"))


# Memory -----------------------------------------------------------------------------------------------


def _end(trainer: Trainer, loads_best: bool) -> None:
    """Make the arrays that the end of a run makes."""
    if trainer.tokenizer is not None and not is_packed(trainer.model):
        merged(trainer, _weights_read(trainer))
    with contextlib.suppress(MissingExtraError):  # what matplotlib takes stays
        draw_losses([{"step": 0, "loss": 1.0, "validation_loss": 1.0}], io.BytesIO())
    if loads_best:
        _weights_read(trainer)


def _weights_read(trainer: Trainer) -> dict[str, np.ndarray]:
    """Copies of the weights, as reading a checkpoint makes them."""
    return {name: np.array(array) for name, array in checkpoint_of(trainer).model.items()}


def peak_so_far() -> int:
    """The peak memory of this process, in bytes; 0 if it is not known."""
    return _peak("numpy")


def _reset_peak(backend: str) -> None:
    if backend == "numpy":
        with contextlib.suppress(OSError):  # except on Linux, the peak is that of the whole process so far
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak(backend: str) -> int:
    """The peak memory of this process since `_reset_peak`; on a GPU, what its arrays have reserved."""
    if backend == "cupy":
        return int(backends.get("cupy").memory().held)
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) << 10
    try:
        import resource
    except ImportError:  # Windows
        return 0
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(used if sys.platform == "darwin" else used << 10)


# Words ------------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """Seconds, for people: 230 ms, 12 s, 45 min, 3.5 h."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
