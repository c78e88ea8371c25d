"""Launches adamw.cu. Also builds the table of arrays for one launch over many, which clip.cu uses too."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...typing import Array
from . import Device, ceil_div, launcher, pack_width, real_of

EXPRESSIONS = ("adamw_update<{real}, {width}>",)
THREADS, PACKS = 256, 4  # threads per block; packs per thread, as in tensors.cuh


def tensor_table(device: Device, groups: Sequence[Sequence[Any]]) -> tuple[Array, int, int]:
    """(table on the device, pack width, blocks) for groups of arrays; the arrays of a group have the same size.

    A row of the table is a `Tensor` of tensors.cuh: four addresses, the size, the index of the first block. In training
    it is the same at every step.
    """
    everything = [array for group in groups for array in group]
    width = pack_width(device, 0, *everything)
    addresses, sizes = device.pointers(everything), [group[0].size for group in groups]
    starts = [0, *itertools.accumulate(ceil_div(size, width * THREADS * PACKS) for size in sizes)]

    def made() -> np.ndarray:
        table, each = np.zeros((len(groups), 6), np.int64), iter(addresses)
        for row, group, size, start in zip(table, groups, sizes, starts, strict=False):
            row[: len(group)] = [next(each) for _ in group]
            row[4], row[5] = size, start
        return table

    return device.table((width, len(groups[0]), *addresses, *sizes), made), width, starts[-1]


@launcher
def adamw_update_each(device: Device, calls: Sequence[Sequence[Any]]) -> Any:
    """Update many parameters in one launch; calls: the arguments of adamw_update for each of them."""
    shared = {(call[5], call[6], call[7], call[10]) for call in calls}
    if len(shared) != 1 or len({array.dtype for call in calls for array in call[:4]}) != 1:
        return NotImplemented
    ((beta1, beta2, eps, grad_scale),) = shared
    rates = [
        (1 - lr * weight_decay, lr / (1 - beta1**step), 1 / (1 - beta2**step))
        for _, _, _, _, lr, beta1, beta2, _, weight_decay, step, _ in calls
    ]
    table, width, blocks = tensor_table(device, [call[:4] for call in calls])
    real = real_of(calls[0][0])
    state = getattr(grad_scale, "on_device", None)  # of a ScaleOnDevice (tinygpt/optim/clip.py)
    arguments = (
        table, device.xp.asarray(np.array(rates, np.float64)), len(calls),
        float(beta1), float(beta2), float(eps), 0.0 if state is not None else float(grad_scale), state,
    )  # fmt: skip
    device.launch("adamw", f"adamw_update<{real}, {width}>", real, (blocks,), (THREADS,), arguments, 0)
    return [None] * len(calls)


@launcher
def adamw_update(device: Device, *arguments: Any) -> Any:
    """Update one parameter: see tinygpt.optim.adamw."""
    done = adamw_update_each(device, [arguments])
    return done if done is NotImplemented else None
