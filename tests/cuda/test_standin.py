"""The stand-in for CuPy is as strict as it says, and has nothing that CuPy lacks."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cuda import capture, cublas_standin, standin, standin_arrays

X = np.arange(12.0).reshape(3, 4)


@pytest.fixture
def x() -> Any:
    return standin.on_gpu(X.copy())


cupy = pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed (extra cuda12)")


def has(module: Any, name: str) -> bool:
    """Also where CuPy's wrapper of one of CUDA's libraries is looked up, and the library itself is not installed."""
    try:
        return hasattr(module, name)
    except ImportError:
        return name == "cublas"


@cupy
def test_cupy_has_all_that_the_stand_in_has() -> None:
    """Needs CuPy, but no GPU: names and signatures only."""
    real = pytest.importorskip("cupy")
    for name in (*standin.FUNCTIONS, *standin.UFUNCS, *standin.CONSTANTS):
        assert hasattr(real, name), name
    for name, parameters in standin.FUNCTIONS.items():
        signature = inspect.signature(getattr(real, name))
        assert list(signature.parameters)[: len(parameters.split())] == parameters.split(), name
    for name in (*standin_arrays.METHODS, *standin_arrays.OWN_METHODS, *standin_arrays.ATTRIBUTES):
        assert hasattr(real.ndarray, name), name
    for name in standin_arrays.OPERATORS:
        for prefix in ("", "r", "i"):
            assert hasattr(real.ndarray, f"__{prefix}{name}__") or (prefix, name) == ("i", "matmul")
    assert not hasattr(real.ndarray, "__index__")
    assert real.ndarray.__module__ == standin.ndarray.__module__
    assert issubclass(real.cuda.memory.OutOfMemoryError, MemoryError)
    cuda, runtime = standin.make_cuda(), standin.make_cuda().runtime
    assert [name for name in vars(cuda) if not has(real.cuda, name)] == []
    assert [name for name in vars(runtime) if not hasattr(real.cuda.runtime, name)] == []
    pool = standin.make().get_default_memory_pool()
    assert [name for name in vars(pool) if not hasattr(real.get_default_memory_pool(), name)] == []


@cupy
def test_cublas_is_called_as_cupy_has_it() -> None:
    """Looked up in the file: to import it, cuBLAS must be there, which is 500 MB."""
    folder = Path(importlib.import_module("cupy_backends.cuda.libs").__file__ or "").parent
    (file,) = folder.glob("cublas.*")
    binary = file.read_bytes()
    signature = re.search(rb"\bgemmEx\(([^)]*)\)", binary)
    assert signature is not None
    names = [parameter.split()[-1] for parameter in signature[1].decode().split(",")]
    assert names == list(cublas_standin.GEMM_EX)
    for name in vars(cublas_standin):
        if name.startswith("CUBLAS_"):
            assert re.search(rb"\b%s\b" % name.encode(), binary), name
    assert "key == 'cublas'" in inspect.getsource(importlib.import_module("cupy.cuda").__getattr__)


@cupy
def test_the_choice_of_tf32_is_where_it_is_looked_for() -> None:
    real = importlib.import_module("cupy._core._routines_linalg")
    products = standin.make_products()
    names = [name for name in vars(products) if not name.startswith("__")]
    assert [name for name in names if not hasattr(real, name)] == []
    assert (real.COMPUTE_TYPE_DEFAULT, real.COMPUTE_TYPE_TF32) == (1, 7)
    real.set_compute_type(np.float32, real.COMPUTE_TYPE_DEFAULT)
    assert real.get_compute_type(np.float32) == real.COMPUTE_TYPE_DEFAULT


@cupy
def test_methods_have_the_parameters_of_cupys() -> None:
    real = pytest.importorskip("cupy")
    for name, parameters in standin_arrays.METHODS.items():
        documented = (getattr(real.ndarray, name).__doc__ or "").partition("\n")[0]  # Cython's: the signature
        for parameter in parameters.split():
            assert parameter in documented, f"{name}: {documented}"


def test_nothing_is_on_the_stand_in_that_the_tables_do_not_name() -> None:
    tables = {*standin_arrays.METHODS, *standin_arrays.OWN_METHODS, *standin_arrays.ATTRIBUTES, "held"}
    assert {name for name in vars(standin.ndarray) if not name.startswith("_")} == tables
    names = {*standin.FUNCTIONS, *standin.UFUNCS, *standin.CONSTANTS}
    rest = {name for name in vars(standin.make()) if not name.startswith("__")} - names
    assert rest == {"ndarray", "asnumpy", "cuda", "get_default_memory_pool"}


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: np.asarray(x), lambda x: np.exp(x), lambda x: np.concatenate([x, x]), lambda x: x + X,
        lambda x: X + x, lambda x: x @ X.T, lambda x: x.__iadd__(X), lambda x: x.__setitem__(0, X[0]),
        lambda x: standin.make().exp(X),
        lambda x: standin.make().where(x > 0, x, X), lambda x: x.sum(axis=0, where=x > 0), lambda x: hash(x),
        lambda x: standin.make().add.at(standin.on_gpu(np.arange(3)), 0, 1),
    ],
)  # fmt: skip
def test_refused(x: Any, mix: Any) -> None:
    with pytest.raises(TypeError):
        mix(x)


def test_absent() -> None:
    module = standin.make()
    for name in ("errstate", "vecdot", "unstack", "block", "insert"):
        assert not hasattr(module, name)
    with pytest.raises(NotImplementedError):
        module.maximum.reduceat(standin.on_gpu(X), standin.on_gpu(np.array([0])))
    assert not hasattr(standin.on_gpu(X).flags, "writeable")


def test_numbers_are_arrays_and_views(x: Any) -> None:
    assert isinstance(x.sum(), standin.ndarray)
    assert x.sum().shape == ()
    first = x[0]
    first[0] = 7.0  # a view
    assert float(x[0, 0]) == 7.0
    number = x[1, 1]
    number += 1.0
    assert float(x[1, 1]) == 6.0
    assert first.base is x
    assert (x + 0.0).base is None


def test_indices_wrap_around(x: Any) -> None:
    picked = x[standin.on_gpu(np.array([0, 3, -4]))]
    assert np.array_equal(picked.get(), X[[0, 0, 2]])
    assert np.array_equal(x[:, standin.on_gpu(np.array([4]))].get(), X[:, [0]])
    with pytest.raises(IndexError):  # a plain integer does not
        x[3]


@cupy
def test_streams_and_memory_have_what_the_stand_ins_have() -> None:
    real = pytest.importorskip("cupy")
    for mine, theirs in (
        (capture.Stream, real.cuda.Stream),
        (capture.Launches, real.cuda.Graph),
    ):
        names = {name for name in vars(mine) if not name.startswith("_")} - {"count"}
        assert [name for name in names if not hasattr(theirs, name)] == []
    for name in ("malloc", "free_all_blocks", "used_bytes", "total_bytes"):
        assert hasattr(real.cuda.MemoryPool, name)
    assert list(inspect.signature(real.cuda.Stream.begin_capture).parameters) == ["self", "mode"]
    assert "non_blocking" in inspect.signature(real.cuda.Stream.__init__).parameters
