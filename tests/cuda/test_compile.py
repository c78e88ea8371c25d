"""Every CUDA kernel compiles, for each architecture and each dtype. NVRTC needs neither a GPU nor a driver.

NVRTC comes with CuPy (`pip install -e '.[cuda12]'`). nvcc, where there is one, compiles the same sources too.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tinygpt._ext import cuda
from tinygpt.backends import cupy_kernels

NVCC = shutil.which("nvcc")
REALS = list(cuda.SIZES)
BLACKWELL = 100  # compute capability, times ten


@pytest.fixture(scope="module")
def nvrtc() -> Any:
    pytest.importorskip("cupy", reason="CuPy is not installed: pip install -e '.[cuda12]'", exc_type=ImportError)
    from cupy.cuda import nvrtc

    try:
        nvrtc.getVersion()
    except Exception as error:
        pytest.skip(f"CuPy finds no NVRTC ({error}): pip install -e '.[cuda12]'")
    return nvrtc


def options(arch: str) -> tuple[str, ...]:
    return (f"--gpu-architecture={arch}", *cupy_kernels.OPTIONS)


def compiled(nvrtc: Any, file: str, real: str, *flags: str) -> Any:
    """The program and what the compiler had to say."""
    program = nvrtc.createProgram(cuda.source(file), f"{file}.cu", (), ())
    for expression in cuda.expressions(file, real):
        nvrtc.addNameExpression(program, expression)
    try:
        nvrtc.compileProgram(program, flags)
    except Exception:
        pytest.fail(f"{file}.cu, {real}, {flags}: {nvrtc.getProgramLog(program)}")
    return program, nvrtc.getProgramLog(program)


@pytest.mark.parametrize("arch", cuda.ARCHITECTURES)
@pytest.mark.parametrize(
    ("file", "real"), [(f, real) for f in cuda.FILES for real in REALS if cuda.expressions(f, real)]
)
def test_it_compiles(nvrtc: Any, file: str, real: str, arch: str) -> None:
    """Without a warning, for code that a GPU can load, with every instance in it."""
    program, log = compiled(nvrtc, file, real, *options(arch))
    assert "warning" not in log
    assert len(nvrtc.getCUBIN(program)) > 1000
    for expression in cuda.expressions(file, real):
        name = expression.partition("<")[0].encode()
        assert name in nvrtc.getLoweredName(program, expression).encode()


@pytest.mark.parametrize("real", ["float", "bfloat16"])
@pytest.mark.parametrize("file", cuda.FILES)
def test_it_compiles_for_blackwell(nvrtc: Any, file: str, real: str) -> None:
    """Where the compiler knows it, which it does from CUDA 12.8 on; an older one has nothing to say."""
    if cuda.expressions(file, real) and BLACKWELL in nvrtc.getSupportedArchs():
        program, log = compiled(nvrtc, file, real, *options(f"sm_{BLACKWELL}"))
        assert "warning" not in log
        assert len(nvrtc.getCUBIN(program)) > 1000


IN_SINGLE_NUMBERS = ("clip", "embedding", "attention_mma", "cast", "sample_tokens")  # the last from the cache, mostly


@pytest.mark.parametrize("file", [file for file in cuda.FILES if file not in IN_SINGLE_NUMBERS])
def test_arrays_of_floats_move_in_packs_of_16_bytes(nvrtc: Any, file: str) -> None:
    """And nothing lies in local memory, where arrays go that registers can't hold."""
    program, _ = compiled(nvrtc, file, "float", "--gpu-architecture=compute_80", *cupy_kernels.OPTIONS)
    code = nvrtc.getPTX(program).decode()
    assert re.search(r"ld\.global\S*\.v4", code)
    assert re.search(r"st\.global\S*\.v4", code)
    assert ".local" not in code


@pytest.mark.parametrize("file", ["gelu", "softmax", "packed", "binary_cross_entropy"])
def test_floats_are_computed_in_float(nvrtc: Any, file: str) -> None:
    """A constant without its cast would make a product one of doubles, at a sixty-fourth of the speed."""
    program, _ = compiled(nvrtc, file, "float", "--gpu-architecture=compute_80", *cupy_kernels.OPTIONS)
    assert ".f64" not in nvrtc.getPTX(program).decode()


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="no nvcc on the path")
@pytest.mark.parametrize("file", cuda.FILES)
def test_nvcc_compiles_it(file: str, tmp_path: Path) -> None:
    """The file as it stands, its headers included by the compiler; two instances, for the oldest GPU."""
    instances = cuda.expressions(file, "float") or cuda.expressions(file, "bfloat16")
    users = "\n".join(f"void *use_{i}() {{ return (void *)&{e}; }}" for i, e in enumerate(instances[:2]))
    (tmp_path / "all.cu").write_text(f'#include "{cuda.PATHS[file]}"\n{users}\n')
    command = [str(NVCC), "-std=c++17", f"-arch={cuda.ARCHITECTURES[0]}", "-Werror=all-warnings", "-c", "all.cu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
