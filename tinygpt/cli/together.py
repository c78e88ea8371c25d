"""`mpirun -n 4 tinygpt train ...`: process 0 leads, the others follow.

Process 0 does what a single process does: it prepares the text, makes or loads the model, and holds the run's folder,
which the others need not see. Just before its run begins, it hands over the settings, the model, the tokens and, for a
resumed run, the checkpoint (`handover.py`). From there on all processes run the same loop
(`tinygpt/training/step/share.py`).

A process that fails ends all of them, with one sentence on the screen that names it. Otherwise the others would hang.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__, backends
from ..console import say
from ..cores import default_num_threads, threads_of_environment, usable_cores
from ..data import split
from ..errors import UsageError
from ..files import user_path
from ..parallel import Communicator, current, launched
from ..parallel.voice import Voice, speaking
from ..training import Trainer, train_and_evaluate
from ..training.monitoring.layer_norms import LayerWatch
from ..training.text.corpus import given_text
from .handover import taken_over
from .process import MISTAKE, code_of

_GRACE = 3.0  # seconds that process 0 has to end the run with its own message
_SAMPLES = 64  # parts of a large file that are compared, 1 MB each
_FREE = ("run", "log_ranks", "out", "default_out")  # options that may differ between the processes


def add_together_options(parser: argparse.ArgumentParser) -> None:
    """The options of a run on several processes."""
    group = parser.add_argument_group("several processes (mpirun -n 4 tinygpt train ...)")
    words = "write what processes 1, 2, ... have to say to FOLDER/rank-1.log and so on; only process 0 uses the screen"
    group.add_argument("--log-ranks", metavar="FOLDER", help=words)


def require_one_process(command: str) -> None:
    """Raise UsageError if several processes were started: on the first only, so that it is reported once."""
    rank, size = launched()
    if size > 1 and rank > 0:
        raise SystemExit(MISTAKE)
    if size > 1:
        raise UsageError(f"tinygpt {command} is for one process: start it without mpirun")


def together(options: argparse.Namespace, lead: Callable[[argparse.Namespace], int]) -> int:
    """Run `lead` on process 0, which calls `hand_over`, and follow it on the others. Returns the exit code."""
    team = _started()
    with speaking(team.rank, options.log_ranks) as voice:
        done: list[int] = []

        def work() -> int:
            _require_logs(team, voice)
            _share_cores(team)
            _require_same_start(team, options)
            if options.backend == "cupy":
                backends.get("cupy").choose_gpu(team.local_rank, team.gather_values)
            done.append(lead(options) if team.rank == 0 else _follow(team, options))
            team.barrier()
            return done[0]

        try:
            code = code_of(work) if team.rank == 0 else work()
        except BaseException as error:  # a mistake in tinygpt on process 0, anything on the others
            _give_up(team, voice, error)
        if not done:  # process 0 has said why
            team.end_all(code)
        return code if team.rank == 0 else 0


def _started() -> Communicator:
    """The processes of this run. A missing MPI is reported once: by process 0, if it is missing there, too."""
    try:
        return current()
    except UsageError as error:
        rank = launched()[0]
        if rank > 0:
            time.sleep(_GRACE)
            raise UsageError(f"process {rank} on {platform.node()}: {error}") from error
        raise


def _give_up(team: Communicator, voice: Voice, error: BaseException) -> None:
    """End all processes because of an error in this one, and say why."""
    traceback.print_exc()  # to the screen on process 0, else to the log
    if team.rank > 0:
        time.sleep(_GRACE)  # if all of them stop for this, process 0 says why
        kind = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
        voice.cry(
            f"tinygpt: process {team.rank} on {platform.node()} failed, and the run ends with it: {kind}{error}; the "
            "last checkpoint is whole: continue with --resume"
        )
    team.end_all(MISTAKE if isinstance(error, (UsageError, OSError)) else 1)


def _require_logs(team: Communicator, voice: Voice) -> None:
    """Raise UsageError, on all processes, if one can't write the log of --log-ranks."""
    for rank, mistake in enumerate(team.gather_values(voice.mistake)):
        if mistake:
            raise UsageError(f"process {rank} can't write its log of --log-ranks: {mistake}")


def _share_cores(team: Communicator) -> None:
    """Use this process's part of the cores that it shares with others.

    If the launcher binds each process to separate cores, nothing is left to divide. A number in the environment wins.
    """
    numpy = backends.get("numpy")
    mine = [platform.node(), [*usable_cores()]]
    found = team.gather_values(mine)
    if threads_of_environment() is None:
        if numpy.level() != "none":
            numpy.set_num_threads(max(1, default_num_threads() // found.count(mine)))
        if team.rank == 0 and (words := binding_note([cores for node, cores in found if node == mine[0]])):
            say(words)


def binding_note(cores: list[list[int]]) -> str:
    """A line for the screen if the launcher lets the processes of this machine use only some of its cores, as mpirun
    does with one or two processes. cores: those of each process."""
    try:
        free = len(os.sched_getaffinity(os.getppid()))  # the launcher itself may use all
    except (AttributeError, OSError):  # not on Linux
        return ""
    used, count = len({core for some in cores for core in some}), len(cores)
    if used >= free // count * count:
        return ""
    which = "this process" if count == 1 else f"the {count} processes on {platform.node()}"
    return (
        f"Cores: the launcher lets {which} use {used} of {free} cores: mpirun --map-by slot:PE={free // count} gives "
        f"{'it' if count == 1 else 'each'} {free // count}"
    )


# Before the run -------------------------------------------------------------------------------------


def _require_same_start(team: Communicator, options: argparse.Namespace) -> None:
    """Raise UsageError, on all processes, if one has another version, other options, or other data. It says which."""
    here = {
        "version": {"tinygpt": __version__, "NumPy": np.__version__, "the kernels": backends.get("numpy").level()},
        "options": {name: repr(value) for name, value in vars(options).items() if name not in _FREE},
        "data": {path: _facts_of(user_path(path)) for path in given_text(options)[0] or () if path != "-"},
    }
    found = team.gather_values(here)
    first = found[0]
    for rank, there in enumerate(found):
        for name, value in first["version"].items():
            if there["version"][name] != value:
                other = there["version"][name]
                raise UsageError(
                    f"process {rank} runs on {name} {other}, process 0 on {value}: install the same version everywhere"
                )
        for path, facts in there["data"].items():
            if facts is None:
                raise UsageError(
                    f"process {rank} can't read the data {path}: make the file visible under this name on all machines"
                )
        for path, facts in there["data"].items():
            if path in first["data"] and facts != first["data"][path]:
                raise UsageError(
                    f"process {rank} has other data in {path} than process 0: copy the same file to all machines"
                )
        for name, value in first["options"].items():
            if there["options"].get(name) != value:
                raise UsageError(
                    f"process {rank} was started with --{name.replace('_', '-')} {there['options'].get(name)}, process "
                    f"0 with {value}: start all processes with the same options"
                )


def _facts_of(path: Path) -> Any:
    """A fingerprint of a file: its size and a SHA-256 of samples; None if it can't be read."""
    try:
        if path.is_dir():
            return sorted(os.listdir(path))
        if not path.is_file():
            return "" if path.exists() or any(sign in str(path) for sign in "*?[") else None  # a pipe, a pattern
        size, digest = path.stat().st_size, hashlib.sha256()
        with open(path, "rb") as file:
            for begin in range(0, size, max(1 << 20, size // _SAMPLES)):
                file.seek(begin)
                digest.update(file.read(1 << 20))
        return size, digest.hexdigest()
    except OSError:
        return None


def _follow(team: Communicator, options: argparse.Namespace) -> int:
    """The run of a process that is not process 0."""
    with tempfile.TemporaryDirectory(prefix="tinygpt-") as place:
        start = taken_over(team, Path(place))
        train, validation = split(start.tokens, start.config.validation_fraction)
        trainer = Trainer(start.model, train, validation, start.config, Path(place) / "run")
        if start.watch_layers is not None:
            trainer.watch = LayerWatch(start.watch_layers)
        if start.checkpoint is not None:
            trainer.resume(start.checkpoint)
        return train_and_evaluate(trainer, validation, "", options.final_eval)
