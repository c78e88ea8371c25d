"""How near each matrix product of a training step comes to the inner block alone, and to OpenBLAS and MKL.

    python benchmarks/products.py [--presets tiny baby gpt2] [--rounds 9] [--seconds 0.03]
    TINYGPT_LEVEL=avx2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
        OPENBLAS_CORETYPE=Haswell python benchmarks/products.py

Everything runs on one thread of one process and is measured by processor time, in turn, in a new random order in each
round. A rate is that of the best round. Ratios are medians over the rounds, each of what was measured within a few
hundredths of a second: a neighbour on the other hardware thread of the core halves all rates alike, for seconds at a
time. "of the block" is the share of the rate at which the product's inner block runs with its operands in the caches,
which no product can exceed. OpenBLAS is NumPy's, MKL is PyTorch's, if that is installed. The last line of a preset adds
up the layers' products of a step.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import machine
from ops_sizes import PRESETS, PRODUCTS, normal
from quiet import quietly

import tinygpt as tg
from tinygpt.ops._matmul import matmul_into

AIM = 0.9  # of the block's rate


def operands(shapes: tuple[Any, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A (M, K) and B (K, N) of a row of PRODUCTS; the one that is stored transposed is a view."""
    (M, K), (_, N), *transposed = shapes
    a = normal(K, M).T if transposed == ["left"] else normal(M, K)
    b = normal(N, K, seed=1).T if transposed == ["right"] else normal(K, N, seed=1)
    return a, b


def contenders(a: np.ndarray, b: np.ndarray) -> dict[str, Callable[[], Any]]:
    out = np.empty((a.shape[0], b.shape[1]), np.float32)
    made: dict[str, Callable[[], Any]] = {
        "ours": lambda: matmul_into(a, b, out, False),
        "OpenBLAS": lambda: np.matmul(a, b, out=out),
    }
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(1)
        left, right, result = torch.from_numpy(a), torch.from_numpy(b), torch.empty(out.shape)
        made["MKL"] = lambda: torch.matmul(left, right, out=result)
    return made


def seconds(body: Callable[[], Any], least: float) -> float:
    """Processor seconds of a call, over as many calls as take `least` seconds."""
    calls, start = 0, time.thread_time()
    while True:
        body()
        calls += 1
        taken = time.thread_time() - start
        if taken >= least:
            return taken / calls


def block_rate() -> float:
    """FLOP/s, nan if products are not ours."""
    return (machine.block_rate(0.05, time.thread_time) or (math.nan, math.nan))[0]


def measure(bodies: dict[str, Callable[[], Any]], flops: float, rounds: int, least: float) -> dict[str, np.ndarray]:
    """The seconds of each body in each round, and "block": those of its `flops` operations at the block's rate then."""
    taken = {name: np.empty(rounds) for name in [*bodies, "block"]}
    for body in bodies.values():
        body()
    for turn in range(rounds):
        names = list(taken)
        random.shuffle(names)
        for name in names:
            body = bodies.get(name)
            taken[name][turn] = quietly(partial(seconds, body, least)) if body else flops / quietly(block_rate)
    return taken


def of_the_block(ours: np.ndarray, at_the_block: np.ndarray) -> float:
    """The median share, 0 if there is no such block: of the seconds of each round at the block's rate and of ours."""
    return float(np.median(at_the_block / ours)) if np.isfinite(at_the_block).all() else 0.0


def verdicts(preset: str, taken: dict[str, np.ndarray], shares: list[float]) -> list[str]:
    """The aims, met or not. taken: each contender's seconds for the layers' products in each round, and "block": those
    at the block's rate. shares: our share of that rate for each product."""
    ahead = {who: float(np.median(each / taken["ours"])) for who, each in taken.items() if who not in ("ours", "block")}
    beside = ", ".join(f"{ratio:.2f} times as fast as {who}" for who, ratio in ahead.items())
    where = f"products of {preset}'s layers at {machine.level()}"
    if preset == "tiny":
        return [f"- {'met' if min(ahead.values()) >= 1 else 'not met'}: {where}: {beside} (aim: ahead of both)"]
    return [
        machine.verdict(
            min(shares) >= AIM,
            f"{where}: {sum(s >= AIM for s in shares)} of {len(shares)} reach {AIM:.0%} of the block's rate, the least "
            f"{min(shares):.0%}, together {of_the_block(taken['ours'], taken['block']):.0%}",
            "each",
            f"on one thread; {beside}",
        )
    ]


def line_of(name: str, flops: float, taken: dict[str, np.ndarray]) -> str:
    """A row of the table. taken: each contender's seconds in each round, and "block": those at the block's rate."""
    rates = {who: f"{flops / each.min() / 1e9:.1f}" for who, each in taken.items()}
    share = of_the_block(taken["ours"], taken["block"])
    columns = [rates["ours"], f"{share:.1%}" if share else "-", *(rates.get(who, "-") for who in ("OpenBLAS", "MKL"))]
    return f"| {' | '.join([name, *columns])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--only", nargs="+", default=[""], help="names of products, or prefixes of names")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.03, help="of each turn")
    options = parser.parse_args()
    tg.set_num_threads(1)
    print(f"{machine.headline()}\n{machine.peers()}")
    said = []
    for preset in options.presets:
        print(f"\n### {preset}, one thread, GFLOP/s\n\n| product | ours | of the block | OpenBLAS | MKL |")
        print("|---|---|---|---|---|", flush=True)
        sums: dict[str, np.ndarray] = {}
        work, shares = 0.0, []
        for name, shapes in PRODUCTS.items():
            if not name.startswith(tuple(options.only)) or (name.startswith("head") and preset == "gpt2"):
                continue
            a, b = operands(shapes(PRESETS[preset]))
            flops = 2.0 * a.shape[0] * a.shape[1] * b.shape[1]
            taken = measure(contenders(a, b), flops, options.rounds, options.seconds)
            print(line_of(name, flops, taken), flush=True)
            if not name.startswith("head"):
                work += flops
                shares.append(of_the_block(taken["ours"], taken["block"]))
                sums = {who: sums.get(who, 0.0) + each for who, each in taken.items()}
        if work:
            print(line_of("the layers together", work, sums))
            said += verdicts(preset, sums, shares)
    print("\n" + "\n".join(said))


if __name__ == "__main__":
    main()
