"""Runs the CUDA kernels on the CPU: the same launchers, the same .cu files, compiled as C++ (see emulation.h).

The one thing that macros can't give C++ is shared memory; its declarations are rewritten here. Arrays are handed to a
kernel as copies with room on both sides, filled with NaN: a write beyond an array is an error, a read gives NaN.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import mmap
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinygpt._ext import cuda

COMPILER = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++") or shutil.which("clang++")
FLAGS = ("-std=c++17", "-shared", "-fPIC", "-U_FORTIFY_SOURCE", "-w")
TRAPS = ("-fsanitize=bounds", "-fsanitize-undefined-trap-on-error")  # an index beyond an array ends the process
MARGIN = 256  # bytes on each side of an array
HEADERS = [Path(__file__).with_name(name) for name in ("emulation.h", "emulation_mma.h")]


class KernelError(AssertionError):
    """A kernel did what no kernel may do."""


# Compiling ----------------------------------------------------------------------------------------


def as_cpp(text: str) -> str:
    """A .cu source with its shared memory declared in C++."""
    text = re.sub(
        r"extern __shared__ (?:__align__\(\d+\) )?unsigned char (\w+)\[\];",
        r"unsigned char *\1 = emulation::dynamic_shared();",
        text,
    )
    return re.sub(
        r"__shared__ (?:__align__\(\d+\) )?([\w<> ]+?) (\w+)((?:\[[^\]]+\])+);",
        r"static const char \2_key = 0; "
        r"typedef \1 \2_array\3; \2_array &\2 = *(\2_array *)emulation::shared(&\2_key, sizeof(\2_array));",
        text,
    )


def program(texts: dict[str, tuple[str, Sequence[str]]]) -> str:
    """One C++ source for several versions of a .cu file: {namespace: (text, expressions)}."""
    parts = [header.read_text(encoding="utf-8") for header in HEADERS]
    for name, (text, expressions) in texts.items():
        own_guards = re.sub(r"TINYGPT_\w+_CUH", rf"\g<0>_{name}", text)  # each version has a copy of what it includes
        kernels = [f"emulation::Kernel<{expression}>" for expression in expressions]
        entries = [f"{{{kernel}::call, {kernel}::takes}}," for kernel in kernels]
        table = "static const emulation::Entry table[] = {\n" + "\n".join(entries) + "\n};"
        parts.append(f"namespace {name} {{\n{as_cpp(own_guards)}\n{table}\n}}")
    versions = ", ".join(f"{name}::table" for name in texts)
    parts.append(
        f"static const emulation::Entry *const versions[] = {{{versions}}};\n"
        'extern "C" const char *launch(int version, int kernel, const unsigned *grid, const unsigned *block,\n'
        "                              unsigned dynamic, unsigned schedule, void **arguments, const size_t *sizes,\n"
        "                              int n) {\n"
        "    return emulation::launch(versions[version][kernel], grid, block, dynamic, schedule, arguments,\n"
        "                             sizes, n);\n}\n"
    )
    return "\n".join(parts)


def folder() -> Path:
    """Where compiled programs are kept from one run of the tests to the next: the user's own."""
    path = Path(tempfile.gettempdir()) / f"tinygpt-cuda-emulation-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    if path.stat().st_uid != os.getuid():
        raise OSError(f"{path} belongs to somebody else")
    return path


def compile_cpp(text: str, options: Sequence[str]) -> Path:
    """The shared library of a program, compiled unless it is there from before."""
    assert COMPILER is not None
    version = subprocess.run([COMPILER, "--version"], capture_output=True, check=True, text=True).stdout
    name = hashlib.sha256("\0".join([version, *FLAGS, *options, text]).encode()).hexdigest()[:32]
    path = folder() / f"{name}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder()) as work:
            source, made = Path(work, "kernels.cpp"), Path(work, "kernels.so")
            source.write_text(text, encoding="utf-8")
            command = [COMPILER, *FLAGS, *options, str(source), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise KernelError(f"the kernels do not compile as C++:\n{done.stderr[:4000]}")
            os.replace(made, path)
    return path


class Program:
    """A compiled program and its kernels by name."""

    def __init__(self, texts: dict[str, tuple[str, Sequence[str]]], options: Sequence[str] = ("-O1",)) -> None:
        self.numbers = {
            (version, expression): (i, j)
            for i, (version, (_, expressions)) in enumerate(texts.items())
            for j, expression in enumerate(expressions)
        }
        self.function = ctypes.CDLL(str(compile_cpp(program(texts), options))).launch
        self.function.restype = ctypes.c_char_p

    def launch(
        self,
        version: str,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        shared: int,
        schedule: int,
        arguments: list[Any],
    ) -> None:
        """arguments: NumPy scalars, pointers among them as numpy.uintp."""
        boxes = [np.array(value) for value in arguments]
        pointers = (ctypes.c_void_p * len(boxes))(*[box.ctypes.data for box in boxes])
        sizes = (ctypes.c_size_t * len(boxes))(*[box.itemsize for box in boxes])
        dimensions = [(ctypes.c_uint * 3)(*sizes3(size)) for size in (grid, block)]
        problem = self.function(
            *self.numbers[version, name], *dimensions, ctypes.c_uint(shared), ctypes.c_uint(schedule), pointers, sizes,
            len(boxes),
        )  # fmt: skip
        if problem:
            raise KernelError(f"{name}: {problem.decode(errors='replace')}")  # it may have overwritten the sentence


def sizes3(size: Sequence[int]) -> list[int]:
    return [*size, 1, 1, 1][:3]


def right_program(file: str, real: str) -> Program:
    """The kernels of a file as they are."""
    program = compiled_once(file, real)
    if isinstance(program, KernelError):
        raise program
    return program


@functools.cache
def compiled_once(file: str, real: str) -> Program | KernelError:
    """Also a failure is kept: hypothesis would try again and again."""
    try:
        return Program({"right": (cuda.source(file), cuda.expressions(file, real))})
    except KernelError as error:
        return error


# Arrays with room around them ---------------------------------------------------------------------


def poison(size: int, itemsize: int, seed: int) -> np.ndarray:
    """`size` bytes of NaN, no two of them alike, and signalling: arithmetic changes its bits, a copy its place.

    So a kernel that reads beyond an array and writes the result beyond another one is found out.
    """
    count = size // itemsize + 1
    payload = (np.arange(count, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(seed)) % np.uint64(100003)
    if itemsize == 8:
        values = payload | np.uint64(0xFFF4 << 48)
    elif itemsize == 4:
        values = (payload | np.uint64(0xFFA00000)).astype(np.uint32)
    elif itemsize == 2:
        values = (payload % np.uint64(255) + np.uint64(0xFC01)).astype(np.uint16)
    else:
        values = payload.astype(np.uint8)
    return values.view(np.uint8)[:size].copy()


def fenced(size: int, fence: str) -> np.ndarray:
    """`size` bytes with no memory behind or before them: an access there ends the process."""
    page = mmap.PAGESIZE
    pages = -(-size // page) * page
    whole = np.frombuffer(mmap.mmap(-1, pages + page), np.uint8)
    closed, place = (pages, pages - size) if fence == "behind" else (0, page)
    done = ctypes.CDLL(None).mprotect(ctypes.c_void_p(whole.ctypes.data + closed), ctypes.c_size_t(page), 0)
    assert done == 0
    return whole[place : place + size]


class Guarded:
    """A copy of an array's memory, from its first byte to its last, between margins.

    fence: "behind" or "before": there is no memory at all there, but for up to 15 bytes that make the addresses fit.
    """

    def __init__(self, array: np.ndarray, fence: str = "") -> None:
        self.array = array
        first, last = np.lib.array_utils.byte_bounds(array)
        size = last - first
        front = MARGIN if fence != "before" else first % 16
        rest = MARGIN if fence != "behind" else -(first + size) % 16
        room = front + size + rest
        self.buffer = fenced(room, fence) if fence else np.empty(room + 64, np.uint8)
        self.buffer[:] = poison(self.buffer.size, array.itemsize, seed=first % 99991)
        start = front if fence else front + (first - self.buffer.ctypes.data - front) % 64
        assert (self.buffer.ctypes.data + start - first) % 16 == 0  # aligned as the original
        extent = (ctypes.c_uint8 * size).from_address(first)
        self.buffer[start : start + size] = np.frombuffer(extent, np.uint8)
        self.place = start + array.ctypes.data - first
        self.copy = np.ndarray(array.shape, array.dtype, self.buffer, self.place, array.strides)
        self.before = self.buffer.copy()

    def finish(self) -> None:
        """Bring what was written back into the array, and see that nothing was written elsewhere."""
        expected = np.ndarray(self.array.shape, self.array.dtype, self.before, self.place, self.array.strides)
        if self.array.size:
            expected[...] = self.copy
        if not np.array_equal(self.before, self.buffer):
            raise KernelError(f"a write outside of an array of shape {self.array.shape}")
        if self.array.tobytes() != self.copy.tobytes():
            if not self.array.flags.writeable:
                raise KernelError(f"a write into a read-only array of shape {self.array.shape}")
            self.array[...] = self.copy


class Device:
    """What the launchers run on: see tinygpt._ext.cuda.Device. Lists its launches."""

    xp = np
    has_tensor_cores = True

    def __init__(
        self, schedule: int = 0, versions: dict[str, tuple[Program, str]] | None = None, fence: str = ""
    ) -> None:
        """versions: of which files another version than the right one is to run, where it has the kernel, and which.

        fence: see Guarded.
        """
        self.schedule, self.versions, self.fence = schedule, versions or {}, fence
        self.launched: list[tuple[str, str]] = []  # (file, kernel)
        self.pointed: list[Guarded] = []
        self.rng_stream_base: tuple[int, Any] = (0, None)

    def empty(self, shape: Any, dtype: Any) -> np.ndarray:
        """As on a GPU its memory begins at a multiple of 16 bytes and holds anything: here NaN."""
        dtype = np.dtype(dtype)
        size = cuda.size_of(shape) * dtype.itemsize
        memory = poison(size + 16, dtype.itemsize, seed=size)
        start = -memory.ctypes.data % 16
        return memory[start : start + size].view(dtype).reshape(shape)

    def address(self, array: np.ndarray) -> int:
        return array.ctypes.data

    def pointers(self, arrays: Sequence[np.ndarray]) -> list[int]:
        """Addresses for a table that the next launch is given."""
        made = [Guarded(array, self.fence) for array in arrays]
        self.pointed += made
        return [guarded.copy.ctypes.data for guarded in made]

    def table(self, key: Hashable, made: Callable[[], np.ndarray]) -> np.ndarray:
        """Made anew: `pointers` gives other addresses each time."""
        return made()

    def matmul(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.matmul(a, b)

    def launch(
        self, file: str, kernel: str, real: str, grid: Sequence[int], block: Sequence[int], arguments: Any, shared: int
    ) -> None:
        self.launched.append((file, kernel))
        values = cuda.kernel_arguments(arguments)
        guarded = [Guarded(value, self.fence) for value in values if isinstance(value, np.ndarray)]
        places = iter(guarded)
        scalars = [np.uintp(next(places).copy.ctypes.data) if isinstance(v, np.ndarray) else v for v in values]
        program, version = self.versions.get(file, (None, ""))
        if program is None or (version, kernel) not in program.numbers:
            program, version = right_program(file, real), "right"
        program.launch(version, kernel, grid, block, shared, self.schedule, scalars)
        for one in [*guarded, *self.pointed]:
            one.finish()
        self.pointed = []
