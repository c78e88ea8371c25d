"""Each compiled kernel compared with its reference and with PyTorch's operation, at the sizes of the presets.

    python benchmarks/ops.py [--presets tiny baby gpt2] [--only attention gelu]

The contenders are separate processes, so that no thread of one spins while another works. They take turns, so that if
the machine slows down, all of them slow down. In its turn each calls its body for about 20 ms, at least three times,
and reports the median; the figures are medians over the turns. All keep freed memory, so that none pays for new pages.

GB/s counts the bytes that must move (each input read once, each output written once), GFLOP/s the operations of matrix
products. "of the limit" is the share of the read bandwidth of all threads, or of the multiply-add peak. Arrays that fit
into a cache may stay there, so a small preset can exceed the read bandwidth. PyTorch's bodies are in `ops_torch.py`.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from ops_sizes import PRESETS, PRODUCTS

TURN = 0.02  # seconds
LEVEL = 1.03  # smaller ratios count as equal: two runs of the same body differ by as much


def work(contender: str) -> None:
    """The loop of a contender's process: a row's name and preset sets up its body, "go" runs it and prints seconds."""
    body: Callable[[], Any] | None = None
    repeat = 1
    if contender == "torch":
        import ops_torch

        ops_torch.keep_freed_memory()
        ops_torch.torch.set_grad_enabled(False)
    else:
        import ops_ours

        from tinygpt.backends import get

        get("numpy").extension()
    np.seterr(all="ignore")
    for line in sys.stdin:
        if line != "go\n":
            body = None  # frees its arrays before the next ones are allocated
            row, preset = line.rstrip("\n").split("\t")
            if contender == "torch":
                body = ops_torch.ROWS[row](PRESETS[preset])
                told = "-"
            else:
                made = ops_ours.ROWS[row](PRESETS[preset])
                body = getattr(made, contender)
                told = f"{made.bytes} {made.flops}"
            body()
            repeat = min(2000, max(3, round(TURN / seconds(body))))
            print(told, flush=True)
        else:
            assert body is not None
            seconds(body)  # wakes up the threads
            print(statistics.median(seconds(body) for _ in range(repeat)), flush=True)


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class Contender:
    def __init__(self, name: str) -> None:
        command = [sys.executable, __file__, "--work", name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("a contender's process exited early")
        return answer

    def stop(self) -> None:
        self.process.communicate()


def measure(row: str, preset: str, contenders: dict[str, Contender], rounds: int) -> tuple[dict[str, float], Any]:
    """Median seconds of each contender, measured in turn; the bytes and operations of the row."""
    from quiet import quietly

    told = {name: contender.ask(f"{row}\t{preset}") for name, contender in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            times[name].append(float(quietly(partial(contender.ask, "go"))))
    return {name: statistics.median(values) for name, values in times.items()}, told["ours"].split()


def products_of_a_step(preset: str, layers: int, contenders: dict[str, Contender], rounds: int) -> dict[str, float]:
    """Seconds per contender for the matrix products of a step's linear layers and head, and their "flops"."""
    totals = dict.fromkeys([*contenders, "flops"], 0.0)
    for name in PRODUCTS:
        times, told = measure(f"product {name}", preset, contenders, rounds)
        count = 1 if name.startswith("head") else layers
        for who, value in {**times, "flops": float(told[1])}.items():
            totals[who] += count * value
    return totals


def line_of(row: str, t: dict[str, float], told: list[str], limits: tuple[float, float] | None) -> str:
    """One line of the table."""
    moved, flops = map(float, told)
    rate = (flops or moved) / t["ours"]
    share = f"{rate / limits[1 if flops else 0]:.0%}" if limits else "-"
    cells = [f"{t['ours'] * 1e3:.3f}", f"{rate / 1e9:.1f} {'GFLOP/s' if flops else 'GB/s'}", share]
    cells += [f"{t[name] * 1e3:.3f}" if name in t else "-" for name in ("reference", "torch")]
    cells += [f"{t[name] / t['ours']:.2f}" if name in t else "-" for name in ("reference", "torch")]
    return f"| {row} | {' | '.join(cells)} |"


def verdicts(ratios: dict[tuple[str, str], float], attention: dict[tuple[str, str], float]) -> list[str]:
    """The targets: no row slower than PyTorch; attention at half the multiply-add peak for D = 64, T >= 256."""
    said = []
    for what, products in (("kernels", False), ("matrix products", True)):
        chosen = {key: ratio for key, ratio in ratios.items() if key[1].startswith("product") == products}
        slower = sorted((ratio, key) for key, ratio in chosen.items() if ratio < 1 / LEVEL)
        if chosen:
            names = "; ".join(f"{preset} {row.removeprefix('product ')} {ratio:.2f}" for ratio, (preset, row) in slower)
            met = "not met" if slower else "met"
            ahead = f"level with PyTorch or faster in {len(chosen) - len(slower)} of {len(chosen)} rows"
            said.append(f"- {met}: {what} nowhere slower than PyTorch: {ahead}" + (f"; slower: {names}" * bool(slower)))
    for (preset, row), share in attention.items():
        said.append(f"- {'met' if share >= 0.5 else 'not met'}: {preset} {row} at {share:.0%} of the peak (aim: 50%)")
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--only", nargs="+", default=[""], help="names of rows, or prefixes of names")
    parser.add_argument("--rounds", type=int, default=9, help="turns per contender (default: 9)")
    parser.add_argument("--no-reference", action="store_true", help="leave the reference bodies out")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work)
        return
    import machine
    import ops_ours
    from quiet import quietly

    rows = [row for row in ops_ours.ROWS if row.startswith(tuple(options.only))]
    if not rows:
        raise SystemExit(f"--only: no row begins with {' or '.join(options.only)}; rows: {', '.join(ops_ours.ROWS)}")
    peak, bandwidth = quietly(machine.fma_peak), quietly(machine.read_bandwidth)
    limits = (bandwidth, peak) if bandwidth and peak else None
    names = ["ours"] + ["reference"] * (not options.no_reference)
    if importlib.util.find_spec("torch"):
        names.append("torch")
    else:
        print("PyTorch is not installed: measuring tinygpt alone")
    print(f"{machine.headline()}\n{machine.peers()}")
    if limits:
        print(f"float32 multiply-add peak {limits[1] / 1e9:.0f} GFLOP/s, all threads read {limits[0] / 1e9:.1f} GB/s")
    contenders = {name: Contender(name) for name in names}
    ratios: dict[tuple[str, str], float] = {}
    attention: dict[tuple[str, str], float] = {}
    for preset in options.presets:
        sizes = PRESETS[preset]
        print(f"\n### Sizes of {preset}: {sizes}\n")
        print(
            "| kernel | ours ms | rate | of the limit | reference ms | PyTorch ms | reference / ours | PyTorch / ours |"
        )
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for row in rows:
            if row.startswith("product"):
                present = {name: c for name, c in contenders.items() if name != "reference"}  # is the same code
            else:
                present = contenders
            t, told = measure(row, preset, present, options.rounds)
            print(line_of(row, t, told, limits), flush=True)
            if "torch" in t:
                ratios[preset, row] = t["torch"] / t["ours"]
            if row in ("attention_forward", "attention_backward") and sizes.T >= 256 and limits:
                attention[preset, row] = float(told[1]) / t["ours"] / limits[1]
    print()
    for said in verdicts(ratios, attention):
        print(said)


if __name__ == "__main__":
    main()
