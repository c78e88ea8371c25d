"""How costs scale: importing tinygpt, a training step against B and against T, attention's memory against T.

    python benchmarks/scaling.py [--only import batch time attention processes]

- import: the medians over new processes, in turn, of `import numpy` and of `import tinygpt` (which also imports numpy),
  with the bytecode already compiled, as pip does.
- batch, time: a step (forward, backward, clipping, AdamW) of a model of `baby`'s width with three layers. A straight
  line, with a constant, is fitted to the times against B. Against T, the time per token grows with attention's share.
- attention: the peak memory of one call, forward and backward, with B = 1 and 4 heads of 64, in a new process, minus
  the memory before the call, which includes q, k, v and the upstream gradient. The allocator takes memory in large
  pieces, so the figures for small T are rough.
- processes: the same step on several processes (`processes.py`, about three minutes); left out by default
  where the extra mpi is missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

PARTS = ("import", "batch", "time", "attention", "processes")
IMPORT = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"
ATTENTION = """
import sys
import numpy as np
import tinygpt as tg

def peak():  # not getrusage: its peak includes the parent process
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))

T = int(sys.argv[1])
q, k, v = (tg.tensor(np.ones((1, 4, T, 64), np.float32), requires_grad=True) for _ in range(3))
dy = np.ones((1, 4, T, 64), np.float32)
tg.ops.attention(*(tg.tensor(np.ones((1, 4, 8, 64), np.float32)) for _ in range(3)))  # one-time initialisation
before = peak()
tg.ops.attention(q, k, v).backward(dy)
print((peak() - before) / 1024)
"""


def fresh(code: str, *arguments: str, cache: str = "") -> float:
    """The number that `code` prints in a new Python process."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    if cache:
        environment["PYTHONPYCACHEPREFIX"] = cache
    command = [sys.executable, "-c", code, *arguments]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def import_times(rounds: int) -> list[str]:
    from quiet import quietly

    times: dict[str, list[float]] = {"numpy": [], "tinygpt": []}
    with tempfile.TemporaryDirectory() as cache:
        for turn in range(rounds + 1):
            for name in times:
                run = partial(fresh, IMPORT.format(name), cache=cache)
                if turn:
                    times[name].append(quietly(run))
                else:
                    run()  # compiles the bytecode
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"\n### Import, medians of {rounds} processes\n\n| module | ms |\n|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {median * 1e3:.1f} |")
    ratio = medians["tinygpt"] / medians["numpy"]
    return [f"{met(ratio <= 1.5)}: `import tinygpt` takes {ratio:.2f} times `import numpy` (aim: 1.5)"]


def met(holds: bool) -> str:
    return "- met" if holds else "- not met"


def step_times(sizes: list[tuple[int, int]], rounds: int) -> list[float]:
    """Median seconds of a training step for each (B, T), all measured in turn."""
    from quiet import quietly

    import tinygpt as tg

    config = tg.GPTConfig(vocab_size=65, block_size=max(T for _, T in sizes), n_layer=3, n_head=6, n_embd=384)
    model = tg.GPT(config, seed=0)
    parameters = list(model.parameters())
    optimizer = tg.optim.AdamW(parameters, lr=1e-4)
    batches = [np.random.default_rng(0).integers(0, 65, (2, B, T)) for B, T in sizes]

    def step(idx: np.ndarray, targets: np.ndarray) -> float:
        start = time.perf_counter()
        model.loss(idx, targets).backward()
        tg.optim.clip_grad_norm(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start

    for batch in batches:
        step(*batch)  # a warm-up
    turns = [[quietly(partial(step, *batch)) for batch in batches] for _ in range(rounds)]
    return [statistics.median(seen) for seen in zip(*turns, strict=True)]


def straight_line(x: list[int], y: list[float]) -> tuple[float, float, float]:
    """Constant, slope and largest relative error of the line that minimises the sum of squared relative errors."""
    columns = np.array([[1.0, value] for value in x]) / np.array(y)[:, None]
    constant, slope = np.linalg.lstsq(columns, np.ones(len(y)), rcond=None)[0]
    off = max(abs(constant + slope * a - b) / b for a, b in zip(x, y, strict=True))
    return float(constant), float(slope), float(off)


def against_batch(rounds: int) -> list[str]:
    sizes = [(B, 128) for B in (1, 2, 4, 8, 16)]
    times = step_times(sizes, rounds)
    constant, slope, off = straight_line([B for B, _ in sizes], times)
    print("\n### A step against B (T = 128)\n\n| B | ms | ms on the line |\n|---|---|---|")
    for (B, _), seconds in zip(sizes, times, strict=True):
        print(f"| {B} | {seconds * 1e3:.1f} | {(constant + slope * B) * 1e3:.1f} |")
    line = f"{constant * 1e3:.1f} ms + {slope * 1e3:.1f} ms x B"
    return [f"{met(off <= 0.1)}: a step's time is a straight line in B, {line}, within {off:.0%} (aim: 10%)"]


def against_time(rounds: int) -> list[str]:
    sizes = [(2048 // T, T) for T in (64, 128, 256, 512, 1024, 2048)]
    times = step_times(sizes, rounds)
    print("\n### A step against T (2048 tokens in all)\n\n| T | B | ms | of T = 64 |\n|---|---|---|---|")
    for (B, T), seconds in zip(sizes, times, strict=True):
        print(f"| {T} | {B} | {seconds * 1e3:.1f} | {seconds / times[0]:.2f} |")
    worst = max(seconds / times[0] for (_, T), seconds in zip(sizes, times, strict=True) if T <= 256)
    ratio = (
        f"a token costs {worst:.2f} times as much up to T = 256 as at T = 64, {times[-1] / times[0]:.2f} at T = 2048"
    )
    return [
        f"{met(worst <= 1.15)}: a step's time is linear in T until attention weighs in: {ratio} (aim: 1.15 up to 256)"
    ]


def attention_memory() -> list[str]:
    if not sys.platform.startswith("linux"):
        print("\nAttention's memory is measured on Linux only")
        return []
    lengths = [256, 512, 1024, 2048, 4096, 8192]
    megabytes = [fresh(ATTENTION, str(T)) for T in lengths]
    print("\n### Attention's memory against T (forward and backward, 4 heads of 64)\n")
    print("| T | MB | kB a position | four (T, T) matrices, MB |\n|---|---|---|---|")
    for T, held in zip(lengths, megabytes, strict=True):
        print(f"| {T} | {held:.1f} | {held * 1024 / T:.1f} | {4 * T * T * 4 / 2**20:.0f} |")
    growth = megabytes[-1] / megabytes[2]
    said = f"8 times the length takes {growth:.1f} times (a matrix of scores would take 64; aim: at most 12)"
    return [f"{met(growth <= 12)}: attention's memory is linear in T: {said}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="which tables (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements per size (default: 5)")
    options = parser.parse_args()
    import machine

    print(machine.headline())
    said: list[str] = []
    if "import" in options.only:
        said += import_times(3 * options.rounds)
    if "batch" in options.only:
        said += against_batch(options.rounds)
    if "time" in options.only:
        said += against_time(options.rounds)
    if "attention" in options.only:
        said += attention_memory()
    if "processes" in options.only and (len(options.only) == 1 or importlib.util.find_spec("mpi4py")):
        import processes

        processes.launcher()
        said += processes.measure("baby", 2, 12)
    print()
    print("\n".join(said))


if __name__ == "__main__":
    main()
