"""Counter-based random numbers: Philox4x32-10.

A counter-based generator is a pure function `(key, counter) -> random words`. Any word can be computed
directly, at the same cost, by any thread or device. So a dropout mask is the same on one thread or
sixteen, in NumPy, Cython or CUDA, and a training run can be resumed bit for bit, because the whole state
of a `Generator` is two integers.

    words(seed, stream, rows, columns)

The counter of the word at `(row, column)` of stream `stream` is

    c0 = column // 4        c1 = row        c2, c3 = low and high 32 bits of stream

and Philox yields four words per counter, so column `j` is word `j % 4` of counter `j // 4`. The key is
the 64-bit seed. Every implementation of dropout, in every language, uses this layout.

Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011,
section 3.3 and table 2 (multipliers, Weyl constants, ten rounds).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .cores import default_num_threads
from .errors import UsageError
from .seams import implementation
from .typing import DTypeLike

MULTIPLIER_0 = 0xD2511F53
MULTIPLIER_1 = 0xCD9E8D57
WEYL_0 = 0x9E3779B9
WEYL_1 = 0xBB67AE85
ROUNDS = 10
_MASK32 = 0xFFFFFFFF
_MASK64 = 0xFFFFFFFFFFFFFFFF
_BLOCK_ROWS = 64  # rows of 1024 words drawn at a time
_SOME, _MANY = 1 << 16, 1 << 20  # numbers that are worth the compiled extension, and several threads


def philox4x32(c0: Any, c1: Any, c2: Any, c3: Any, seed: int, xp: Any = np) -> tuple[Any, ...]:
    """Run ten Philox rounds on arrays of 32-bit counters (stored as uint64). Returns four arrays of words.

    The arguments broadcast against one another. `xp` is the array module (numpy or cupy).
    """
    mask, shift = xp.uint64(_MASK32), xp.uint64(32)
    m0, m1 = xp.uint64(MULTIPLIER_0), xp.uint64(MULTIPLIER_1)
    k0, k1 = seed & _MASK32, (seed >> 32) & _MASK32
    for _ in range(ROUNDS):
        p0, p1 = c0 * m0, c2 * m1  # 32 x 32 -> 64 bits: never overflows
        c0, c1, c2, c3 = (
            (p1 >> shift) ^ c1 ^ xp.uint64(k0),
            p1 & mask,
            (p0 >> shift) ^ c3 ^ xp.uint64(k1),
            p0 & mask,
        )
        k0, k1 = (k0 + WEYL_0) & _MASK32, (k1 + WEYL_1) & _MASK32
    return c0, c1, c2, c3


def words(seed: int, stream: int, rows: int, columns: int, xp: Any = np, first_row: int = 0) -> Any:
    """Random words of `rows` rows starting at `first_row`: uint32, shape `(rows, columns)`."""
    quads = -(-columns // 4)
    c0 = xp.arange(quads, dtype=xp.uint64)[None, :]
    c1 = xp.arange(first_row, first_row + rows, dtype=xp.uint64)[:, None]
    zero = xp.zeros((rows, quads), dtype=xp.uint64)
    c2 = zero + xp.uint64(stream & _MASK32)
    c3 = zero + xp.uint64((stream >> 32) & _MASK32)
    out = xp.empty((rows, quads, 4), dtype=xp.uint32)
    for i, word in enumerate(philox4x32(c0 + zero, c1 + zero, c2, c3, seed, xp)):
        out[:, :, i] = word
    return out.reshape(rows, quads * 4)[:, :columns]


class RngStream(int):
    """The number of a taken stream: in each run, a plan (`backends/numpy_plan.py`) counts on from it."""


def fill_uniform(out: np.ndarray, seed: int, stream: int, first_row: int) -> None:
    """Fill out (N,): number i is made of words 2i and 2i + 1, counted in rows of 1024 words from `first_row` on."""
    rows = -(-out.size // 512)
    block = words(seed, stream, rows, min(1024, 2 * out.size), first_row=first_row)
    pairs = block.reshape(-1)[: 2 * out.size].astype(np.uint64)
    bits = (pairs[0::2] << np.uint64(32)) | pairs[1::2]
    np.multiply(bits >> np.uint64(11), 2.0**-53, out=out)


class Generator:
    """A random generator whose whole state is two integers: the seed and the number of the next unused stream.

    Each method that draws values uses exactly one stream, however many values it draws, so the state after a
    step does not depend on shapes, threads or backends.

    rows_before: rows of the batch that come before those at hand, if several processes share a batch. Dropout masks are
    indexed by the row in the whole batch, so they do not depend on how it is shared.
    """

    rows_before = 0

    def __init__(self, seed: int = 0, stream: int = 0) -> None:
        if not isinstance(seed, (int, np.integer)) or not 0 <= int(seed) <= _MASK64:
            raise UsageError(f"a seed is an integer from 0 to 2**64 - 1, not {seed!r}")
        self.seed = int(seed)
        if not isinstance(stream, (int, np.integer)) or not 0 <= int(stream) <= _MASK64:
            raise UsageError(f"a stream is an integer from 0 to 2**64 - 1, not {stream!r}")
        self.stream = int(stream)

    def __repr__(self) -> str:
        return f"Generator(seed={self.seed}, stream={self.stream})"

    def next_key(self) -> tuple[int, int]:
        """Take the next unused stream: `(seed, stream)`, for operations that draw on their own device."""
        key = (self.seed, RngStream(self.stream))
        self.stream += 1
        return key

    def state_dict(self) -> dict[str, int]:
        return {"seed": self.seed, "stream": self.stream}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.__init__(state["seed"], state["stream"])  # type: ignore[misc]

    def _draw(self, count: int, take: Callable[[int, np.ndarray], None]) -> None:
        """Call `take(start, values)` for `count` uniform numbers, in blocks that may come in any order.

        A block fits in the CPU cache, and initializing a large model needs no temporary arrays of several times its
        size. Number i is made from words 2i and 2i + 1, counted in rows of 1024, so all cores can make blocks at once
        without changing the numbers. The compiled body gives the same numbers.
        """
        seed, stream = self.next_key()
        step = _BLOCK_ROWS * 512
        fill = (implementation("uniform_body")() if count >= _SOME else None) or fill_uniform

        def block_from(start: int) -> None:
            block = np.empty(min(step, count - start))
            fill(block, seed, stream, start // 512)
            take(start, block)

        starts = range(0, count, step)
        threads = min(default_num_threads(), len(starts)) if count >= _MANY else 1
        if threads <= 1:
            for start in starts:
                block_from(start)
            return
        from concurrent.futures import ThreadPoolExecutor  # importing it can take as long as initializing a small model

        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(block_from, starts):
                pass

    def uniform(self, shape: int | tuple[int, ...] = ()) -> np.ndarray:
        """float64 in [0, 1) with 53 random bits."""
        out = np.empty(math.prod(shape) if isinstance(shape, tuple) else shape)

        def take(start: int, u: np.ndarray) -> None:
            out[start : start + u.size] = u

        self._draw(out.size, take)
        return out.reshape(shape)

    def normal(self, shape: int | tuple[int, ...], std: float = 1.0, dtype: DTypeLike = np.float64) -> np.ndarray:
        """Samples of N(0, std**2), by the Box-Muller transform in float64, then rounded to `dtype`."""
        count = math.prod(shape) if isinstance(shape, tuple) else shape
        out = np.empty(count + count % 2, dtype)

        def take(start: int, u: np.ndarray) -> None:
            radius = std * np.sqrt(-2.0 * np.log1p(-u[0::2]))  # 1 - u is in (0, 1]: the log is finite
            angle = 2.0 * np.pi * u[1::2]
            out[start : start + u.size : 2] = radius * np.cos(angle)
            out[start + 1 : start + u.size : 2] = radius * np.sin(angle)

        self._draw(out.size, take)
        return out[:count].reshape(shape)

    def integers(self, high: int, shape: int | tuple[int, ...] = ()) -> np.ndarray:
        """int64, uniform on 0 .. high - 1 (high at most 2**53; the bias is below high / 2**53)."""
        if high < 1:
            raise UsageError(f"integers(high) needs high >= 1, not {high}")
        return (self.uniform(shape) * high).astype(np.int64)


default_generator = Generator(0)


def manual_seed(seed: int) -> None:
    """Reseed the default generator, which dropout outside a model and sampling without a seed use."""
    default_generator.load_state_dict({"seed": Generator(seed).seed, "stream": 0})
