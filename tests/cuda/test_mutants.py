"""The tests of the CUDA kernels are checked: a kernel that is broken in one place must fail them.

With --exhaustive every place of every kernel is broken in turn (`mutation.py`), without it a sample of them: every
barrier and shuffle, and in each function one place of every other kind. Some broken places change nothing that could be
seen; they are listed in EQUIVALENT with the reason, and the list may hold no other.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.cuda.emulator import COMPILER
from tests.cuda.mutation import SOURCES, mutants, sample, survivors
from tests.ops import cases
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
    "residual_layer_norm.cu",
    "common.cuh",
    "layer_norm.cuh",
    "clip.cu",
    "gelu.cu",
)
PART = 50
IN_ORDER = (*LONG, *(source for source in SOURCES if source not in LONG))  # so that no worker is left alone with them


LOOP = "for (int j = threadIdx.x * width; j < C; j += blockDim.x"  # over a row

# Why the result is the same all the same. What is in a file of rows of its own has its list there (tests/ops/cases/).
EQUIVALENT: dict[str, list[str]] = {
    "neighbouring threads then write some packs more than once, always the same numbers": [
        f"layer_norm.cuh: {LOOP} * width) {{  ->  {LOOP}) {{  #3",
        f"layer_norm.cu: {LOOP} * width) {{  ->  {LOOP}) {{",
        f"layer_norm.cu: {LOOP} * width)  ->  {LOOP})  #2",
        f"residual_layer_norm.cu: {LOOP} * width) {{  ->  {LOOP}) {{",
        f"residual_layer_norm.cu: {LOOP} * width)  ->  {LOOP})  #2",
        f"softmax.cu: {LOOP} * width) {{  ->  {LOOP}) {{",
        f"softmax.cu: {LOOP} * width) {{  ->  {LOOP}) {{  #3",
        f"softmax.cu: {LOOP} * width) {{  ->  {LOOP}) {{  #4",
        f"softmax.cu: {LOOP} * width) {{  ->  {LOOP}) {{  #6",
        f"embedding.cu: {LOOP} * width) {{  ->  {LOOP}) {{",
    ],
    "all threads then write the same number": [
        "cross_entropy.cu: if (threadIdx.x != 0) return;  ->  if (threadIdx.x != 0) ;",
        "decode_block.cu: if (d != 0) return;  ->  if (d != 0) ;",
        "decode_block.cu: if (group == 0 && last < first + PIECE) {  ->  if (group == 0 && last <= first + PIECE) {",
    ],
    "a pack at the very end is then taken one by one": [
        "gelu.cu: if (at + width <= size)  ->  if (at + width < size)",
        "gelu.cu: if (at + width <= size)  ->  if (at + width < size)  #2",
        "adamw.cu: if (at + width <= tensor.size)  ->  if (at + width < tensor.size)",
        "binary_cross_entropy.cu: if (at + width <= size)  ->  if (at + width < size)",
        "binary_cross_entropy.cu: if (at + width <= size)  ->  if (at + width < size)  #2",
        "clip.cu: if (at + width <= tensor.size)  ->  if (at + width < tensor.size)",
    ],
    "equal numbers: it makes no difference which is taken, or whether exp(0) is multiplied by": [
        "common.cuh: return a > b || a != a ? a : b;  ->  return a >= b || a != a ? a : b;",
        "gelu.cu: return x > 40 ? (T)40 : x < -40 ? (T)-40 : x;  ->  return x >= 40 ? (T)40 : x < -40 ? (T)-40 : x;",
        "binary_cross_entropy.cu: return (x >= 0 ? 1 : e) / (1 + e) - target;"
        "  ->  return (x > 0 ? 1 : e) / (1 + e) - target;",
        "binary_cross_entropy.cu: return fabs(x) * (x > 0 ? 1 - target : target) + log1p(exp(-fabs(x)));"
        "  ->  return fabs(x) * (x >= 0 ? 1 - target : target) + log1p(exp(-fabs(x)));",
        "gelu.cu: const T t = exp(-2 * fabs(u)), r = 1 / (1 + t), s = x > 0 ? r : t * r;"
        "  ->  const T t = exp(-2 * fabs(u)), r = 1 / (1 + t), s = x >= 0 ? r : t * r;",
        "packed.cu: constexpr int PART = width < 4 ? width : 4;  ->  constexpr int PART = width <= 4 ? width : 4;",
        "softmax.cuh: if (!(most_here <= most)) {  ->  if (!(most_here < most)) {",
        "attention.cuh: static constexpr int pack = count < Tile<accum>::PACK ? count : Tile<accum>::PACK;"
        "  ->  static constexpr int pack = count <= Tile<accum>::PACK ? count : Tile<accum>::PACK;",
    ],
    "these are conversions to 16 bits, and packs of eight; test_kernels.py has them": [
        "common.cuh: const unsigned rounded = bits + 0x7fffu + ((bits >> 16) & 1u);"
        "  ->  const unsigned rounded = bits - 0x7fffu + ((bits >> 16) & 1u);",
        "common.cuh: const unsigned rounded = bits + 0x7fffu + ((bits >> 16) & 1u);"
        "  ->  const unsigned rounded = bits + 0x7fffu - ((bits >> 16) & 1u);",
        "common.cuh: y.bits = (unsigned short)(x != x ? 0x7fc0u : rounded >> 16);  ->  ;",
        "common.cuh: y.bits = emulated_narrow_float16(x);  ->  ;",
        "philox.cuh: if (i % 4 == 0) words = philox((unsigned)(j + i) / 4, row, stream, seed);"
        "  ->  if (i % 4 == 0) words = philox((unsigned)(j - i) / 4, row, stream, seed);",
        "philox.cuh: const int place = width % 4 == 0 ? i % 4 : (j + i) % 4;"
        "  ->  const int place = width % 4 == 0 ? i % 4 : (j - i) % 4;",
    ],
    "the second part of lse then makes up for the first": [
        "attention_mma.cu: const float top = shift * LN_2, lost = fmaf(shift, LN_2, -top) + shift * LN_2_REST;"
        "  ->  const float top = shift, lost = fmaf(shift, LN_2, -top) + shift * LN_2_REST;",
        "attention_mma.cu: const float two = near * LOG2_E;  ->  const float two = near;",
    ],
    "a tile of which all is allowed is then looked through key by key": [
        "attention_mma.cu: const bool whole = next <= problem.Tk && (!problem.is_causal || next <= first_row + 1);"
        "  ->  const bool whole = next <= problem.Tk && (!problem.is_causal || next < first_row + 1);",
        "attention_mma.cu: const bool whole = next <= problem.Tk && (!problem.is_causal || next <= first_row + 1);"
        "  ->  const bool whole = next < problem.Tk && (!problem.is_causal || next <= first_row + 1);",
    ],
    "a tile is then copied that nobody looks at": [
        "attention_mma.cu: if (STAGES == 2 && next < stop) {  ->  if (STAGES == 2 && next <= stop) {",
    ],
    "one tile at a time then, and nothing on its way": [
        "attention_mma.cu: static constexpr int STAGES = HEAD <= 64 ? 2 : 1;"
        "  ->  static constexpr int STAGES = HEAD < 64 ? 2 : 1;",
    ],
    "accesses then are of single numbers: slower, and right": [
        "common.cuh: struct alignas(sizeof(real) * width) Pack {  ->  struct alignas(sizeof(real)) Pack {",
    ],
    "no kernel calls block_max twice": [
        "softmax.cuh: __syncthreads();  ->  ;  #2",
    ],
    "the lengths are multiples of a pack: the loop ends at the same place": [
        "attention_mma.cu: for (int d = 0; d < HEAD / 8; d += 2) {  ->  for (int d = 0; d < HEAD / 8 - 1; d += 2) {",
        "attention.cuh: for (int d = 0; d < HEAD; d += PACK) {  ->  for (int d = 0; d < HEAD - 1; d += PACK) {",
        "attention.cuh: for (int key = 0; key < keys; key += PACK) {"
        "  ->  for (int key = 0; key < keys - 1; key += PACK) {",
    ],
    "a pack is then loaded behind the last one of a local array, over what is loaded anew before it is used": [
        "attention.cuh: for (int i = 0; i < rows; i++) load(a + (down() + SIDE * i) * PITCH + d, p[i]);"
        "  ->  for (int i = 0; i <= rows; i++) load(a + (down() + SIDE * i) * PITCH + d, p[i]);",
        "attention.cuh: for (int i = 0; i < rows; i++) load(weights + (down() + SIDE * i) * WEIGHTS_PITCH + key, w[i]);"
        "  ->  for (int i = 0; i <= rows; i++) load(weights + (down() + SIDE * i) * WEIGHTS_PITCH + key, w[i]);",
    ],
    "nobody looks at the fifth bit": [
        "attention.cuh: for (int i = 0; i < 4; i++) bits |= (word_of(words, i) >= threshold ? 1u : 0u) << i;"
        "  ->  for (int i = 0; i <= 4; i++) bits |= (word_of(words, i) >= threshold ? 1u : 0u) << i;",
    ],
    "queries and keys behind the last are zeros in their tiles, and add nothing": [
        "attention.cuh: return query < problem.Tq && key < problem.Tk && (!problem.is_causal || key <= query);"
        "  ->  return query <= problem.Tq && key < problem.Tk && (!problem.is_causal || key <= query);",
        "attention_mma.cu: for (int first_key = 0; first_key < stop; first_key += SIZE) {"
        "  ->  for (int first_key = 0; first_key <= stop; first_key += SIZE) {",
        "attention.cu: for (int first_key = 0; first_key < stop; first_key += KEYS) {"
        "  ->  for (int first_key = 0; first_key <= stop; first_key += KEYS) {",
        "attention.cu: for (int first = problem.is_causal ? first_key : 0; first < problem.Tq; first += SIZE) {"
        "  ->  for (int first = problem.is_causal ? first_key : 0; first <= problem.Tq; first += SIZE) {",
        "attention.cu: for (int first_key = 0; first_key < stop; first_key += SIZE) {"
        "  ->  for (int first_key = 0; first_key <= stop; first_key += SIZE) {",
    ],
}
LISTED = {change for table in (EQUIVALENT, cases.EQUIVALENT) for changes in table.values() for change in changes}


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
    if numbers is None:
        assert survivors(source, sample(source, LISTED), thorough=False) == []
        return
    passed = set(survivors(source, numbers, thorough=True))
    assert sorted(passed - LISTED) == []
    assert sorted(LISTED & {mutants(source)[i].change for i in numbers} - passed) == []


def test_the_list_names_changes_that_are_made() -> None:
    assert sorted(LISTED - {mutant.change for source in SOURCES for mutant in mutants(source)}) == []


def test_everything_is_broken() -> None:
    """Every source has wrong bounds, and every barrier and shuffle of every source is removed in some mutant.

    All barriers and shuffles are in the sample, and wrong bounds of every source.
    """
    folder = Path(cuda.__file__).parent
    for source, file in SOURCES.items():
        assert file in cuda.FILES, f"{source}: BROKEN_FOR in tests/cuda/mutation.py must say which .cu it is broken for"
    for source in SOURCES:
        text = (folder / source).read_text(encoding="utf-8")
        kinds = [mutant.kind for mutant in mutants(source)]
        assert kinds.count("barrier") == len(re.findall(r"__sync\w+\(\);", text))
        assert kinds.count("shuffle") == len(re.findall(r"__shfl\w+\(", text))
        sampled = [mutants(source)[i] for i in sample(source, LISTED)]
        assert {"comparison", "loop"} & {mutant.kind for mutant in sampled}
        for mutant in mutants(source):
            if mutant.kind in ("barrier", "shuffle"):
                assert mutant in sampled or mutant.change in LISTED
