"""A wrong number of cuBLASLt's header, or an argument in a wrong place, is noticed by the library of the stand-in."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import tinygpt as tg
from tests.cuda.cublaslt_standin import CublasLt
from tests.cuda.test_epilogues import aligned, all_five
from tests.cuda.test_epilogues import library as library  # a fixture
from tinygpt.backends import cupy_cublaslt, cupy_epilogues

RIGHT = 17  # an exit code
FILES = {module: Path(module.__file__ or "").read_text("utf-8") for module in (cupy_cublaslt, cupy_epilogues)}
MUTANTS = [
    (cupy_cublaslt, "DGELU, BGRADA = 4, 32", "DGELU, BGRADA = 1, 32"),
    (cupy_cublaslt, "32 | 128 | 4,", "32 | 4,"),
    (cupy_cublaslt, "32 | 128, 32", "32, 32"),
    (cupy_cublaslt, "64 | 128, 256", "64 | 128 | 16, 256"),
    (cupy_cublaslt, "64 | 128, 256", "64 | 128, 512"),
    (cupy_cublaslt, "TRANSA, TRANSB, EPILOGUE, BIAS_POINTER = 3, 4,", "TRANSA, TRANSB, EPILOGUE, BIAS_POINTER = 4, 3,"),
    (cupy_cublaslt, "BIAS_POINTER = 3, 4, 7, 8", "BIAS_POINTER = 3, 4, 7, 10"),
    (cupy_cublaslt, "AUX_LD, BIAS_DATA_TYPE = 11, 12, 26", "AUX_LD, BIAS_DATA_TYPE = 10, 11, 26"),
    (cupy_cublaslt, "AUX_LD, BIAS_DATA_TYPE = 11, 12, 26", "AUX_LD, BIAS_DATA_TYPE = 11, 12, 22"),
    (cupy_cublaslt, "MAX_WORKSPACE_BYTES, MIN_ALIGNMENTS = 1,", "MAX_WORKSPACE_BYTES, MIN_ALIGNMENTS = 0,"),
    (cupy_cublaslt, "(A, B, D, D)", "(256, 256, 256, 256)"),
    (cupy_cublaslt, "COMPUTE_32F, R_32F = 68, 0", "COMPUTE_32F, R_32F = 64, 0"),
    (cupy_cublaslt, '("algo", ctypes.c_uint64 * 8)', '("algo", ctypes.c_uint64 * 4)'),
    (cupy_cublaslt, "(k, m) if product.ops[0] else (m, k)", "(m, k) if product.ops[0] else (k, m)"),
    (cupy_cublaslt, "(n, k) if product.ops[1] else (k, n)", "(n, k)"),
    (cupy_cublaslt, "(of_factors, of_factors, of_result)", "(of_factors, of_factors, of_factors)"),
    (cupy_cublaslt, "A.data.ptr, of_A, B.data.ptr, of_B", "B.data.ptr, of_A, A.data.ptr, of_B"),
    (cupy_cublaslt, "ctypes.c_int64(product.steps[3])", "ctypes.c_int64(product.steps[0])"),
    (cupy_cublaslt, "ctypes.c_int64(product.steps[3])", "ctypes.c_int32(product.steps[3])"),
    (cupy_cublaslt, "            self.point(plan.description, bias, aux)\n", ""),
    (cupy_cublaslt, "ONE.ctypes.data, A", "ZERO.ctypes.data, A"),
    (cupy_cublaslt, "plan.workspace,\n                self.cupy", "0,\n                self.cupy"),
    (cupy_epilogues, "steps = b_step, a_step, leading", "steps = a_step, b_step, leading"),
    (cupy_epilogues, "leading_dimension(out), 0 if", "N + 8, 0 if"),
    (cupy_epilogues, "(N, M, K), (b_op, a_op)", "(N, M, K), (a_op, b_op)"),
    (cupy_epilogues, "(N, M, K), (b_op, a_op)", "(M, N, K), (b_op, a_op)"),
    (cupy_epilogues, "self.run(DGELU, dy, weight.T, dz, None, z)", "self.run(DGELU, dy, weight.T, dz, None, dz)"),
    (cupy_epilogues, "self.run(BGRADA, x.T, dy, dweight, dbias)", "self.run(BIAS, x.T, dy, dweight, dbias)"),
    (cupy_epilogues, "return (y, z) if self.run", "return (z, y) if self.run"),
    (cupy_epilogues, "alignments = alignment(b), alignment(a)", "alignments = 256, 256"),
]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="a mutant may write where it should not, so it runs in a fork")
@pytest.mark.parametrize(("module", "old", "new"), MUTANTS, ids=[f"{old[:30]}-{new[:40]}" for _, old, new in MUTANTS])
def test_a_wrong_number_or_place_is_noticed(module: Any, old: str, new: str, library: CublasLt) -> None:
    assert FILES[module].count(old) == 1
    assert unnoticed(None, "", "", library)
    assert not unnoticed(module, old, new, library)


def unnoticed(module: Any, old: str, new: str, library: CublasLt) -> bool:
    """Whether all results are right with this change, in a process of its own, which may crash."""
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        with contextlib.suppress(BaseException):
            os._exit(RIGHT if mutated(module, old, new, library) else 0)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFEXITED(status) and os.WEXITSTATUS(status) == RIGHT


def mutated(module: Any, old: str, new: str, library: CublasLt) -> bool:
    """Whether all results are right, twice, with different arrays."""
    made: dict[Any, Any] = {}
    for original in (cupy_cublaslt, cupy_epilogues):
        text = FILES[original].replace(old, new) if original is module else FILES[original]
        made[original] = sys.modules[original.__name__] = types.ModuleType(original.__name__)
        made[original].__package__ = original.__package__
        exec(compile(text, original.__name__, "exec"), made[original].__dict__)
    checked = made[cupy_epilogues].Epilogues(tg.backends.get("cupy").xp, made[cupy_cublaslt].Library(None, library))
    checked.cublaslt.cupy = checked.cupy
    made[cupy_epilogues].alignment = aligned
    checked.is_right = lambda epilogue, dtype: True
    kept: list[Any] = []
    return all(all_five(checked, "float16", kept=kept) == [True] * 8 for _ in range(2))
