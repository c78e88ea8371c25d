"""What each launch of a training step should cost on a GPU: bytes, operations and a time, by a roofline.

    python benchmarks/gpu_model.py --preset gpt2 --device H200
    python benchmarks/gpu_model.py --preset gpt2 --measured out/gpu_first_contact/kernels.txt     both side by side
    python benchmarks/gpu_model.py --preset gpt2 --measured benchmarks/results/gpu_first_contact.md

The launches are those of a real step: the model, the operations and the launchers run on arrays without values
(`gpu_paper.py`), so the counts can't diverge from the code. Outputs are kept, not recomputed, as on a GPU with memory
to spare. Each array moves once in each direction, and

    time = FLOOR + max(bytes / (MEMORY * bandwidth), operations / (share * peak))

where a share is what a good kernel of that kind reaches, not what ours do: a launch that takes much longer than this
has something to gain. FLOOR is the shortest time of a kernel in a CUDA graph. Not in it: the host, caches (an array
that was just written may still be in L2), tiles that don't fill the GPU.

--measured: a table of kernels as `gpu_first_contact.py profile` writes it, or a file that holds one. Rows of both are
matched by the kernel's name; all matrix products are one row, because cuBLAS chooses their kernels.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import gpu_paper
from gpu_worker import BABY, BETAS, DECAY
from gpu_worker import PRESETS as MEASURED_PRESETS

import tinygpt as tg
from tinygpt.graph import keep_outputs
from tinygpt.ops.cast import keep_rounded

FLOOR = 2.0e-6  # seconds
MEMORY, PRODUCT, ATTENTION = 0.85, 0.70, 0.35  # shares of bandwidth and of peak


class Gpu(NamedTuple):
    """Bytes a second; operations a second in 16 bits (tensor cores, sums in float32) and in float32; bytes."""

    bandwidth: float
    tensor: float
    float32: float
    memory: float


DEVICES = {  # NVIDIA's data sheets, without sparsity
    "H200": Gpu(4.8e12, 989e12, 67e12, 141e9),
    "H100": Gpu(3.35e12, 989e12, 67e12, 80e9),
    "B200": Gpu(8.0e12, 2250e12, 75e12, 180e9),
    "A100": Gpu(2.04e12, 312e12, 19.5e12, 80e9),
    "L4": Gpu(0.30e12, 121e12, 30.3e12, 24e9),
    "4090": Gpu(1.01e12, 165e12, 82.6e12, 24e9),
    "3090": Gpu(0.936e12, 71e12, 35.6e12, 24e9),
    "T4": Gpu(0.32e12, 65e12, 8.1e12, 16e9),
}
TINY = replace(BABY, n_layer=4, n_head=4, n_embd=128, block_size=64)
PRESETS: dict[str, tuple[Any, int, int]] = {name: row[:3] for name, row in MEASURED_PRESETS.items()} | {
    "tiny": (TINY, 12, 64)
}

# A step on paper ------------------------------------------------------------------------------------


class Step(NamedTuple):
    """The launches of one step: forward and backward pass; norm and update."""

    passes: list[gpu_paper.Launch]
    update: list[gpu_paper.Launch]

    @property
    def launches(self) -> list[gpu_paper.Launch]:
        return self.passes + self.update


def step_on_paper(config: Any, B: int, T: int, dtype: str = "bfloat16") -> Step:
    """The launches of a step as the training loop takes it, once what is remembered from step to step is there."""
    tokens = np.zeros((B, T + 1), np.int64)
    inputs, targets = np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])
    with gpu_paper.on_paper() as record:
        model = tg.GPT(config).to("cupy")
        parameters = model.parameters()
        optimizer = tg.optim.AdamW(model.named_parameters(), lr=1e-4, betas=BETAS, weight_decay=DECAY)
        scale = tg.optim.ScaleOnDevice(parameters)
        for _ in range(3):
            record.launches.clear()
            with model.compute_in(dtype), keep_outputs():
                keep_rounded(model, optimizer)
                model.loss(inputs, targets).backward()
            passes = list(record.launches)
            scale.compute(1.0, 1.0)
            optimizer.step(grad_scale=scale)
            optimizer.zero_grad()
    return Step(passes, record.launches[len(passes) :])


# Costs ----------------------------------------------------------------------------------------------

# Arrays that a kernel reads and writes, by their places among those that it is given; all others move once.
BOTH_WAYS: dict[str, tuple[int, ...]] = {"add_bias": (0,), "cross_entropy_inplace": (0,)}
# Matrix products of (Tq, Tk, D) in attention.
ATTENTION_PRODUCTS = {"forward": 2, "backward_keys": 4, "backward_queries": 3}


def family(name: str) -> str:
    """The kernel without its instance: layer_norm_forward<float, 4> is layer_norm_forward."""
    return "matrix products" if name.startswith("product ") else name.partition("<")[0]


def bytes_of(launch: gpu_paper.Launch) -> float:
    """The bytes that a launch must move."""
    name, sizes = family(launch.name), [array.nbytes for array in launch.arrays]
    if name == "embedding_forward":  # weight, ids, y: only the rows that are looked up
        return sizes[1] + 2 * sizes[2]
    if name == "embedding_backward":  # dy, order, ids, dweight, parts
        return sum(sizes[:3]) + 2 * min(sizes[3], sizes[0]) + sizes[4]
    if name == "embedding_add_parts":  # ids, parts, dweight
        return sum(sizes[:2])
    if name == "adamw_update":  # behind tables: p, g, m, v, all read, and g is not written; p in 16 bits, written
        by_size = {
            size: sum(s for s, a in zip(sizes, launch.arrays, strict=True) if a.itemsize == size) for size in (2, 4)
        }
        return by_size[4] * 7 / 4 + by_size[2]
    return sum(sizes) + sum(sizes[i] for i in BOTH_WAYS.get(name, ()))


def operations_of(launch: gpu_paper.Launch) -> float:
    """Floating-point operations of matrix products; attention's without the masked half."""
    name = family(launch.name).removesuffix("_mma")
    kind = name.removeprefix("attention_")
    if kind == name or kind not in ATTENTION_PRODUCTS:
        return launch.operations
    (B, H, Tq, D), Tk = launch.arrays[0].shape, launch.arrays[1].shape[2]
    return ATTENTION_PRODUCTS[kind] * 2.0 * B * H * Tq * (Tk + 1) / 2 * D


def seconds_of(launch: gpu_paper.Launch, gpu: Gpu) -> float:
    """The time that it should take."""
    operations, is_product = operations_of(launch), launch.kind == "product"
    in_16_bits = launch.arrays[0].itemsize == 2 and (is_product or "_mma<" in launch.name)
    peak = gpu.tensor if in_16_bits else gpu.float32
    computing = operations / ((PRODUCT if is_product else ATTENTION) * peak)
    return FLOOR + max(bytes_of(launch) / (MEMORY * gpu.bandwidth), computing)


@dataclass
class Row:
    """All launches of one kernel, and what was measured of them."""

    name: str
    count: int = 0
    bytes: float = 0.0
    operations: float = 0.0
    seconds: float = 0.0
    measured: float | None = None  # seconds
    measured_count: float = 0.0


def rows_of(launches: list[gpu_paper.Launch], gpu: Gpu) -> list[Row]:
    """One row for each kernel, the slowest first."""
    rows: dict[str, Row] = {}
    for launch in launches:
        name = family(launch.name) if launch.kind in ("kernel", "product") else f"CuPy: {launch.name}"
        row = rows.setdefault(name, Row(name))
        row.count += 1
        row.bytes += bytes_of(launch)
        row.operations += operations_of(launch)
        row.seconds += seconds_of(launch, gpu)
    return sorted(rows.values(), key=lambda row: -row.seconds)


# What was measured ----------------------------------------------------------------------------------

MEASURED = re.compile(r"^ *([\d.]+) ms a step +[\d.]+% +([\d.]+) times +(.*)$")
OF_CUBLAS = re.compile(r"nvjet|cutlass|cublas|gemm|splitKreduce", re.IGNORECASE)
OF_CUPY = {"cupy_add": "add", "cupy_multiply": "mul", "cupy_fill": "fill", "memset": "fill", "cupy_take": "take",
           "cupy_sum": "sum", "cupy_cub_sum": "sum", "cub::": "argsort", "memcpy32_post": "copy",
           "Memcpy HtoD": "from the host"}  # fmt: skip


def measured_name(text: str) -> str:
    """The row that a line of the profiler belongs to."""
    name = text.removeprefix("void ").strip()
    if OF_CUBLAS.search(name) or name.startswith("Memset"):  # which cuBLAS sets to zero before it splits a sum
        return "matrix products"
    copy = re.match(r"cupy_copy__(\w+?)_(\w+)$", name)
    if copy:
        return "CuPy: copy" if copy[1] == copy[2] else f"CuPy: copy {copy[1]} to {copy[2]}"
    ours = next((f"CuPy: {word}" for start, word in OF_CUPY.items() if name.startswith(start)), None)
    return ours or re.split(r"[<(]", name)[0]


def add_measured(rows: list[Row], text: str, preset: str) -> float:
    """Fill in the first table of `preset` in `text`, add rows for what only it has; return its sum in seconds."""
    by_name, total, inside = {row.name: row for row in rows}, 0.0, False
    for line in text.splitlines():
        if re.match(r"\w+, (bfloat16|float16|float32): ", line):
            if inside:
                break
            inside = line.startswith(f"{preset},")
        found = MEASURED.match(line) if inside else None
        if found:
            name = measured_name(found[3])
            if name not in by_name:
                by_name[name] = Row(name)
                rows.append(by_name[name])
            row = by_name[name]
            row.measured = (row.measured or 0.0) + float(found[1]) / 1e3
            row.measured_count += float(found[2])
            total += float(found[1]) / 1e3
    return total


def report(step: Step, gpu: Gpu, measured: str = "", preset: str = "") -> list[str]:
    """The table as lines."""
    rows = rows_of(step.launches, gpu)
    found = add_measured(rows, measured, preset) if measured else 0.0
    head = f"{'kernel':36s} {'launches':>8s} {'MB':>9s} {'GFLOP':>9s} {'expected ms':>11s}"
    lines = [head + (f" {'measured ms':>11s} {'times':>6s} {'ratio':>6s}" if found else "")]
    for row in rows:
        line = f"{row.name[:36]:36s} {row.count:8d} {row.bytes / 1e6:9.1f} {row.operations / 1e9:9.1f}"
        line += f" {row.seconds * 1e3:11.3f}"
        if row.measured is not None:
            ratio = f"{row.measured / row.seconds:6.1f}" if row.seconds else "     -"
            line += f" {row.measured * 1e3:11.3f} {row.measured_count:6.0f} {ratio}"
        lines.append(line)
    total = sum(row.seconds for row in rows)
    moved, operations = sum(row.bytes for row in rows), sum(row.operations for row in rows)
    last = f"{'all':36s} {len(step.launches):8d} {moved / 1e6:9.1f} {operations / 1e9:9.1f} {total * 1e3:11.3f}"
    return [*lines, last + (f" {found * 1e3:11.3f} {'':6s} {found / total:6.1f}" if found else "")]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="gpt2")
    parser.add_argument("--device", choices=DEVICES, default="H200")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--batch", type=int, help="rows of a batch (default: the preset's)")
    parser.add_argument("--measured", type=Path, help="a file with a table of kernels, as the profiler wrote it")
    options = parser.parse_args(arguments)
    config, B, T = PRESETS[options.preset]
    B = options.batch or B
    step = step_on_paper(config, B, T, options.dtype)
    gpu = DEVICES[options.device]
    text = options.measured.read_text(encoding="utf-8") if options.measured else ""
    print(f"{options.preset}: B = {B}, T = {T}, {options.dtype}, on an {options.device} (data sheet)")
    print("\n".join(report(step, gpu, text, options.preset)))
    total = sum(seconds_of(launch, gpu) for launch in step.launches)
    print(
        f"{len(step.passes)} launches in the passes, {len(step.update)} for norm and update; at the expected times "
        f"{B * T / total:,.0f} tokens/s, if the GPU never waits for the host"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
