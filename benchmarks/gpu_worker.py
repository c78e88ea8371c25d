"""One contender of benchmarks/gpu.py, in a separate process, so that each library manages the GPU's memory on its own.

Reads lines with a number of steps from standard input, and answers each with a line of JSON: {"ms": per step, "loss":
of the last step, "memory": bytes that the library holds}. Times are measured with CUDA events.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import tinygpt as tg
from tinygpt import GPT, GPTConfig, backends
from tinygpt.backends.precision import activation_dtype
from tinygpt.ops.cast import keep_rounded
from tinygpt.training.step.graphed_step import GraphedStep
from tinygpt.training.step.update import Update

BABY = GPTConfig(vocab_size=65, block_size=256, n_layer=6, n_head=6, n_embd=384, bias=False)
GPT2 = GPTConfig(vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768)
# name: (model, B, T, steps in a burst)
PRESETS = {"baby": (BABY, 64, 256, 50), "gpt2": (GPT2, 16, 1024, 10)}
DTYPES = ("float32", "tf32", "bfloat16")
CONTENDERS = ("tinygpt", "tinygpt-launches", "torch", "torch-compile")  # the second without CUDA graphs
LEARNING_RATE, BETAS, DECAY = 1e-4, (0.9, 0.99), 0.1


class Figures(NamedTuple):
    """The figures of a burst: milliseconds per step, the last loss, bytes held."""

    ms: float
    loss: float
    memory: int


def batches(preset: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """The batches (B, T) that every contender cycles through."""
    config, B, T, _ = PRESETS[preset]
    ids = tg.Generator(7).integers(config.vocab_size, (4, B, T + 1))
    return [(np.ascontiguousarray(part[:, :-1]), np.ascontiguousarray(part[:, 1:])) for part in ids]


class LateStep:
    """A step as the training loop takes it: on a GPU norm, clipping and AdamW follow the passes in the same CUDA graph,
    weights are rounded to 16 bits by AdamW, and the loss is read a step late. On a CPU everything is read at once.

    graphs: "on", "off" or "auto". Gradients are clipped to norm 1.
    """

    def __init__(self, model: Any, optimizer: Any, graphs: str) -> None:
        self.model, self.optimizer = model, optimizer
        self.graphed = GraphedStep(model, self._passes, graphs)
        self.parameters = list(model.parameters())
        settings = SimpleNamespace(grad_clip=1.0)
        trainer: Any = SimpleNamespace(
            parameters=self.parameters, optimizer=optimizer, config=settings, accumulation=SimpleNamespace(parts=1)
        )
        self.update = Update(trainer) if optimizer.takes_scale_on_device else None
        self.before: Any = None

    def _passes(self, inputs: np.ndarray, targets: np.ndarray) -> Any:
        loss = self.model.loss(inputs, targets)
        loss.backward()
        return loss

    def __call__(self, inputs: np.ndarray, targets: np.ndarray) -> float:
        """Take a step; return the loss of the one before, or this one's if there is none."""
        keep_rounded(self.model, self.optimizer)
        if self.update is None:
            loss = self.graphed(inputs, targets)
            norm = tg.optim.grad_norm(self.parameters)
            self.optimizer.step(grad_scale=tg.optim.clip_coefficient(norm, 1.0))
            self.optimizer.zero_grad()
            return float(loss.item())
        self.update.prepare()
        loss = self.graphed(inputs, targets, update=self.update)
        reading = backends.get("cupy").Reading([loss.data])
        self.optimizer.zero_grad()
        before, self.before = self.before, reading
        return float((before or reading).values()[0])

    def last(self, known: float) -> float:
        """The loss of the last step, where `known` is what the last call returned. Waits for it."""
        return known if self.before is None else float(self.before.values()[0])


def tinygpt_burst(preset: str, dtype: str, graphs: bool) -> Callable[[int], Figures]:
    """Steps as in the training loop, which reads the loss of a step when the next one has been launched."""
    tg.use_backend("cupy", tf32=dtype == "tf32")
    cupy = backends.get("cupy").require()
    model = GPT(PRESETS[preset][0], seed=0).to("cupy")
    optimizer = tg.optim.AdamW(model.named_parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=DECAY)
    data, done = batches(preset), 0
    late_step = LateStep(model, optimizer, "on" if graphs else "off")
    graphed_step = late_step.graphed

    def step() -> float:
        nonlocal done
        done += 1
        with model.compute_in("bfloat16") if dtype == "bfloat16" else contextlib.nullcontext():
            return late_step(*data[(done - 1) % len(data)])

    def burst(steps: int) -> Figures:
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        losses = [step() for _ in range(steps)]
        loss = late_step.last(losses[-1])
        end.record()
        end.synchronize()
        held = backends.get("cupy").memory().held + (
            graphed_step.recorder.pool.total_bytes() if graphed_step.recorder else 0
        )
        return Figures(cupy.cuda.get_elapsed_time(start, end) / steps, loss, held)

    return burst


def torch_burst(preset: str, dtype: str, compiled: bool, device: str = "cuda") -> Callable[[int], Figures]:
    """PyTorch at its best: fused attention, fused AdamW, autocast; the loss is only read at the end."""
    import torch
    from peer_torch import TorchGPT

    config = PRESETS[preset][0]
    torch.set_default_device(device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    model = TorchGPT(config)
    with torch.no_grad(), tg.use_backend("numpy"):
        model.take_weights({name: p.data for name, p in GPT(config, seed=0).named_parameters()})
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, fused=True)
    parameters = list(model.parameters())
    forward = torch.compile(model) if compiled else model
    data = [tuple(torch.from_numpy(array) for array in pair) for pair in batches(preset)]
    done = 0

    def step() -> Any:
        nonlocal done
        idx, targets = (array.to(device) for array in data[done % len(data)])
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = forward(idx, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done += 1
        return loss.detach()

    def burst(steps: int) -> Figures:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(steps):
            loss = step()
        end.record()
        end.synchronize()
        return Figures(start.elapsed_time(end) / steps, float(loss), torch.cuda.max_memory_reserved())

    return burst


# Kernels ------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A memory-bound kernel: a function that calls it, and the bytes that it moves according to its .cu file."""

    name: str
    call: Callable[[], Any]
    bytes: int


def kernel_rows(dtype: str, N: int = 16 * 1024, C: int = 768, V: int = 50257) -> list[Row]:
    """The memory-bound kernels, at the sizes of gpt2's step: B T = 16 x 1,024 rows of 768 channels."""
    import tinygpt.optim.adamw as adamw
    import tinygpt.optim.clip as clip
    from tinygpt.kernel import REGISTRY

    cupy = backends.get("cupy").require()
    kind = activation_dtype(dtype, "cupy")
    rng = np.random.default_rng(0)

    def array(*shape: int) -> Any:
        return cupy.asarray(rng.standard_normal(shape, np.float32)).astype(kind)

    x, dy, wide, dwide = array(N, C), array(N, C), array(N, 4 * C), array(N, 4 * C)
    weight, bias, wide_bias = array(C), array(C), array(4 * C)
    mean, rstd = (cupy.asarray(rng.random(shape, np.float32)) for shape in ((N, 2), N))
    logits, targets = array(N // 8, V), cupy.asarray(rng.integers(0, V, N // 8))
    table, ids = array(V, C), cupy.asarray(rng.integers(0, V, N))
    masters = [tuple(cupy.zeros((V, C), np.float32) for _ in range(4)) for _ in range(8)]
    e = kind.itemsize

    def row(name: str, accesses: float, elements: int, *arguments: Any) -> Row:
        return Row(name, lambda: REGISTRY[name](*arguments), int(accesses * elements * e))

    rows = [
        row("layer_norm_forward", 2, N * C, x, weight, bias, 1e-5),
        row("layer_norm_backward", 3, N * C, dy, x, weight, mean, rstd, True),
        row("residual_layer_norm_forward", 4, N * C, x, dy, bias, weight, bias, 1e-5, 0.0, 0, 0),
        row("residual_layer_norm_forward", 4, N * C, x, dy, bias, weight, bias, 1e-5, 0.2, 0, 0),
        row("residual_layer_norm_backward", 4, N * C, dy, x, x, weight, mean, rstd, 0.0, 0, 0, True, True),
        row("bias_gelu_forward", 2, N * 4 * C, wide, wide_bias),
        row("bias_gelu_backward", 3, N * 4 * C, dwide, wide, wide_bias),
        row("cross_entropy_inplace", 3, logits.size, logits, targets, -100, 1.0),
        row("embedding_forward", 2, N * C, table, ids),
        row("dropout_apply", 2, N * C, x, 0.2, 0, 0),
        row("add_bias", 2, N * C, x, bias),
        row("column_sum", 1, N * C, x),
    ]
    size = len(masters) * V * C
    options = (1e-4, 0.9, 0.99, 1e-8, 0.1, 1, 1.0)

    def adamw_step() -> None:
        adamw.adamw_update.each([(*arrays, *options) for arrays in masters])

    def norm() -> None:
        clip.sum_of_squares.each([(arrays[0],) for arrays in masters])

    rows.append(Row("adamw_update, 8 large parameters", adamw_step, 28 * size))
    rows.append(Row("sum_of_squares, 8 large gradients", norm, 4 * size))
    return rows


def milliseconds(call: Callable[[], Any], trials: int = 20) -> float:
    """Milliseconds per call, by CUDA events around back-to-back calls: the median of five runs."""
    cupy = backends.get("cupy").require()
    call()
    times = []
    for _ in range(5):
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        for _ in range(trials):
            call()
        end.record()
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, end) / trials)
    return float(np.median(times))


def kernels() -> dict[str, Any]:
    """The device's copy bandwidth, and the bandwidth of each kernel, in bytes per second."""
    tg.use_backend("cupy")
    cupy = backends.get("cupy").require()
    source = cupy.ones(1 << 28, np.float32)
    target = cupy.empty_like(source)
    copy = 2 * source.nbytes / milliseconds(lambda: cupy.copyto(target, source)) * 1e3
    found = []
    for dtype in ("float32", "bfloat16"):
        found += [(row.name, dtype, row.bytes / milliseconds(row.call) * 1e3) for row in kernel_rows(dtype)]
    return {"copy": copy, "kernels": found}


def losses(steps: int = 200) -> dict[str, Any]:
    """The largest difference between the losses on the CPU and on the GPU, and the last losses: float32, no dropout."""
    config = replace(BABY, block_size=64, n_layer=4, n_head=4, n_embd=128)
    runs = []
    for backend in ("numpy", "cupy"):
        with tg.use_backend(backend):
            model = GPT(config, seed=0)
            optimizer = tg.optim.AdamW(model.named_parameters(), lr=1e-3, betas=BETAS, weight_decay=DECAY)
            found = []
            for step in range(steps):
                ids = tg.Generator(11, stream=step).integers(config.vocab_size // 4, (12, 65))
                loss = model.loss(ids[:, :-1], ids[:, 1:])
                loss.backward()
                optimizer.step(grad_scale=tg.optim.clip_coefficient(tg.optim.grad_norm(model.parameters()), 1.0))
                optimizer.zero_grad()
                found.append(loss.item())
            runs.append(found)
    return {"difference": max(abs(a - b) for a, b in zip(*runs, strict=True)), "last": [runs[0][-1], runs[1][-1]]}


def main() -> None:
    what = sys.argv[1]
    if what in ("kernels", "losses"):
        print(json.dumps(kernels() if what == "kernels" else losses()), flush=True)
        return
    contender, preset, dtype = sys.argv[2:]
    if contender.startswith("tinygpt"):
        burst = tinygpt_burst(preset, dtype, graphs=contender == "tinygpt")
    else:
        burst = torch_burst(preset, dtype, compiled=contender == "torch-compile")
    for line in sys.stdin:
        print(json.dumps(burst(int(line))._asdict()), flush=True)


if __name__ == "__main__":
    main()
