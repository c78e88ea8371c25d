"""The 16-bit floating-point types: where they are available, and what stays in float32.

    float16     1 sign, 5 exponent, 10 fraction bits: up to 65504, and nothing between 0 and 6e-8
    bfloat16    1 sign, 8 exponent, 7 fraction bits: the range of float32, with 2 to 3 decimal digits

They are for storage: sums and functions of them are computed in float32 and rounded once. A GPU multiplies 16-bit
matrices several times as fast as float32 ones, a processor with AVX512_BF16 (AMD since Zen 4, Intel's servers since
Cooper Lake) those in bfloat16 twice as fast. So the backend "numpy" has bfloat16, and no float16. bfloat16 is not one
of NumPy's own types: it comes from the package ml_dtypes, and NumPy calls its kind "V".
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from ..errors import MissingExtraError, UsageError
from . import get

DTYPES = ("float32", "bfloat16", "float16")  # for activations
SIXTEEN_BITS = ("bfloat16", "float16")
BFLOAT16_FROM = 80  # compute capability, times ten
CUPY_WITH_BFLOAT16 = 14


def is_16_bit(dtype: Any) -> bool:
    """Whether it is float16 or bfloat16."""
    return dtype.itemsize == 2 and dtype.kind in "fV" and dtype.name in SIXTEEN_BITS


def is_floating(dtype: Any) -> bool:
    """Whether it is a floating-point type, bfloat16 included."""
    return dtype.kind == "f" or is_16_bit(dtype)


def upcast(array: Any) -> Any:
    """A 16-bit array converted to float32; any other array unchanged."""
    return array.astype("float32") if is_16_bit(array.dtype) else array


def statistics_dtype(dtype: Any) -> np.dtype:
    """The dtype for losses and statistics of arrays of `dtype`: float32 for a 16-bit type, else `dtype`."""
    return np.dtype(np.float32) if is_16_bit(dtype) else dtype


def in_float32(function: Any, args: Any, writes: bool, statistics: tuple[int, ...]) -> Any:
    """Call `function` with its 16-bit arguments upcast to float32, and round each result to 16 bits once, except
    integers.

    writes: whether it writes into its arguments. statistics: the positions of results that stay in float32.
    """
    dtype = next(value.dtype for value in args if _is_16_bit_array(value))
    wide = [upcast(value) if _is_16_bit_array(value) else value for value in args]
    result = function(*wide)
    narrow = {id(computed): original for original, computed in zip(args, wide, strict=True)}  # if it returns arguments
    if writes:
        for original, computed in zip(args, wide, strict=True):
            if computed is not original:
                original[...] = computed.astype(dtype)
    results = []
    for position, value in enumerate(result if isinstance(result, tuple) else (result,)):
        stays = position in statistics or not hasattr(value, "astype") or value.dtype.kind in "iu"
        argument = narrow.get(id(value))  # written, unless it is memory that was offered for the result
        results.append(value if stays else value.astype(dtype) if argument is None or not writes else argument)
    return tuple(results) if isinstance(result, tuple) else results[0]


def _is_16_bit_array(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "astype") and is_16_bit(value.dtype)


def has_16_bits(args: Any) -> bool:
    """Whether there is a 16-bit array among these arguments."""
    return any(_is_16_bit_array(value) for value in args)


def activation_dtype(name: str, backend: str) -> np.dtype:
    """The dtype called `name`, for activations on `backend`. Raises UsageError, MissingExtraError."""
    if name not in DTYPES:
        raise UsageError(f"activations can be in {', '.join(DTYPES)}, not in {name!r}")
    if name == "float32":
        return np.dtype(np.float32)
    if name == "float16":
        if backend != "cupy":
            raise UsageError(
                "float16 is not supported on the CPU, which has no products of it: use --dtype bfloat16, or a GPU with "
                "--backend cupy; a run can be resumed on a GPU with --resume --backend cupy --dtype float16"
            )
        return np.dtype(np.float16)
    if backend == "cupy":
        _require_bfloat16_of_gpu(get("cupy"))
    try:
        return np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    except ImportError:
        others = "float16 or float32" if backend == "cupy" else "float32"
        raise MissingExtraError(
            f"bfloat16 needs the package 'ml_dtypes', which is not installed: pip install ml_dtypes, or use --dtype "
            f"{others}",
            {"bfloat16": ["ml_dtypes"]},
        ) from None


def is_slower_than_float32(dtype: str, backend: str) -> bool:
    """Whether training in this dtype takes longer than in float32, because the processor has no products of it."""
    return dtype == "bfloat16" and backend == "numpy" and not get("numpy").has_bfloat16_products()


def _require_bfloat16_of_gpu(backend: Any) -> None:
    """Raises UsageError if the GPU or CuPy do not have bfloat16."""
    cupy = backend.require()
    capability = int(cupy.cuda.Device().compute_capability)
    if capability < BFLOAT16_FROM:
        raise UsageError(
            f"the GPU has no bfloat16: its compute capability is {capability / 10:.1f}, and bfloat16 needs "
            f"{BFLOAT16_FROM / 10:.1f}: use --dtype float16 or float32"
        )
    major = cupy.__version__.partition(".")[0]
    if major.isdecimal() and int(major) < CUPY_WITH_BFLOAT16:
        raise UsageError(
            f"bfloat16 needs CuPy {CUPY_WITH_BFLOAT16} or newer, and {cupy.__version__} is installed: install a newer "
            "one, or use --dtype float16 or float32"
        )
