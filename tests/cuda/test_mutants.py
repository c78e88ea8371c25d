"""The tests of the CUDA kernels are checked: a kernel that is broken in one place must fail them.

With --exhaustive every place of every kernel is broken in turn (`mutation.py`), without it a sample of them: every
barrier and shuffle, and in each function one place of every other kind. Some broken places change nothing that could be
seen; they are listed in equivalent.py with the reason, and the list may hold no other.
"""

from __future__ import annotations

import os
import re

import pytest

from tests.cuda.emulator import COMPILER
from tests.cuda.equivalent import LISTED
from tests.cuda.mutation import SOURCES, mutants, sample, survivors
from tinygpt._ext import cuda

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler (g++, c++ or clang++; CXX names another)"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork(), which the mutants need"),
]

# Those that take longest, some ten seconds and more.
LONG = (
    "attention.cuh",
    "attention.cu",
    "attention_mma.cu",
    "attention_mma.cuh",
    "residual_layer_norm.cu",
    "common.cuh",
    "layer_norm.cuh",
    "clip.cu",
    "gelu.cu",
)
PART = 50
IN_ORDER = (*LONG, *(source for source in SOURCES if source not in LONG))  # so that no worker is left alone with them


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The mutants of a source: a sample of them or, with --exhaustive, all, in parts that the workers share."""
    if "numbers" not in metafunc.fixturenames:
        return
    if metafunc.config.getoption("--exhaustive"):
        starts = [(source, start) for source in IN_ORDER for start in range(0, len(mutants(source)), PART)]
        chosen = [(source, range(start, min(start + PART, len(mutants(source))))) for source, start in starts]
        metafunc.parametrize(("source", "numbers"), chosen, ids=[f"{source}-{start}" for source, start in starts])
    else:
        metafunc.parametrize(("source", "numbers"), [(source, None) for source in IN_ORDER], ids=IN_ORDER)


def test_every_broken_place_fails(source: str, numbers: range | None) -> None:
    """But for those that make no difference, which are listed; and the list holds no other."""
    chosen = sample(source, LISTED) if numbers is None else numbers
    passed = set(survivors(source, chosen, thorough=numbers is not None))
    unnoticed = "\n".join(sorted(passed - LISTED))
    assert not unnoticed, f"nothing notices:\n{unnoticed}\nGive the row better wide=, or list it in EQUIVALENT, and why"
    if numbers is None:
        return
    assert sorted(LISTED & {mutants(source)[i].change for i in numbers} - passed) == []


def test_the_list_names_changes_that_are_made() -> None:
    assert sorted(LISTED - {mutant.change for source in SOURCES for mutant in mutants(source)}) == []


def test_everything_is_broken() -> None:
    """Every source has wrong bounds, and every barrier and shuffle of every source is removed in some mutant.

    All barriers and shuffles are in the sample, and wrong bounds of every source.
    """
    paths = {path.name: path for path in cuda.FOLDER.rglob("*.cu*")}
    for source, file in SOURCES.items():
        assert file in cuda.FILES, f"{source}: BROKEN_FOR in tests/cuda/mutation.py must say which .cu it is broken for"
    for source in SOURCES:
        text = paths[source].read_text(encoding="utf-8")
        kinds = [mutant.kind for mutant in mutants(source)]
        assert kinds.count("barrier") == len(re.findall(r"__sync\w+\(\);", text))
        assert kinds.count("shuffle") == len(re.findall(r"__shfl\w+\(", text))
        sampled = [mutants(source)[i] for i in sample(source, LISTED)]
        assert {"comparison", "loop"} & {mutant.kind for mutant in sampled}
        for mutant in mutants(source):
            if mutant.kind in ("barrier", "shuffle"):
                assert mutant in sampled or mutant.change in LISTED
