"""A model of training on several processes: when does the network not matter? For `processes.py`."""

from __future__ import annotations

import numpy as np

from tinygpt.parallel.buckets import bucket_size

# Stated, not measured: (name, latency in s, bytes per second and process, FLOP/s of a process's training step)
NETWORKS = (
    ("10 GbE, a socket of 1 TFLOP/s", 30e-6, 1.25e9, 1e12),
    ("NVLink 4, an H200 at 400 TFLOP/s", 10e-6, 450e9, 400e12),
)
# (name, parameters, of these in the token embedding)
MODELS = (("baby", 10_745_088, 65 * 384), ("124M", 124_000_000, 50257 * 768), ("1.5B", 1_557_000_000, 50257 * 1600))
AIM = 0.95


def table(N: int = 8) -> list[str]:
    """Lines of a table: how many tokens each of N processes must have in a step to reach AIM."""
    lines = [f"| network (stated) | {' | '.join(name for name, *_ in MODELS)} |", f"|---|{'---|' * len(MODELS)}"]
    for name, *figures in NETWORKS:
        found = [tokens_for(AIM, size, N, *figures, embedding) for _, size, embedding in MODELS]
        lines.append(f"| {name} | {' | '.join(f'{tokens:,}' for tokens in found)} |")
    return lines


def fitted(sizes: list[int], times: list[float]) -> tuple[float, float]:
    """Latency in seconds, and bytes per second: the line latency + bytes / bandwidth with the least relative errors."""
    columns = np.array([[1.0, 4.0 * size] for size in sizes]) / np.array(times)[:, None]
    latency, slope = np.linalg.lstsq(columns, np.ones(len(times)), rcond=None)[0]
    return max(float(latency), 0.0), 1.0 / max(float(slope), 1e-18)


def weak_efficiency(
    parameters: int, tokens: float, N: int, latency: float, bandwidth: float, rate: float, embedding: int = 0
) -> float:
    """The model: a step of `tokens` tokens on each of N processes, against one process alone.

    Computing takes 6 operations a parameter and token, two thirds of them in the backward pass. The sum of a bucket
    takes 2 (N - 1) / N times its bytes through the network. All but the last bucket hide behind the backward pass, if
    that is long enough. embedding: the parameters of the token embedding, whose gradient is the last to be ready, and
    lies in one bucket.
    """
    compute = 6.0 * parameters * tokens / rate
    total = 4.0 * parameters
    bucket = bucket_size(4 * parameters)
    at_the_end = max(min(total, bucket), 4.0 * embedding)
    buckets = max(1, -(-int(total) // bucket))
    factor = 2.0 * (N - 1) / N
    last = latency + factor * at_the_end / bandwidth
    before = (buckets - 1) * latency + factor * (total - at_the_end) / bandwidth
    return compute / (compute + last + max(0.0, before - compute * 2 / 3))


def tokens_for(
    aim: float, parameters: int, N: int, latency: float, bandwidth: float, rate: float, embedding: int = 0
) -> int:
    """The fewest tokens on each process, as a power of two, that reach `aim`."""
    tokens = 1
    while weak_efficiency(parameters, tokens, N, latency, bandwidth, rate, embedding) < aim:
        tokens *= 2
    return tokens


def hidden_share(overlapped: float, afterwards: float, sums: float) -> float:
    """Which part of the sums' time a step does not see: they cost `sums` alone, and `afterwards` has them in full."""
    return min(1.0, max(0.0, (afterwards - overlapped) / sums)) if sums > 0 else 0.0
