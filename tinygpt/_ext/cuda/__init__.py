"""The CUDA kernels: their sources, and how they are launched.

Each `name.cu` has a `name.py` next to it, which lists the template instances to compile (`EXPRESSIONS`) and defines the
launchers: functions named like the kernels in `tinygpt.ops`, with the same arguments after a first argument `device`.
A launcher allocates the results, chooses the grid, the block and the pack width, and launches. The files in this folder
and in those below it are found automatically, by their names, which are unique.

`device` runs the kernels. For CuPy it is `tinygpt.backends.cupy_kernels.Device`; the tests have one that runs the same
launchers and the same `.cu` files on the CPU. So nothing here knows about CuPy.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

FOLDER = Path(__file__).parent
PATHS = {path.stem: path for path in sorted(FOLDER.rglob("*.cu"), key=lambda path: path.stem)}
FILES = tuple(PATHS)
REALS = {"float32": "float", "float64": "double", "float16": "float16", "bfloat16": "bfloat16"}
SIZES = {"float": 4, "double": 8, "float16": 2, "bfloat16": 2}
ACCUMULATORS = {"float": "float", "double": "double", "float16": "float", "bfloat16": "float"}
ARCHITECTURES = ("sm_75", "sm_80", "sm_90")  # the oldest supported, then the ones tuned for; newer ones work as well
WARP = 32
MAX_THREADS = 512  # as in common.cuh
ELEMENTWISE_THREADS = 256
MAX_BLOCKS = 65535  # limit of a grid's second and third dimension
MAX_SHARED = 48 * 1024  # bytes of shared memory per block that every GPU allows without opting in
FOR_REDUCTIONS = 1024  # bytes of them, which block_sum of common.cuh and block_max of softmax.cuh need

# Launcher parameters that may have the accumulators' dtype: the results that `@kernel(statistics=...)` names, and their
# gradients. `@kernel` fills this set.
STATISTICS: set[str] = set()

LAUNCHERS: dict[str, Callable[..., Any]] = {}


class Device(Protocol):
    """What a launcher needs from the array library."""

    xp: Any
    # Offset of the RNG streams: the host value, and the device array that a replayed CUDA graph reads it from.
    # (0, None): no offset.
    rng_stream_base: tuple[int, Any]

    @property
    def has_tensor_cores(self) -> bool:
        """Whether it supports the 16-bit mma instructions of attention_mma.cu (compute capability 8.0 and newer)."""

    def empty(self, shape: Any, dtype: Any) -> Any:
        """A new, uninitialised array."""

    def address(self, array: Any) -> int:
        """The address of the first element."""

    def pointers(self, arrays: Sequence[Any]) -> list[int]:
        """The arrays' addresses, for a table that is passed to the next launch."""

    def table(self, key: Hashable, made: Callable[[], np.ndarray]) -> Any:
        """What `made` returns, on the device. It depends on `key` alone, so it may be kept for the next call."""

    def matmul(self, a: Any, b: Any) -> Any:
        """a (M, K) @ b (K, N), both float32 or float64."""

    def launch(
        self, file: str, kernel: str, real: str, grid: Sequence[int], block: Sequence[int], arguments: Any, shared: int
    ) -> None:
        """Launch a kernel instance of `file`.cu, such as "layer_norm_forward<float, 4>".

        shared: bytes of dynamic shared memory.
        """


def launcher(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: registers `function(device, ...)` as the launcher of the kernel of the same name."""
    LAUNCHERS[function.__name__] = function
    return function


@functools.cache
def module(file: str) -> Any:
    """The Python module with the launchers of `file`.cu."""
    parts = PATHS[file].relative_to(FOLDER).with_suffix("").parts
    return importlib.import_module(".".join([__name__, *parts]))


def launched_by(file: str) -> list[str]:
    """The names of the kernels that `file`.cu implements."""
    name = module(file).__name__
    return [kernel for kernel, launch in LAUNCHERS.items() if launch.__module__ == name]


def find(kernel: str) -> Callable[..., Any] | None:
    """The launcher of a kernel, or None if the kernel has no CUDA body."""
    for file in FILES:
        module(file)
    return LAUNCHERS.get(kernel)


# Sources ------------------------------------------------------------------------------------------


@functools.cache
def source(file: str) -> str:
    """The text of `file`.cu with its includes expanded, because CuPy's cache identifies a kernel by its text."""
    included: set[Path] = set()

    def expanded(path: Path) -> list[str]:
        lines = [f'#line 1 "{path.name}"']
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not line.startswith('#include "'):
                lines.append(line)
                continue
            inner = (path.parent / line.split('"')[1]).resolve()
            if inner not in included:
                included.add(inner)
                lines += [*expanded(inner), f'#line {number + 1} "{path.name}"']
        return lines

    return "\n".join(expanded(PATHS[file])) + "\n"


@functools.cache
def expressions(file: str, real: str) -> tuple[str, ...]:
    """The instances of `file`.cu for arrays of `real`, for every pack width."""
    if hasattr(module(file), "expressions"):
        return tuple(module(file).expressions(real))
    accum = ACCUMULATORS[real]
    made = [
        template.format(
            real=real, accum=accum, width=16 // SIZES[real] if packed else 1, wide=16 // SIZES[accum] if packed else 1
        )
        for template in module(file).EXPRESSIONS
        for packed in (False, True)
    ]
    return tuple(dict.fromkeys(made))


# Helpers shared by the launchers ------------------------------------------------------------------


def real_of(array: Any) -> str:
    """The CUDA type of an array's elements."""
    return REALS[array.dtype.name]


def accumulator_dtype(array: Any) -> Any:
    """The dtype in which an array's elements are summed."""
    return np.dtype(np.float64 if array.dtype == np.float64 else np.float32)


def as_accumulators(like: Any, *arrays: Any) -> list[Any]:
    """Row statistics (such as the mean) converted to the accumulators' dtype, in which the kernels expect them."""
    dtype = accumulator_dtype(like)
    return [array.astype(dtype, copy=False) for array in arrays]


def pack_width(device: Device, C: int, *arrays: Any) -> int:
    """Elements per memory access: 16 bytes' worth if every row of C elements is 16-byte aligned, otherwise 1."""
    width = 16 // arrays[0].dtype.itemsize
    packed = C % width == 0 and all(device.address(a) % 16 == 0 for a in arrays if a is not None)
    return width if packed else 1


def row_threads(C: int, width: int) -> int:
    """Threads per block for rows of C elements: one per pack, rounded up to whole warps."""
    return min(MAX_THREADS, ceil_div(ceil_div(C, width), WARP) * WARP)


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def elementwise(device: Device, file: str, kernel: str, *inputs: Any) -> Any:
    """Launch an elementwise kernel on inputs of one shape and dtype, and return the result.

    kernel: as in the file's EXPRESSIONS, with placeholders {real} and {width}.
    """
    x = inputs[0]
    if any(array.dtype != x.dtype or array.shape != x.shape for array in inputs):
        return NotImplemented
    result = device.empty(x.shape, x.dtype)
    width = pack_width(device, 0, *inputs, result)  # C = 0: there are no rows to align
    blocks = ceil_div(ceil_div(x.size, width), ELEMENTWISE_THREADS)
    name = kernel.format(real=real_of(x), width=width)
    arguments = (*inputs, result, np.int64(x.size))
    device.launch(file, name, real_of(x), (blocks,), (ELEMENTWISE_THREADS,), arguments, 0)
    return result


def kernel_arguments(arguments: Sequence[Any]) -> list[Any]:
    """Convert arguments for a kernel: int -> `int`, float -> `double`, None -> null pointer; arrays stay as they are.

    A NumPy scalar is passed by value, so its dtype must match the kernel's parameter; a structured dtype is a struct.
    """
    made: list[Any] = []
    for value in arguments:
        if value is None:
            made.append(np.uintp(0))
        elif isinstance(value, int):  # bool included
            made.append(np.int32(value))
        elif isinstance(value, float):
            made.append(np.float64(value))
        else:
            made.append(value)
    return made


def fits(names: Sequence[str], arguments: Sequence[Any]) -> bool:
    """Whether the kernels support arrays of these sizes and dtypes.

    Row and column indices are 32-bit and may overshoot by one step of a block; offsets into an array are 64-bit.
    Floating-point arrays share one dtype, except statistics, which may have the accumulators'.
    """
    given = zip(names, arguments, strict=False)
    arrays = [(name, a) for name, a in given if hasattr(a, "shape") and not isinstance(a, np.dtype)]  # it has one, too
    sizes = [size for _, a in arrays for size in a.shape]
    floats = {a.dtype.name for name, a in arrays if name not in STATISTICS} & set(REALS)
    allowed = floats | ({"float32"} if floats <= {"float16", "bfloat16"} else set())
    statistics = {a.dtype.name for name, a in arrays if name in STATISTICS}
    return max(sizes, default=0) < 2**30 and len(floats) <= 1 and statistics <= allowed


def body(device: Device, kernel: str) -> Callable[..., Any] | None:
    """The CUDA body of a kernel on a device, called like the reference; None if there is none."""
    launch = find(kernel)
    if launch is None:
        return None

    names = list(inspect.signature(launch).parameters)[1:]

    @functools.wraps(launch)
    def call(*arguments: Any) -> Any:
        return launch(device, *arguments) if fits(names, arguments) else NotImplemented

    return call


def size_of(shape: Any) -> int:
    return math.prod(shape)
