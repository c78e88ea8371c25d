"""Checks before the first array goes to the GPU: whatever is missing is reported, with how to get it."""

from __future__ import annotations

import contextlib
import ctypes
import re
import shlex
import sys
from typing import Any

from .._ext.cuda import ARCHITECTURES
from ..console import in_bytes
from ..errors import MissingExtraError, OutOfMemoryError, UsageError

OLDEST = int(ARCHITECTURES[0].removeprefix("sm_"))  # compute capability, times ten
OLDEST_CUDA = 12
OTHERWISE = "or use the backend 'numpy'"


def driver_cuda() -> tuple[int, int] | None:
    """(major, minor) of the newest CUDA that this machine's driver can run; None if there is no driver.

    Asked of the driver itself, which takes a millisecond and touches no GPU.
    """
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        version = ctypes.c_int()
        if library.cuDriverGetVersion(ctypes.byref(version)) != 0 or version.value == 0:
            return None
    except (OSError, AttributeError):
        return None
    return version.value // 1000, version.value % 1000 // 10


def pip_install(cuda: int) -> str:
    """The command that installs `packages(cuda)`: by name, since tinygpt and its extras are not on PyPI."""
    return f"pip install {shlex.join(packages(cuda))}"


def packages(cuda: int) -> list[str]:
    """The packages of the extra cuda12 or cuda13."""
    return [f"cupy-cuda{cuda}x[ctk]", "ml_dtypes"]


def fitting_cuda(driver: tuple[int, int] | None) -> int:
    """Which of CUDA 12 and 13 suits a driver."""
    return 12 if driver is None or driver[0] == 12 else 13


def fitting_cupy(driver: tuple[int, int] | None) -> str:
    """What to install for a driver, and why."""
    if driver is None:
        return f"{pip_install(12)} (or cuda13x, to match your driver)"
    if driver[0] < OLDEST_CUDA:
        return f"a driver for CUDA {OLDEST_CUDA} or newer (this one is for {driver[0]}.{driver[1]})"
    command = pip_install(fitting_cuda(driver))
    return f"{command}, which suits this machine's driver (CUDA {driver[0]}.{driver[1]})"


def import_cupy() -> Any:
    """The module. Raises MissingExtraError if it is not installed or can't be imported."""
    try:
        import cupy
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise _does_not_import(error) from error
        driver = driver_cuda()
        without = "" if driver is not None else ", and no NVIDIA driver is found here either"
        raise MissingExtraError(
            f"the backend 'cupy' needs CuPy, which is not installed{without}: {fitting_cupy(driver)}, {OTHERWISE}",
            {}
            if driver is not None and driver[0] < OLDEST_CUDA
            else {"the backend 'cupy'": packages(fitting_cuda(driver))},
        ) from error
    except Exception as error:  # CuPy raises ImportError, or whatever its libraries raise
        raise _does_not_import(error) from error
    return cupy


def _does_not_import(error: BaseException) -> MissingExtraError:
    return MissingExtraError(
        f"the backend 'cupy' needs CuPy, which is installed but can't be imported ({reason(error)}): reinstall it, "
        f"{fitting_cupy(driver_cuda())}, {OTHERWISE}"
    )


def require_gpu(cupy: Any) -> None:
    """Raise UsageError unless a GPU answers that is new enough and for which kernels can be compiled."""
    runtime = cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except Exception as error:
        raise UsageError(_no_answer(runtime, error)) from error
    if count == 0:
        raise UsageError(NO_GPU)
    capability = int(cupy.cuda.Device().compute_capability)
    if capability < OLDEST:
        raise UsageError(
            f"the GPU {gpu_name(cupy)} is too old for the backend 'cupy': its compute capability is "
            f"{decimal(capability)}, and tinygpt needs {decimal(OLDEST)}: use another one (CUDA_VISIBLE_DEVICES), "
            f"{OTHERWISE}"
        )
    try:
        if int((cupy.zeros(1, "int32") + 1).item()) != 1:
            raise ArithmeticError("0 + 1 is not 1")
    except OutOfMemoryError:
        raise
    except Exception as error:
        raise UsageError(_no_kernel(cupy, error)) from error


NO_GPU = (
    "the backend 'cupy' finds no GPU on this machine, or CUDA_VISIBLE_DEVICES hides it: use a machine with an NVIDIA "
    f"GPU, {OTHERWISE}"
)


def _no_answer(runtime: Any, error: Exception) -> str:
    """The message for a driver that can't say how many GPUs there are."""
    if "cudaErrorNoDevice" in str(error):
        return NO_GPU
    driver = driver_cuda()
    if driver is None:
        return f"the backend 'cupy' finds no NVIDIA driver on this machine: install one, {OTHERWISE}"
    if "cudaErrorInsufficientDriver" in str(error):
        made_for = cuda_version(runtime.runtimeGetVersion())
        return (
            f"the NVIDIA driver of this machine is too old for the installed CuPy: it runs CUDA {driver[0]}.{driver[1]}"
            f", and CuPy is made for {made_for}: install {fitting_cupy(driver)}, or a newer driver, {OTHERWISE}"
        )
    return f"the backend 'cupy' gets no answer from the NVIDIA driver ({reason(error)}): see nvidia-smi, {OTHERWISE}"


def _no_kernel(cupy: Any, error: Exception) -> str:
    """The message for a CuPy that can't add two numbers."""
    words = str(error)
    cuda = 12 if cupy.cuda.runtime.runtimeGetVersion() < 13000 else 13
    if re.search(r"header|include|cannot open source file|CUDA_PATH|\.h\b|\.hpp\b|nvrtc", words, re.IGNORECASE):
        return (
            f"the backend 'cupy' can't compile kernels for the GPU {gpu_name(cupy)}, because CUDA's headers or "
            f"compiler library are missing ({reason(error)}): {pip_install(cuda)}, which installs them, {OTHERWISE}"
        )
    return f"the GPU {gpu_name(cupy)} can't add two numbers ({reason(error)}): see nvidia-smi, {OTHERWISE}"


def gpu_name(cupy: Any) -> str:
    """Such as "NVIDIA H100 PCIe"."""
    return cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode(errors="replace")


def decimal(tenths: int) -> str:
    """A compute capability as text: 75 -> "7.5"."""
    return f"{tenths // 10}.{tenths % 10}"


def cuda_version(number: int) -> str:
    """A CUDA version as text: 12040 -> "12.4"."""
    return f"{number // 1000}.{number % 1000 // 10}"


def reason(error: BaseException) -> str:
    """An exception's message in one line: from its root cause, the line that says "error", or else the last line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if re.search(r"\w", line)]
    found = [line for line in lines if "error" in line.lower()] or lines[-1:] or [type(error).__name__]
    return found[0][:200].rstrip(".")


# Memory -------------------------------------------------------------------------------------------


def explain_out_of_memory(cupy: Any) -> None:
    """From now on, let a failing allocation raise OutOfMemoryError, with advice. The allocator itself (CuPy's pool, or
    any other that was set) stays the same."""
    allocate = cupy.cuda.get_allocator()
    if getattr(allocate, "explained", False):
        return

    def explained(size: int) -> Any:
        try:
            return allocate(size)
        except cupy.cuda.memory.OutOfMemoryError as error:
            raise OutOfMemoryError(_out_of_memory(cupy, size)) from error

    explained.explained = True  # type: ignore[attr-defined]
    cupy.cuda.set_allocator(explained)


def _out_of_memory(cupy: Any, size: int) -> str:
    there = ""
    with contextlib.suppress(Exception):  # without these figures the message is still useful
        free, total = cupy.cuda.runtime.memGetInfo()
        pool = cupy.get_default_memory_pool()
        held, unused = pool.total_bytes(), pool.total_bytes() - pool.used_bytes()
        there = (
            f"; {in_bytes(free)} of {in_bytes(total)} are free, and of the {in_bytes(held)} that this process holds, "
            f"{in_bytes(unused)} are unused, but in pieces that are too small"
        )
    return (
        f"the GPU is out of memory: {in_bytes(size)} more were requested{there}: use a smaller batch "
        "(--batch-size, and --gradient-accumulation to make up for it), a shorter block (--block-size) or a smaller "
        "model"
    )
