"""What the tests of the backend "cupy" and of mixed precision share: models and arrays on the stand-in for CuPy, the
two types of 16 bits, what passes through."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tinygpt as tg
from tests.cuda import cublas_standin, standin
from tests.training.helpers import SHAPE
from tinygpt.function import Function

DTYPES = {"float16": np.dtype(np.float16), "bfloat16": cublas_standin.bfloat16()}
EPS = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # the largest relative error of one rounding
EPS32 = 2.0**-24
IDS = np.random.default_rng(1).integers(0, 11, (3, 8))
TARGETS = np.random.default_rng(2).integers(0, 11, (3, 8))
in_both = pytest.mark.parametrize("name", DTYPES)


def gpu(array: Any, name: str | None = None) -> Any:
    """A NumPy array on the GPU, in the dtype of that name."""
    array = np.asarray(array, np.float32 if np.asarray(array).dtype.kind == "f" else None)
    return standin.on_gpu(array if name is None else array.astype(DTYPES[name]))


def host(array: Any) -> np.ndarray:
    """In float64 where it is floating-point."""
    array = array.get()
    return array.astype(np.float64) if array.dtype.kind in "fV" else array


def model(seed: int = 1, **shape: Any) -> tg.GPT:
    return tg.GPT(tg.GPTConfig(vocab_size=11, **(SHAPE | shape)), seed=seed)


def model_on(backend: str, **shape: Any) -> tg.GPT:
    return model(**shape).to(backend)


def as_numpy(array: Any) -> Any:
    """An array of either backend, in its own dtype."""
    return array.get() if isinstance(array, standin.ndarray) else array


@contextlib.contextmanager
def watched() -> Iterator[Counter[tuple[str, str, str]]]:
    """Counts (operation, "y" or "dx", dtype) of all that operations return, forward and backward."""
    seen: Counter[tuple[str, str, str]] = Counter()

    def counting(real: Any, way: str) -> Any:
        def call(self: Any, *args: Any, **options: Any) -> Any:
            result = real(self, *args, **options)
            for array in result if isinstance(result, tuple) else (result,):
                if array is not None:
                    seen[type(self).__name__, way, array.dtype.name] += 1
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for node in Function.__subclasses__():
            for method, way in (("forward", "y"), ("backward", "dx")):
                if method in vars(node):
                    patch.setattr(node, method, counting(vars(node)[method], way))
        yield seen
