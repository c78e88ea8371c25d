"""Each compiled kernel beside its reference and beside PyTorch's operation, at the sizes of a preset.

    python benchmarks/ops.py [--preset baby] [--only attention gelu]

One row an operation and direction. The three take turns, so that a machine that slows down slows all; figures are
medians in milliseconds. GB/s counts the bytes that must move (each input read once, each output written once).
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import machine

import tinygpt as tg
import tinygpt.optim  # registers its kernels
from tinygpt.kernel import REGISTRY, use_kernels


@dataclass(frozen=True)
class Sizes:
    B: int
    T: int
    C: int
    H: int
    V: int
    parameters: int


PRESETS = {
    "tiny": Sizes(12, 64, 128, 4, 65, 800_000),
    "baby": Sizes(16, 256, 384, 6, 65, 10_600_000),
    "gpt2": Sizes(4, 256, 768, 12, 50257, 124_000_000),
}


@dataclass
class Row:
    """A kernel, its arguments, the bytes it must move, and the same work as a PyTorch function."""

    kernel: str
    arguments: tuple[Any, ...]
    moved: int
    torch: Callable[[], Any] | None = None


def normal(*shape: int) -> np.ndarray:
    return tg.Generator(len(shape)).normal(shape).astype(np.float32)


def gradient(torch: Any, function: Callable[..., Any], *arrays: np.ndarray) -> Callable[[], Any]:
    """A PyTorch function that runs `function`'s backward pass alone, again and again."""
    inputs = [torch.from_numpy(a).requires_grad_() for a in arrays]
    output = function(*inputs)
    upstream = torch.ones_like(output)
    return lambda: torch.autograd.grad(output, inputs, upstream, retain_graph=True)


def rows(s: Sizes, torch: Any) -> list[Row]:
    """All kernels of a training step at these sizes."""
    F = torch.nn.functional if torch else None
    N, C, V, D = s.B * s.T, s.C, s.V, s.C // s.H
    x, wide, weight = normal(N, C), normal(N, 4 * C), np.ones(C, np.float32)
    wide_bias, logits = np.zeros(4 * C, np.float32), normal(N, V)
    table, ids = normal(V, C), tg.Generator(3).integers(V, (N,))
    qkv = normal(s.B, s.T, 3, s.H, D)
    q, k, v = (qkv[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
    options = (True, 1 / math.sqrt(D), 0.0, 0, 0)
    y, lse = REGISTRY["attention_forward"](q, k, v, *options)
    dqkv = np.empty_like(qkv)
    dq, dk, dv = (dqkv[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
    _, mean, rstd = REGISTRY["layer_norm_forward"](x, weight, weight, 1e-5)
    _, row_lse = REGISTRY["cross_entropy_forward"](logits, ids, -100)
    probabilities = REGISTRY["softmax_forward"](logits)
    param, grad, m, v2 = (normal(s.parameters) for _ in range(4))
    per_row = np.full(N, 1 / N, np.float32)

    def peer(function: Callable[..., Any], *arrays: Any) -> Callable[[], Any] | None:
        if not torch:
            return None
        given = [torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in arrays]
        return lambda: function(*given)

    def peer_gradient(function: Callable[..., Any], *arrays: Any) -> Callable[[], Any] | None:
        return gradient(torch, function, *arrays) if torch else None

    def packed_attention(packed: Any) -> Any:
        return F.scaled_dot_product_attention(*(packed[:, :, i].transpose(1, 2) for i in range(3)), is_causal=True)

    def torch_adamw() -> Callable[[], Any] | None:
        if not torch:
            return None
        parameter = torch.nn.Parameter(torch.from_numpy(param.copy()))
        parameter.grad = torch.from_numpy(grad)
        return torch.optim.AdamW([parameter], lr=1e-6, fused=True).step

    torch_ids = torch.from_numpy(ids) if torch else None
    return [
        Row("layer_norm_forward", (x, weight, weight, 1e-5), 2 * x.nbytes,
            peer(lambda a, w: F.layer_norm(a, (C,), w, w), x, weight)),
        Row("layer_norm_backward", (x, x, weight, mean, rstd, True), 3 * x.nbytes,
            peer_gradient(lambda a, w, b: F.layer_norm(a, (C,), w, b), x, weight, weight.copy())),
        Row("residual_layer_norm_forward", (x, x, None, weight, weight, 1e-5, 0.0, 0, 0), 4 * x.nbytes,
            peer(lambda a, w: F.layer_norm(a + a, (C,), w, w), x, weight)),
        Row("residual_layer_norm_backward", (x, x, x, weight, mean, rstd, 0.0, 0, 0, False, True), 4 * x.nbytes),
        Row("gelu_forward", (wide,), 2 * wide.nbytes, peer(lambda a: F.gelu(a, approximate="tanh"), wide)),
        Row("gelu_backward", (wide, wide), 3 * wide.nbytes,
            peer_gradient(lambda a: F.gelu(a, approximate="tanh"), wide)),
        Row("gelu_erf_forward", (wide,), 2 * wide.nbytes, peer(F.gelu if F else len, wide)),
        Row("bias_gelu_forward", (wide, wide_bias), 2 * wide.nbytes,
            peer(lambda a, b: F.gelu(a + b, approximate="tanh"), wide, wide_bias)),
        Row("bias_gelu_backward", (wide, wide, wide_bias), 3 * wide.nbytes,
            peer_gradient(lambda a, b: F.gelu(a + b, approximate="tanh"), wide, wide_bias)),
        Row("softmax_forward", (logits,), 2 * logits.nbytes, peer(lambda a: a.softmax(-1), logits)),
        Row("softmax_backward", (logits, probabilities), 3 * logits.nbytes,
            peer_gradient(lambda a: a.softmax(-1), logits)),
        Row("cross_entropy_forward", (logits, ids, -100), logits.nbytes,
            peer(lambda a: F.cross_entropy(a, torch_ids), logits)),
        Row("cross_entropy_backward", (per_row, logits, ids, row_lse, -100), 2 * logits.nbytes,
            peer_gradient(lambda a: F.cross_entropy(a, torch_ids), logits)),
        Row("attention_forward", (q, k, v, *options), 4 * x.nbytes, peer(packed_attention, qkv)),
        Row("attention_backward", (y, q, k, v, y, lse, *options, dq, dk, dv), 8 * x.nbytes,
            peer_gradient(packed_attention, qkv)),
        Row("embedding_forward", (table, ids), 2 * x.nbytes,
            peer(lambda w: F.embedding(torch_ids, w), table)),
        Row("embedding_backward", (x, ids, V), x.nbytes + table.nbytes,
            peer_gradient(lambda w: F.embedding(torch_ids, w), table)),
        Row("dropout_apply", (wide, 0.2, 1, 2), 2 * wide.nbytes, peer(lambda a: F.dropout(a, 0.2), wide)),
        Row("column_sum", (wide,), wide.nbytes, peer(lambda a: a.sum(0), wide)),
        Row("sum_of_squares", (grad,), grad.nbytes, peer(lambda a: torch.linalg.vector_norm(a), grad)),
        Row("adamw_update", (param, grad, m, np.abs(v2), 1e-6, 0.9, 0.99, 1e-8, 0.1, 5, 1.0), 7 * grad.nbytes,
            torch_adamw()),
    ]  # fmt: skip


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(row: Row, rounds: int, with_reference: bool) -> dict[str, float]:
    """Median seconds of each body, taken in turn."""
    call = REGISTRY[row.kernel]
    bodies: dict[str, Callable[[], Any]] = {"ours": lambda: call(*row.arguments)}
    if with_reference:
        bodies["reference"] = lambda: call.reference(*row.arguments)
    if row.torch:
        bodies["torch"] = row.torch
    times: dict[str, list[float]] = {name: [] for name in bodies}
    for turn in range(rounds + 1):
        for name, body in bodies.items():
            elapsed = seconds(body)
            if turn:  # the first is the warm-up
                times[name].append(elapsed)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="baby")
    parser.add_argument("--only", nargs="+", default=[""], help="names, or beginnings of names, of kernels")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-reference", action="store_true", help="leave the reference bodies out")
    options = parser.parse_args()
    torch = importlib.import_module("torch") if importlib.util.find_spec("torch") else None
    print(machine.headline())
    print(f"\nSizes of {options.preset}: {PRESETS[options.preset]}\n")
    print("| kernel | ours ms | GB/s | reference ms | PyTorch ms | reference / ours | PyTorch / ours |")
    print("|---|---|---|---|---|---|---|")
    with use_kernels("auto"), np.errstate(all="ignore"):
        for row in rows(PRESETS[options.preset], torch):
            if not row.kernel.startswith(tuple(options.only)):
                continue
            t = measure(row, options.rounds, not options.no_reference)
            cells = [f"{t[name] * 1e3:.3f}" if name in t else "-" for name in ("reference", "torch")]
            ratios = [f"{t[name] / t['ours']:.2f}" if name in t else "-" for name in ("reference", "torch")]
            ours = f"{t['ours'] * 1e3:.3f} | {row.moved / t['ours'] / 1e9:.1f}"
            print(f"| {row.kernel} | {ours} | {' | '.join(cells + ratios)} |", flush=True)


if __name__ == "__main__":
    main()
