"""The last evaluation of `tinygpt train`: the loss of the best weights over the whole validation text, or part of it.

On a large validation text it may take longer than the training. So the result of the run is printed first, the
evaluation shows its progress, `--final-eval` limits or skips it, and Ctrl-C leaves a finished run.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..console import Lenient, bar, in_notebook, say
from ..data import SequentialBatches
from ..errors import UsageError
from .evaluation import FixedBatches, mean_loss

if TYPE_CHECKING:
    from .loop import Trainer

WHOLE, NONE = "whole", "none"
_LINE = 30.0  # seconds between lines where no bar can be shown


def add_final_options(parser: argparse.ArgumentParser) -> None:
    """The option for the evaluation at the end."""
    words = (
        f"the last evaluation: over the {WHOLE} validation text, over N batches of it, or {NONE}. The result of the "
        f"run is printed first; Ctrl-C then leaves the finished run, with exit code {128 + signal.SIGINT} (default: "
        f"{WHOLE})"
    )
    parser.add_argument("--final-eval", default=WHOLE, metavar="N", help=words)


def check_final(given: str) -> None:
    """Raise UsageError unless this is a value of --final-eval."""
    if given not in (WHOLE, NONE) and not (given.isdecimal() and int(given) > 0):
        raise UsageError(f"--final-eval must be a number of batches, {WHOLE} or {NONE}, not {given!r}")


def report_best(trainer: Trainer, validation_tokens: np.ndarray, how_much: str) -> int:
    """Load the best weights, and print their loss over the validation text. Returns an exit code: 130 after Ctrl-C.

    With several processes, each raises KeyboardInterrupt then: the others may wait for the losses of its batches.
    """
    step = trainer.load_best()
    if how_much == NONE:
        return 0
    rows, T = trainer.config.batch_size, trainer.model.config.block_size
    batches: Any
    if how_much == WHOLE:
        batches, of_what = SequentialBatches(validation_tokens, rows, T), "the whole validation text"
    else:
        batches = FixedBatches(validation_tokens, rows, T, int(how_much))
        of_what = f"{len(batches):,} batches of the validation text"
    told = _Told(batches, of_what)
    try:
        loss = mean_loss(trainer.model, bar(told, of_what), team=trainer.share.team)
    except KeyboardInterrupt:
        say(
            f"Stopped after {told.done:,} of {len(batches):,} batches of this last evaluation. The run is finished and "
            f"saved, and its best weights are those of step {step}: tinygpt eval --model {trainer.run_folder} "
            "evaluates them."
        )
        if trainer.share.size > 1:
            raise
        return 128 + signal.SIGINT
    say(f"Loss over {of_what}: {loss:.4f} (the best weights, from step {step})")
    return 0


class _Told:
    """The batches, counted in `done`. Prints a line on stderr now and then, unless a progress bar is shown there."""

    def __init__(self, batches: Any, of_what: str) -> None:
        self.batches, self.of_what, self.done = batches, of_what, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        stream, last = Lenient(sys.stderr), time.monotonic()
        quiet = not (stream.isatty() or in_notebook())
        for batch in self.batches:
            if quiet and time.monotonic() - last > _LINE:
                stream.write(f"evaluating {self.of_what}: {self.done:,} of {len(self):,} batches\n")
                stream.flush()
                last = time.monotonic()
            yield batch
            self.done += 1
