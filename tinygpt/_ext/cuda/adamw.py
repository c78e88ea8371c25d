"""Launches adamw.cu. Also builds the table of arrays for one launch over many, which clip.cu uses too."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...typing import Array
from . import REALS, SIZES, Device, ceil_div, launcher, pack_width, real_of

THREADS, PACKS = 256, 4  # threads per block; packs per thread, as in tensors.cuh


def expressions(real: str) -> list[str]:
    """The instances for parameters of `real`: for float also those that round them to 16 bits."""
    small = ("float", "float16", "bfloat16") if real == "float" else (real,)
    return [f"adamw_update<{real}, {kind}, {width}>" for kind in small for width in (1, 16 // SIZES[real])]


def tensor_table(device: Device, groups: Sequence[Sequence[Any]]) -> tuple[Array, int, int]:
    """(table on the device, pack width, blocks) for groups of arrays; the arrays of a group have the same size.

    A row of the table is a `Tensor` of tensors.cuh: five addresses (0 for None), the size, the index of the first
    block. In training it is the same at every step.
    """
    everything = [array for group in groups for array in group if array is not None]
    width = pack_width(device, 0, *everything)
    addresses, sizes = device.pointers(everything), [group[0].size for group in groups]
    starts = [0, *itertools.accumulate(ceil_div(size, width * THREADS * PACKS) for size in sizes)]

    def made() -> np.ndarray:
        table, each = np.zeros((len(groups), 7), np.int64), iter(addresses)
        for row, group, size, start in zip(table, groups, sizes, starts, strict=False):
            row[: len(group)] = [0 if array is None else next(each) for array in group]
            row[5], row[6] = size, start
        return table

    there = tuple([array is not None for group in groups for array in group])
    return device.table((width, len(groups), there, *addresses, *sizes), made), width, starts[-1]


def rates_of(calls: Sequence[Sequence[Any]]) -> list[tuple[float, float, float]]:
    """adamw.cu's `Rates` for each call: the factor of the decay, the step size, the correction of v."""
    return [
        (1 - lr * weight_decay, lr / (1 - beta1**step), 1 / (1 - beta2**step))
        for _, _, _, _, lr, beta1, beta2, _, weight_decay, step, *_ in calls
    ]


@launcher
def adamw_update_each(device: Device, calls: Sequence[Sequence[Any]]) -> Any:
    """Update many parameters in one launch; calls: the arguments of adamw_update for each of them."""
    calls = [(*call, None) if len(call) == 11 else call for call in calls]
    shared = {(call[5], call[6], call[7], call[10]) for call in calls}
    small = {call[11].dtype for call in calls if call[11] is not None}
    if len(small) > 1 or (small and calls[0][0].dtype != np.float32):
        return NotImplemented
    if len(shared) != 1 or len({array.dtype for call in calls for array in call[:4]}) != 1:
        return NotImplemented
    ((beta1, beta2, eps, grad_scale),) = shared
    rates = getattr(grad_scale, "rates", None)  # of a ScaleOnDevice (tinygpt/optim/clip.py)
    if rates is None or len(rates) != len(calls):
        rates = device.xp.asarray(np.array(rates_of(calls), np.float64))
    table, width, blocks = tensor_table(device, [(*call[:4], call[11]) for call in calls])
    real = real_of(calls[0][0])
    kind = REALS[small.pop().name] if small else real
    state = getattr(grad_scale, "on_device", None)
    arguments = (
        table, rates, len(calls),
        float(beta1), float(beta2), float(eps), 0.0 if state is not None else float(grad_scale), state,
    )  # fmt: skip
    device.launch("adamw", f"adamw_update<{real}, {kind}, {width}>", real, (blocks,), (THREADS,), arguments, 0)
    return [None] * len(calls)


@launcher
def adamw_update(device: Device, *arguments: Any) -> Any:
    """Update one parameter: see tinygpt.optim.adamw."""
    done = adamw_update_each(device, [arguments])
    return done if done is NotImplemented else None
