"""The CUDA kernels: their sources, and how they are launched.

For each `name.cu` there is a `name.py` beside it. It says which instances of the templates in `name.cu` there are
(`EXPRESSIONS`), and defines launchers: functions with the names and arguments of the kernels in `tinygpt.ops`, after a
first argument `device`. A launcher makes the result arrays, chooses grid, block and pack width, and launches. There is
no list of the files: what lies in this folder is found.

`device` is what runs them. For CuPy it is `tinygpt.backends.cupy_kernels.Device`; the tests have another one, which
runs the same launchers and the same `.cu` files on the CPU. So nothing here knows about CuPy.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

FOLDER = Path(__file__).parent
FILES = tuple(sorted(path.stem for path in FOLDER.glob("*.cu")))
REALS = {"float32": "float", "float64": "double", "float16": "float16", "bfloat16": "bfloat16"}
SIZES = {"float": 4, "double": 8, "float16": 2, "bfloat16": 2}
ACCUMULATORS = {"float": "float", "double": "double", "float16": "float", "bfloat16": "float"}
ARCHITECTURES = ("sm_75", "sm_80", "sm_90")  # the oldest that is supported, and those tuned for; newer ones run as well
WARP = 32
MOST_THREADS = 512  # as in common.cuh
ELEMENTWISE_THREADS = 256
MOST_BLOCKS = 65535  # of a grid along its second and third axis
MOST_SHARED = 48 * 1024  # bytes of shared memory that a block may have on every GPU without asking

# Parameters of launchers that may be kept in the accumulators' dtype: results that `@kernel(statistics=...)` names, and
# their gradients. It fills this.
STATISTICS: set[str] = set()

LAUNCHERS: dict[str, Callable[..., Any]] = {}


class Device(Protocol):
    """What a launcher needs of the library that its arrays belong to."""

    xp: Any
    # Offset of the RNG streams: the host value, and the device array that a replayed CUDA graph reads it from.
    # (0, None): no offset.
    rng_stream_base: tuple[int, Any]

    @property
    def has_tensor_cores(self) -> bool:
        """That multiply 16-bit matrices as attention_mma.cu asks for it: compute capability 8.0 and newer."""

    def empty(self, shape: Any, dtype: Any) -> Any:
        """A new array whose elements may be anything."""

    def address(self, array: Any) -> int:
        """Where the first element lies."""

    def pointers(self, arrays: Sequence[Any]) -> list[int]:
        """Their addresses, for a table that the next launch is given."""

    def launch(
        self, file: str, kernel: str, real: str, grid: Sequence[int], block: Sequence[int], arguments: Any, shared: int
    ) -> None:
        """Run an instance of a kernel of `file`.cu, e.g. "layer_norm_forward<float, 4>", with `shared` bytes."""


def launcher(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: `function(device, ...)` launches the kernel of its name."""
    LAUNCHERS[function.__name__] = function
    return function


@functools.cache
def module(file: str) -> Any:
    """The launchers of `file`.cu."""
    return importlib.import_module(f"{__name__}.{file}")


def launched_by(file: str) -> list[str]:
    """The names of the kernels that `file`.cu is a body of."""
    name = module(file).__name__
    return [kernel for kernel, launch in LAUNCHERS.items() if launch.__module__ == name]


def find(kernel: str) -> Callable[..., Any] | None:
    """The launcher of a kernel, or None where there is no CUDA body of that name."""
    for file in FILES:
        module(file)
    return LAUNCHERS.get(kernel)


# Sources ------------------------------------------------------------------------------------------


@functools.cache
def source(file: str) -> str:
    """The text of `file`.cu, what it includes put in its place: CuPy's cache knows a kernel by its text."""
    included: set[str] = set()

    def expanded(name: str) -> list[str]:
        lines = [f'#line 1 "{name}"']
        text = (FOLDER / name).read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), 1):
            if not line.startswith('#include "'):
                lines.append(line)
                continue
            inner = line.split('"')[1]
            if inner not in included:
                included.add(inner)
                lines += [*expanded(inner), f'#line {number + 1} "{name}"']
        return lines

    return "\n".join(expanded(f"{file}.cu")) + "\n"


@functools.cache
def expressions(file: str, real: str) -> tuple[str, ...]:
    """The instances of `file`.cu for arrays of `real`, of every pack width."""
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


# Choices that many launchers make -----------------------------------------------------------------


def real_of(array: Any) -> str:
    """The CUDA type of an array's elements."""
    return REALS[array.dtype.name]


def accumulator_dtype(array: Any) -> Any:
    """The dtype in which sums of an array's elements are kept."""
    return np.dtype(np.float64 if array.dtype == np.float64 else np.float32)


def as_accumulators(like: Any, *arrays: Any) -> list[Any]:
    """Statistics of rows (a mean, a logarithm of a sum), which kernels keep in the accumulators' dtype."""
    dtype = accumulator_dtype(like)
    return [array.astype(dtype, copy=False) for array in arrays]


def pack_width(device: Device, C: int, *arrays: Any) -> int:
    """How many neighbours move in one access: 16 bytes of them where all rows of C begin at multiples of 16 bytes."""
    width = 16 // arrays[0].dtype.itemsize
    packed = C % width == 0 and all(device.address(a) % 16 == 0 for a in arrays if a is not None)
    return width if packed else 1


def row_threads(C: int, width: int) -> int:
    """Threads of a block that works on rows of C: one for each pack, in whole warps."""
    return min(MOST_THREADS, ceil_div(ceil_div(C, width), WARP) * WARP)


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def elementwise(device: Device, file: str, kernel: str, *inputs: Any) -> Any:
    """The result of a kernel that computes each element of its result from the same element of its inputs.

    kernel: as in the file's EXPRESSIONS, with places for {real} and {width}.
    """
    x = inputs[0]
    if any(array.dtype != x.dtype or array.shape != x.shape for array in inputs):
        return NotImplemented
    result = device.empty(x.shape, x.dtype)
    width = pack_width(device, 0, *inputs, result)  # rows do not matter
    blocks = ceil_div(ceil_div(x.size, width), ELEMENTWISE_THREADS)
    name = kernel.format(real=real_of(x), width=width)
    arguments = (*inputs, result, np.int64(x.size))
    device.launch(file, name, real_of(x), (blocks,), (ELEMENTWISE_THREADS,), arguments, 0)
    return result


def kernel_arguments(arguments: Sequence[Any]) -> list[Any]:
    """Arrays as they are; an int is an `int` to the kernel, a float a `double`, None a null pointer.

    A NumPy scalar is passed by value, as the very type that the kernel declares; one of a structured dtype is a struct.
    """
    made: list[Any] = []
    for value in arguments:
        if value is None:
            made.append(np.uintp(0))
        elif isinstance(value, int):  # a bool is one, too
            made.append(np.int32(value))
        elif isinstance(value, float):
            made.append(np.float64(value))
        else:
            made.append(value)
    return made


def fits(names: Sequence[str], arguments: Sequence[Any]) -> bool:
    """Whether the kernels can take arrays of these sizes and dtypes.

    Rows and columns are counted in 32 bits, a step of a block beyond them included; within an array the kernels count
    in 64. Floating-point arrays are of one dtype, but for statistics, which may be of the accumulators'.
    """
    arrays = [(name, a) for name, a in zip(names, arguments, strict=False) if hasattr(a, "shape")]
    sizes = [size for _, a in arrays for size in a.shape]
    floats = {a.dtype.name for name, a in arrays if name not in STATISTICS} & set(REALS)
    allowed = floats | ({"float32"} if floats <= {"float16", "bfloat16"} else set())
    statistics = {a.dtype.name for name, a in arrays if name in STATISTICS}
    return max(sizes, default=0) < 2**30 and len(floats) <= 1 and statistics <= allowed


def body(device: Device, kernel: str) -> Callable[..., Any] | None:
    """The CUDA body of a kernel on a device, called as the reference is; None where there is none."""
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
