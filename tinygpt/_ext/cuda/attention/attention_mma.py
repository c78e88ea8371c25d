"""Launches attention_mma.cu: attention in 16 bits on the tensor cores, for the launchers of attention.cu."""

from __future__ import annotations

from typing import Any

from ....typing import Array
from .. import MAX_BLOCKS, Device, ceil_div, real_of

THREADS, ROWS = 128, 64  # threads and result rows of a block
HEADS = (32, 64, 128)


def expressions(real: str) -> list[str]:
    """The instances of the kernels for arrays of `real`: empty unless `real` is a 16-bit type."""
    if real not in ("float16", "bfloat16"):
        return []
    return [
        f"attention_{name}_mma<{real}, {head}>"
        for head in HEADS
        for name in ("forward", "backward_keys", "backward_queries")
    ]


def takes(device: Device, scale: float, *arrays: Array) -> bool:
    """Whether these kernels can replace attention.cu's, for arrays (B, H, T, D) with a stride of 1 along D."""
    D = arrays[0].shape[-1]
    return (
        device.has_tensor_cores
        and arrays[0].dtype.itemsize == 2
        and D % 8 == 0
        and 0 < D <= max(HEADS)
        and scale > 0
        and max(a.shape[2] for a in arrays) <= MAX_BLOCKS * ROWS  # the grid has a block for every tile of a head
        and all(device.address(a) % 16 == 0 and all(stride % 16 == 0 for stride in a.strides[:3]) for a in arrays)
    )


def launch(device: Device, name: str, like: Array, T: int, arguments: Any) -> None:
    """Launch the kernel of this name, with one block per 64 of the T rows of every head of `like`."""
    B, H, _, D = like.shape
    head = next(head for head in HEADS if head >= D)
    real = real_of(like)
    kernel = f"attention_{name}_mma<{real}, {head}>"
    device.launch("attention_mma", kernel, real, (B * H, ceil_div(T, ROWS)), (THREADS,), arguments, 0)
