"""Launches attention.cu, or attention_mma.cu where it supports the arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....typing import Array
from .. import MAX_BLOCKS, SIZES, WARP, Device, accumulator_dtype, as_accumulators, ceil_div, launcher, real_of
from ..dropout import mask_arguments
from . import attention_mma as mma

SIDE, THREADS = 16, 256  # as in attention.cuh
HEADS = (32, 64, 128)
# (HEAD, bytes of an accumulator): (A forward, B forward, A backward), such that the tiles fit into 48 KB of shared
# memory. The kernels decline what has no entry.
TILES = {
    (32, 4): (4, 2, 2),
    (64, 4): (4, 2, 2),
    (128, 4): (2, 1, 1),
    (32, 8): (2, 1, 1),
    (64, 8): (2, 1, 1),
}
LAYOUT = np.dtype([("batch", np.int64), ("head", np.int64), ("row", np.int64)])
PROBLEM = np.dtype(
    [
        ("H", np.int32), ("Tq", np.int32), ("Tk", np.int32), ("D", np.int32), ("is_causal", np.int32),
        ("threshold", np.uint32), ("scale", np.float64), ("keep", np.float64), ("seed", np.uint64),
        ("stream", np.uint64), ("first_row", np.uint64),
    ]
)  # fmt: skip


def expressions(real: str) -> list[str]:
    """The instances of the kernels for arrays of `real`."""
    size = 8 if real == "double" else 4
    made = []
    for (head, accumulator), (a, b, backward) in TILES.items():
        if accumulator == size:
            for width in (1, 16 // SIZES[real]):
                made.append(f"attention_delta<{real}, {width}, {head}>")
                made.append(f"attention_forward<{real}, {width}, {head}, {a}, {b}>")
                made.append(f"attention_backward_keys<{real}, {width}, {head}, {backward}>")
                made.append(f"attention_backward_queries<{real}, {width}, {head}, {backward}>")
    return made


def tiles(q: Array, k: Array) -> tuple[int, int, int, int] | None:
    """(HEAD, A, B, A backward) for queries of this head size and dtype; None if the kernels do not support them."""
    if max(q.shape[2], k.shape[2]) > MAX_BLOCKS * SIDE:  # the grid has a block for every tile of a head
        return None
    head = next((head for head in HEADS if head >= q.shape[-1]), 0)
    sizes = TILES.get((head, accumulator_dtype(q).itemsize))
    return None if sizes is None else (head, *sizes)


def with_neighbours(device: Device, *arrays: Array) -> list[Array]:
    """The arrays with one common layout: copied if their strides differ or the elements of a head are not adjacent."""
    first = arrays[0]
    if all(has_neighbours(a) and a.strides[:3] == first.strides[:3] for a in arrays):
        return list(arrays)
    return [device.xp.ascontiguousarray(a) for a in arrays]


def has_neighbours(array: Array) -> bool:
    return bool(array.shape[-1] == 1 or array.strides[-1] == array.dtype.itemsize)


def layout_of(array: Array) -> Any:
    return np.array([tuple(stride // array.dtype.itemsize for stride in array.strides[:3])], LAYOUT)[0]


def problem_of(
    device: Device, q: Array, k: Array, is_causal: bool, scale: float, dropout_p: float, *key: int
) -> tuple[Any, Any]:
    """The kernels' last two arguments: the problem, and the device array with the offset of the RNG streams or None.

    key: seed, stream and first row of the dropout mask.
    """
    _, H, Tq, D = q.shape
    threshold, keep, seed, stream, base, first_row = mask_arguments(device, dropout_p, *key)
    problem = (H, Tq, k.shape[2], D, is_causal, threshold, scale, keep, seed, stream, first_row)
    return np.array([problem], PROBLEM)[0], base


def access_width(device: Device, *arrays: Array) -> int:
    """Elements per memory access: 16 bytes' worth if every row of every array is 16-byte aligned, otherwise 1."""
    width = 16 // arrays[0].dtype.itemsize
    packed = arrays[0].shape[-1] % width == 0 and all(
        device.address(a) % 16 == 0 and all(stride % 16 == 0 for stride in a.strides[:3]) for a in arrays
    )
    return width if packed else 1


@launcher
def attention_forward(
    device: Device,
    q: Array,
    k: Array,
    v: Array,
    is_causal: bool,
    scale: float,
    dropout_p: float,
    seed: int,
    stream: int,
    first_row: int = 0,
) -> Any:
    """q (B, H, Tq, D), k, v (B, H, Tk, D) -> y (B, H, Tq, D) in memory laid out (B, Tq, H, D), lse (B, H, Tq, 2)."""
    sizes = tiles(q, k)
    if sizes is None:
        return NotImplemented
    head, a, b, _ = sizes
    B, H, Tq, D = q.shape
    (q,), (k, v) = with_neighbours(device, q), with_neighbours(device, k, v)
    y = device.empty((B, Tq, H, D), q.dtype).transpose(0, 2, 1, 3)
    lse = device.empty((B, H, Tq, 2), accumulator_dtype(q))
    problem = problem_of(device, q, k, is_causal, scale, dropout_p, seed, stream, first_row)
    arguments = (q, k, v, y, lse, layout_of(q), layout_of(k), layout_of(y), *problem)
    if mma.takes(device, scale, q, k, v, y):
        mma.launch(device, "forward", q, Tq, arguments)
        return y, lse
    real, width = real_of(q), access_width(device, q, k, v, y)
    kernel = f"attention_forward<{real}, {width}, {head}, {a}, {b}>"
    device.launch("attention", kernel, real, (B * H, ceil_div(Tq, SIDE * a)), (THREADS,), arguments, 0)
    return y, lse


@launcher
def attention_backward(
    device: Device,
    dy: Array,
    q: Array,
    k: Array,
    v: Array,
    y: Array,
    lse: Array,
    is_causal: bool,
    scale: float,
    dropout_p: float,
    seed: int,
    stream: int,
    dq: Array,
    dk: Array,
    dv: Array,
    first_row: int = 0,
) -> Any:
    """Writes the gradients of q, k, v into dq, dk, dv."""
    sizes = tiles(q, k)
    if sizes is None:
        return NotImplemented
    head, _, _, a = sizes
    (B, H, Tq, _), real = q.shape, real_of(q)
    (lse,) = as_accumulators(q, lse)
    lse = device.xp.ascontiguousarray(lse)
    (q,), (k, v), (dy, y) = with_neighbours(device, q), with_neighbours(device, k, v), with_neighbours(device, dy, y)
    results = [results_in(device, dq), results_in(device, dk), results_in(device, dv)]
    if results[1].strides != results[2].strides:
        results[1:] = [device.empty(dk.shape, dk.dtype), device.empty(dv.shape, dv.dtype)]
    delta = attention_delta(device, head, dy, y)
    problem = problem_of(device, q, k, is_causal, scale, dropout_p, seed, stream, first_row)
    inputs = (dy, q, k, v, lse, delta)
    layouts = (layout_of(dy), layout_of(q), layout_of(k))
    for_keys = (*inputs, *results[1:], *layouts, layout_of(results[1]), *problem)
    for_queries = (*inputs, results[0], *layouts, layout_of(results[0]), *problem)
    if mma.takes(device, scale, dy, q, k, v, *results):
        mma.launch(device, "backward_keys", k, k.shape[2], for_keys)
        mma.launch(device, "backward_queries", q, Tq, for_queries)
    else:
        width = access_width(device, dy, q, k, v, *results)
        for name, T, given in (("keys", k.shape[2], for_keys), ("queries", Tq, for_queries)):
            kernel = f"attention_backward_{name}<{real}, {width}, {head}, {a}>"
            device.launch("attention", kernel, real, (B * H, ceil_div(T, SIDE * a)), (THREADS,), given, 0)
    for wanted, got in zip((dq, dk, dv), results, strict=True):
        if got is not wanted:
            wanted[...] = got
    return None


def attention_delta(device: Device, head: int, dy: Array, y: Array) -> Array:
    """(B, H, Tq): for each query the dot product of dy and y, which share a layout. head: of HEADS, at least D."""
    (B, H, Tq, D), real = y.shape, real_of(y)
    rows = B * H * Tq
    delta = device.empty((B, H, Tq), accumulator_dtype(y))
    arguments = (dy, y, delta, layout_of(y), H, Tq, D, np.int64(rows))
    width = access_width(device, dy, y)
    grid = (ceil_div(rows * min(WARP, head // width), THREADS),)
    device.launch("attention", f"attention_delta<{real}, {width}, {head}>", real, grid, (THREADS,), arguments, 0)
    return delta


def results_in(device: Device, array: Array) -> Array:
    """The array itself if a kernel can write into it, otherwise a new one of its shape."""
    return array if has_neighbours(array) else device.empty(array.shape, array.dtype)
