"""Saves a run whose launcher is about to kill it.

When told to end, mpirun gives the processes little time: Open MPI 5 sends SIGCONT, 0.3 seconds later SIGTERM, and right
after it SIGKILL. A step may take longer than that, and so may writing a large model. So at the first signal process 0
makes a copy of itself (`fork`), which shares its memory and takes milliseconds. The copy leaves the launcher's process
group, saves the state after the last completed step, and ends. It holds the folder's lock until then.

The state must be consistent: weights, optimizer and counters of one step. It is while gradients are computed, which is
nearly all the time, and then the copy is made at once; otherwise as soon as the state is consistent. With a more
patient launcher the run stops at the end of its step, as it does on one process.

A sharded optimizer's state is spread over the processes, and can't be gathered any more: the last regular checkpoint
stays.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loop import Trainer

# SIGCONT comes first from Open MPI's launcher. It does not end a run: whoever suspended it may have sent it.
WARNING = getattr(signal, "SIGCONT", None)


class UrgentSave:
    """For process 0 of several; does nothing in any other process."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        share = trainer.share
        self.active = share.size > 1 and share.leads and share.sharded is None and hasattr(os, "fork")
        self.random_state: Any = None  # of the last completed step, while the state is consistent
        self.wanted = False
        self.child = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside the block, the launcher's warning triggers a copy, as do the signals that end the run."""
        if not self.active or WARNING is None:
            yield
            return
        self.random_state = self.trainer.model.generator.state_dict()
        before = signal.signal(WARNING, lambda number, frame: self.now())
        self.trainer.share.stop.urgent = self.now
        try:
            yield
        finally:
            signal.signal(WARNING, before)
            self.wait()

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Inside the block the state is not consistent. After it, it is, except gradients and new random numbers."""
        if not self.active:
            yield
            return
        self.random_state = None
        yield
        self.random_state = self.trainer.model.generator.state_dict()
        if self.wanted:
            self.now()

    def now(self) -> None:
        """Save now if the state is consistent, otherwise as soon as it is."""
        if self._saving() or self.trainer.run_folder.staged:  # the first checkpoint of a run publishes it
            return
        self.wanted = self.random_state is None
        if not self.wanted and self.trainer.saved_at != self.trainer.state.step:
            self.child = os.fork()
            if self.child == 0:
                self._save_and_end()

    def _saving(self) -> bool:
        """Whether a copy is at work, or this is one. The copy of a run that was only suspended ended long ago."""
        if self.child > 0:
            ended = True
            with contextlib.suppress(ChildProcessError):
                ended = os.waitpid(self.child, os.WNOHANG)[0] > 0
            if ended:
                self.child = 0
        return self.child != 0

    def _save_and_end(self) -> None:
        """In the copy."""
        code = 1
        try:
            os.setsid()
            for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGCONT"):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
            self.child, self.active = -1, False
            self.trainer.optimizer.zero_grad()
            self.trainer.model.generator.load_state_dict(self.random_state)
            self.trainer.save(alone=True)
            code = 0
        finally:
            os._exit(code)

    def wait(self) -> None:
        """Wait for the copy, before this process saves something itself."""
        while (child := self.child) > 0:  # a signal meanwhile may make another one
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)
            if self.child == child:
                self.child = 0
