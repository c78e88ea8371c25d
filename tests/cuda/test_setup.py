"""What the backend "cupy" says where something is missing: CuPy, a driver, a GPU, headers, memory. CuPy is stubbed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tinygpt as tg
from tests.cli.helpers import assert_one_sentence
from tests.cuda import standin
from tests.training.helpers import ENVIRONMENT, OPTIONS
from tinygpt.backends import cupy as backend
from tinygpt.backends import cupy_setup
from tinygpt.errors import MissingExtraError, OutOfMemoryError, UsageError

ROOT = Path(__file__).parents[2]


def raising(error: BaseException) -> Callable[..., Any]:
    def function(*_: Any, **__: Any) -> Any:
        raise error

    return function


def stub(**changes: Any) -> Any:
    """A CuPy where all is well but for `changes`: dotted names with __ for the dot."""
    module = standin.make()
    for name, value in changes.items():
        owner = module
        *path, last = name.split("__")
        for part in path:
            owner = getattr(owner, part)
        setattr(owner, last, value)
    return module


def cuda_error(name: str) -> standin.CUDARuntimeError:
    return standin.CUDARuntimeError(f"{name}: what CUDA has to say")


OLD_GPU = standin.make_cuda(capability="61").Device
HEADERS = RuntimeError("Failed to find CUDA headers.\nThey are in cuda_fp16.h, which is nowhere.")
NO_HEADER = RuntimeError(
    "/tmp/x.cu(5): catastrophic error: cannot open source file 'vector_types.h'\n\n1 catastrophic error detected\n"
)
NO_NVRTC = OSError("libnvrtc.so.13: cannot open shared object file: No such file or directory")
NO_DEVICE = {"cuda__runtime__getDeviceCount": raising(cuda_error("cudaErrorNoDevice"))}
INSUFFICIENT = {"cuda__runtime__getDeviceCount": raising(cuda_error("cudaErrorInsufficientDriver"))}

# What is wrong, the driver's CUDA, and what the sentence must say.
TROUBLES: dict[str, tuple[dict[str, Any], tuple[int, int] | None, list[str]]] = {
    "no driver": (INSUFFICIENT, None, ["finds no NVIDIA driver", "install one"]),
    "an old driver": (
        INSUFFICIENT, (12, 4), ["runs CUDA 12.4", "CuPy is made for 13.0", r"pip install 'cupy-cuda12x\[ctk\]' "],
    ),
    "a very old driver": (INSUFFICIENT, (11, 4), ["a driver for CUDA 12 or newer"]),
    "a driver that does not answer": (
        {"cuda__runtime__getDeviceCount": raising(cuda_error("cudaErrorUnknown"))}, (13, 0),
        ["no answer from the NVIDIA driver", "cudaErrorUnknown", "nvidia-smi"],
    ),
    "no GPU, says CUDA": (NO_DEVICE, (13, 0), ["finds no GPU", "CUDA_VISIBLE_DEVICES"]),
    "no GPU": ({"cuda__runtime__getDeviceCount": lambda: 0}, (13, 0), ["finds no GPU", "CUDA_VISIBLE_DEVICES"]),
    "an old GPU": ({"cuda__Device": OLD_GPU}, (12, 0), ["stand-in is too old", "is 6.1", "needs 7.5"]),
    "no headers": ({"zeros": raising(HEADERS)}, (13, 0), ["CUDA's headers", r"pip install 'cupy-cuda13x\[ctk\]' "]),
    "a header that is missing": ({"zeros": raising(NO_HEADER)}, (13, 0), ["CUDA's headers", "vector_types.h"]),
    "no compiler": ({"zeros": raising(NO_NVRTC)}, (13, 0), ["compiler library", "libnvrtc.so.13"]),
    "headers for CUDA 12": (
        {"zeros": raising(HEADERS), "cuda__runtime__runtimeGetVersion": lambda: 12090}, (13, 0),
        [r"pip install 'cupy-cuda12x\[ctk\]' ml_dtypes"],
    ),
    "a GPU that is broken": (
        {"zeros": raising(cuda_error("cudaErrorECCUncorrectable"))}, (13, 0),
        ["stand-in can't add two numbers", "cudaErrorECCUncorrectable"],
    ),
}  # fmt: skip


def assert_sentence(words: list[str], error: type[UsageError] = UsageError) -> None:
    with pytest.raises(error) as raised:
        tg.use_backend("cupy")
    sentence = str(raised.value)
    assert "\n" not in sentence
    assert "or use the backend 'numpy'" in sentence
    for word in words:
        assert re.search(word, sentence), sentence
    assert tg.backends.current() == "numpy"
    assert backend.xp is None


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_is_missing_is_said(trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, driver, words = TROUBLES[trouble]
    monkeypatch.setattr(cupy_setup, "driver_cuda", lambda: driver)
    with standin.installed(stub(**changes)):
        assert_sentence(words)


@pytest.mark.parametrize(
    ("driver", "words"),
    [
        (None, ["no NVIDIA driver is found here either", r"'cupy-cuda12x\[ctk\]' ml_dtypes \(or cuda13x, to match"]),
        ((12, 9), [r"which is not installed: pip install 'cupy-cuda12x\[ctk\]' ml_dtypes", r"driver \(CUDA 12.9\)"]),
        ((13, 1), [r"pip install 'cupy-cuda13x\[ctk\]' ml_dtypes, which suits"]),
        ((11, 8), ["a driver for CUDA 12 or newer"]),
    ],
)
def test_no_cupy(driver: Any, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_setup, "driver_cuda", lambda: driver)
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(backend, "xp", None)
    assert_sentence(words, MissingExtraError)


@pytest.mark.parametrize(
    "body",
    [
        "import a_module_that_is_missing", "raise RuntimeError('it is broken')",
        "try:\n    raise OSError('libcublas.so.13: no such file')\nexcept OSError as error:\n"
        "    raise ImportError('=' * 60 + '\\nFailed to import CuPy.\\n' + '=' * 60) from error",
    ],
)  # fmt: skip
def test_a_cupy_that_does_not_import(body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cupy.py").write_text(body, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(backend, "xp", None)
    why = "a_module_that_is_missing|it is broken|libcublas.so.13: no such file"
    assert_sentence(["can't be imported", why, "reinstall it"], MissingExtraError)


def test_the_driver_is_asked_for_its_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def library(answer: int, version: int) -> Any:
        def ask(pointer: Any) -> int:
            pointer._obj.value = version
            return answer

        return lambda name: types.SimpleNamespace(cuDriverGetVersion=ask)

    for made, expected in (
        (library(0, 12040), (12, 4)), (library(0, 13010), (13, 1)), (library(3, 0), None), (library(0, 0), None),
        (raising(OSError("no such file")), None), (lambda name: types.SimpleNamespace(), None),
    ):  # fmt: skip
        monkeypatch.setattr("ctypes.CDLL", made)
        assert cupy_setup.driver_cuda() == expected


# Memory -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_out_of_memory_says_what_was_asked_for_and_what_to_reduce() -> None:
    module = stub()
    module.cuda.set_allocator(raising(standin.OutOfMemoryError("no")))
    with standin.installed(module):
        tg.use_backend("cupy").__exit__()
        with pytest.raises(OutOfMemoryError) as raised:
            module.cuda.get_allocator()(2_500_000_000)
        for words in (
            "2.5 GB more were requested",
            "8.59 GB of 17.2 GB are free",
            "--batch-size",
            "--block-size",
        ):
            assert words in str(raised.value)
        assert isinstance(raised.value, MemoryError)
        module.cuda.runtime.memGetInfo = raising(cuda_error("cudaErrorUnknown"))  # then the sentence is shorter
        with pytest.raises(OutOfMemoryError, match=r"100 bytes more were requested: use"):
            module.cuda.get_allocator()(100)


def test_a_model_that_does_not_fit_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tg.GPT(tg.GPTConfig(vocab_size=5, block_size=4, n_layer=1, n_head=1, n_embd=4))
    with standin.installed() as module:
        answers = iter([module.asarray] * 5)

        def asarray(array: Any, dtype: Any = None) -> Any:
            return next(answers, raising(OutOfMemoryError("the GPU is out of memory")))(array)

        monkeypatch.setattr(module, "asarray", asarray)
        with pytest.raises(OutOfMemoryError):
            model.to("cupy")
    assert next(answers, None) is None  # some had been moved
    assert {parameter.backend for parameter in model.parameters()} == {"numpy"}


def test_memory_that_there_is_comes_from_the_allocator_that_was_set() -> None:
    module = stub()
    with standin.installed(module):
        for _ in range(2):  # the second time it is explained already
            backend.xp = None
            tg.use_backend("cupy").__exit__()
        assert module.cuda.get_allocator()(5).size == 5
        assert backend.memory() == (8 << 30, 16 << 30, 1 << 20, 3 << 20)
        backend.free_unused()
        backend.synchronize()


# TF32 ---------------------------------------------------------------------------------------------


def test_tf32_is_off_until_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with standin.installed():
        tg.use_backend("cupy").__exit__()
        assert not backend.uses_tf32()
        with tg.use_backend("cupy", tf32=True):
            assert backend.uses_tf32()
            assert backend.describe().endswith("; TF32")
            with tg.use_backend("cupy", tf32=False):
                assert not backend.uses_tf32()
            assert backend.uses_tf32()
        assert not backend.uses_tf32()
    monkeypatch.setenv("TINYGPT_TF32", "1")
    with standin.installed():
        tg.use_backend("cupy").__exit__()
        assert backend.uses_tf32()


def test_tf32_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="tf32 is an option of the backend 'cupy', not of 'numpy'"):
        tg.use_backend("numpy", tf32=True)
    with standin.installed(stub(cuda=standin.make_cuda(capability="75"))):
        with pytest.raises(UsageError, match=r"has no TF32: its compute capability is 7.5, and TF32 needs 8.0"):
            tg.use_backend("cupy", tf32=True)
        assert tg.backends.current() == "numpy"
    for value, words in (("yes", "set it to 0 or 1"), ("1", "has no TF32")):
        monkeypatch.setenv("TINYGPT_TF32", value)
        with standin.installed(stub(cuda=standin.make_cuda(capability="75"))):
            with pytest.raises(UsageError, match=words):
                tg.use_backend("cupy")
            assert backend.xp is None


# The command line, and what never touches CuPy --------------------------------------------------------


@pytest.mark.parametrize("trouble", ["no driver", "no GPU", "an old GPU", "no headers"])
def test_the_command_line_says_it_and_ends_with_2(
    trouble: str, run: Any, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, driver, words = TROUBLES[trouble]
    monkeypatch.setattr(cupy_setup, "driver_cuda", lambda: driver)
    with standin.installed(stub(**changes)):
        answer = run("train", *OPTIONS, f"--data={text}", f"--out={tmp_path / 'run'}", "--backend=cupy")
    assert_one_sentence(answer, words[0])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_out_of_memory_ends_with_2(run: Any, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with standin.installed() as module:
        monkeypatch.setattr(module, "matmul", raising(OutOfMemoryError("the GPU is out of memory: take less")))
        answer = run("train", *OPTIONS, f"--data={text}", f"--out={tmp_path / 'run'}", "--backend=cupy")
    assert_one_sentence(answer, "the GPU is out of memory: take less")


@pytest.mark.slow
@pytest.mark.parametrize("program", [["-m", "tinygpt", "train"], ["examples/train_shakespeare.py"]], ids=" ".join)
def test_programs_without_cupy(program: list[str], tmp_path: Path) -> None:
    """In processes of their own, in which CuPy is not there."""
    (tmp_path / "cupy.py").write_text("raise ModuleNotFoundError('no', name='cupy')", encoding="utf-8")
    environment = ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ENVIRONMENT['PYTHONPATH']}"}
    done = subprocess.run(
        [sys.executable, *program, "--backend=cupy", f"--out={tmp_path / 'run'}"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "needs CuPy, which is not installed" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_importing_and_training_on_the_cpu_never_touches_cupy(tmp_path: Path) -> None:
    (tmp_path / "cupy.py").write_text("raise SystemExit('CuPy was imported')", encoding="utf-8")
    code = (
        "import sys, pkgutil, importlib, numpy as np, tinygpt as tg\n"
        "for found in pkgutil.walk_packages(tg.__path__, 'tinygpt.'):\n"
        "    if not found.name.startswith('tinygpt._ext.') and not found.name.endswith('__main__'):\n"
        "        importlib.import_module(found.name)\n"
        "model = tg.GPT(tg.GPTConfig(vocab_size=5, block_size=4, n_layer=1, n_head=1, n_embd=4))\n"
        "model.loss(np.zeros((1, 4), int), np.zeros((1, 4), int)).backward()\n"
        "model.generate([[1]], max_new_tokens=2)\n"
        "assert 'cupy' not in sys.modules\n"
    )
    environment = ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ENVIRONMENT['PYTHONPATH']}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
