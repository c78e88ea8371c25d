"""What the stages of gpu_first_contact.py share: figures written down at once, timing, a model, its training step."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from typing import Any

import numpy as np

DRY = bool(os.environ.get("DRY"))
BACKEND, DEVICE = ("numpy", "cpu") if DRY else ("cupy", "cuda")
RESULTS = os.environ.get("RESULTS", "results.jsonl")
B, T = (2, 32) if DRY else (16, 1024)


def put(name: str, value: Any, unit: str = "") -> None:
    print(f"{name:64s} {value if not isinstance(value, float) else f'{value:.4g}'} {unit}", flush=True)
    with open(RESULTS, "a") as file:
        file.write(json.dumps({"name": name, "value": value, "unit": unit}) + "\n")


@contextlib.contextmanager
def attempt(name: str) -> Any:
    """Record an exception as a result and continue with the next attempt."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        put(f"FAILED {name}", f"{type(error).__name__}: {lines[0][:200]}")
        if "--trace" in sys.argv:
            raise


# Timing ---------------------------------------------------------------------------------------------


def ms(call: Any, trials: int = 20, rounds: int = 5) -> float:
    """Milliseconds per call, by events around `trials` back-to-back calls: the median of `rounds` runs."""
    call()
    found = []
    for _ in range(rounds if not DRY else 1):
        if DRY:
            begin = time.perf_counter()
            call()
            found.append((time.perf_counter() - begin) * 1e3)
            continue
        xp = gpu()
        start, end = xp.cuda.Event(), xp.cuda.Event()
        start.record()
        for _ in range(trials):
            call()
        end.record()
        end.synchronize()
        found.append(xp.cuda.get_elapsed_time(start, end) / trials)
    return float(np.median(found))


def gpu() -> Any:
    """The array library: CuPy, or NumPy in a dry run."""
    from tinygpt import backends

    return np if DRY else backends.get("cupy").require()


def host(x: Any) -> np.ndarray:
    return np.asarray(x) if isinstance(x, np.ndarray) else gpu().asnumpy(x)


def off(found: Any, truth: Any) -> float:
    """The relative error |found - truth| / |truth|; NaN if some element was never written."""
    found, truth = np.asarray(found, np.float64), np.asarray(truth, np.float64)
    return float(np.linalg.norm(found - truth) / max(np.linalg.norm(truth), 1e-300))


def poison(size: int = 1 << 28) -> None:
    """Fill the memory pool with NaN, so that elements that are never written are noticed."""
    if not DRY:
        xp = gpu()
        for _ in range(2):
            x = xp.full(size // 4, np.nan, np.float32)
            del x


def kind(dtype: str) -> Any:
    from tinygpt.backends.precision import activation_dtype

    return np.dtype(np.float32) if dtype == "float32" or DRY else activation_dtype(dtype, "cupy")


# A model --------------------------------------------------------------------------------------------


def quick_normal(self: Any, shape: Any, std: float = 1.0, dtype: Any = np.float64) -> np.ndarray:
    """Replaces Generator.normal, which takes seconds for 124 million numbers; the values do not matter here."""
    self.stream += 1
    return (np.random.default_rng(self.stream).standard_normal(shape, np.float32) * np.float32(std)).astype(dtype)


def make_model(config: Any, seed: int = 0) -> Any:
    import tinygpt as tg

    tg.Generator.normal = quick_normal  # type: ignore[method-assign]

    with tg.use_backend("numpy"):
        return tg.GPT(config, seed=seed)


def burst_of(config: Any, dtype: str, graphs: str, batch: int, length: int) -> tuple[Any, Any, Any]:
    """(a function that takes one step as the training loop does, the graphed step, the optimizer)."""
    from gpu_worker import LateStep

    import tinygpt as tg

    net = make_model(config).to(BACKEND)
    optimizer = tg.optim.AdamW(net.named_parameters(), lr=1e-4, betas=(0.9, 0.99), weight_decay=0.1)
    data = np.random.default_rng(7).integers(0, config.vocab_size, (4, batch, length + 1))
    pairs = [(np.ascontiguousarray(x[:, :-1]), np.ascontiguousarray(x[:, 1:])) for x in data]
    late_step, count = LateStep(net, optimizer, "off" if DRY else graphs), [0]

    def step() -> float:
        count[0] += 1
        with net.compute_in(dtype if not DRY else "float32"):
            return late_step(*pairs[count[0] % 4])  # waits for the step before

    step.late, step.pairs = late_step, pairs  # type: ignore[attr-defined]
    return step, late_step.graphed, optimizer
