"""How near each matrix product of a training step comes to the inner block alone, and to OpenBLAS and MKL.

    python benchmarks/products.py [--presets tiny baby gpt2] [--rounds 9] [--seconds 0.03]
    TINYGPT_LEVEL=avx2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
        OPENBLAS_CORETYPE=Haswell python benchmarks/products.py

Everything runs on one thread of one process and is measured by processor time, in turn, in a new random order in each
round; the best of the rounds counts. So other work on the machine changes little. "of the block" is the share of the
rate at which the product's inner block runs with its operands in the caches, which no product can exceed. OpenBLAS is
NumPy's, MKL is PyTorch's, if that is installed. The last line of a preset adds up the layers' products of a step.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import machine
from ops_sizes import PRESETS, PRODUCTS, normal

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
    return (machine.block_rate(0.05, time.thread_time) or (0.0, 0.0))[0]


def measure(
    bodies: dict[str, Callable[[], Any]], rounds: int, least: float, block: float
) -> tuple[dict[str, float], float]:
    """The best seconds of each body, and the best rate of the block, not below `block`."""
    best = dict.fromkeys(bodies, float("inf"))
    for body in bodies.values():
        body()
    for _ in range(rounds):
        names = list(bodies)
        random.shuffle(names)
        for name in names:
            best[name] = min(best[name], seconds(bodies[name], least))
        block = max(block, block_rate())
    return best, block


def verdicts(preset: str, flops: float, taken: dict[str, float], block: float, rates: list[float]) -> list[str]:
    """The aims, met or not. taken: the seconds of each contender for the products of the layers, `flops` operations.
    rates: ours, for each product."""
    rate = flops / taken["ours"]
    ahead = {who: seconds / taken["ours"] for who, seconds in taken.items() if who != "ours"}
    beside = ", ".join(f"{ratio:.2f} times as fast as {who}" for who, ratio in ahead.items())
    where = f"products of {preset}'s layers at {machine.level()}"
    shares = [each / block if block else 0.0 for each in rates]
    if preset == "tiny":
        return [f"- {'met' if min(ahead.values()) >= 1 else 'not met'}: {where}: {beside} (aim: ahead of both)"]
    return [
        machine.verdict(
            min(shares) >= AIM,
            f"{where}: {sum(s >= AIM for s in shares)} of {len(shares)} reach {AIM:.0%} of the block's rate, the least "
            f"{min(shares):.0%}, together {rate / block if block else 0.0:.0%}",
            "each",
            f"the block alone does {block / 1e9:.0f} GFLOP/s on one thread; {beside}",
        )
    ]


def line_of(name: str, flops: float, taken: dict[str, float], block: float) -> str:
    rates = {who: flops / seconds / 1e9 for who, seconds in taken.items()}
    share = f"{rates['ours'] * 1e9 / block:.1%}" if block else "-"
    peers = (f"{rates[who]:.1f}" if who in rates else "-" for who in ("OpenBLAS", "MKL"))
    return f"| {name} | {rates['ours']:.1f} | {share} | {' | '.join(peers)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--only", nargs="+", default=[""], help="names of products, or prefixes of names")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.03, help="of each turn")
    options = parser.parse_args()
    tg.set_num_threads(1)
    print(f"{machine.headline()}\n{machine.peers()}")
    block, said = block_rate(), []
    for preset in options.presets:
        print(f"\n### {preset}, one thread, GFLOP/s\n\n| product | ours | of the block | OpenBLAS | MKL |")
        print("|---|---|---|---|---|", flush=True)
        sums: dict[str, float] = {}
        work, rates = 0.0, []
        for name, shapes in PRODUCTS.items():
            if not name.startswith(tuple(options.only)) or (name.startswith("head") and preset == "gpt2"):
                continue
            a, b = operands(shapes(PRESETS[preset]))
            best, block = measure(contenders(a, b), options.rounds, options.seconds, block)
            flops = 2.0 * a.shape[0] * a.shape[1] * b.shape[1]
            print(line_of(name, flops, best, block), flush=True)
            if not name.startswith("head"):
                work += flops
                rates.append(flops / best["ours"])
                sums = {who: sums.get(who, 0.0) + seconds for who, seconds in best.items()}
        if work:
            print(line_of("the layers together", work, sums, block))
            said += verdicts(preset, work, sums, block, rates)
    print("\n" + "\n".join(said))


if __name__ == "__main__":
    main()
