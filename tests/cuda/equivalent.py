"""The broken places of CUDA kernels that change nothing that could be seen, and why (test_mutants.py).

What is in a file of rows of its own has its list there (tests/ops/cases/).
"""

from __future__ import annotations

from tests.ops import cases

LOOP = "for (int j = threadIdx.x * width; j < C; j += blockDim.x"  # over a row

# Why the result is the same all the same.
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
        "cast.cu: for (int pack = 0; pack < PACKS; pack++) {  ->  for (int pack = 0; pack <= PACKS; pack++) {",
        "attention_mma.cuh: for (int pack = threadIdx.x; pack < SIZE * PACKS; pack += WARPS * WARP) {"
        "  ->  for (int pack = threadIdx.x; pack < SIZE * PACKS; pack += WARPS) {",
    ],
    "all threads then write the same number": [
        "attention.cu: if (across() != 0) continue;  ->  if (across() != 0) ;",
        "cross_entropy.cu: if (threadIdx.x != 0) return;  ->  if (threadIdx.x != 0) ;",
        "clip.cu: if (threadIdx.x != 0) return;  ->  if (threadIdx.x != 0) ;",
        "decode_block.cu: if (d != 0) return;  ->  if (d != 0) ;",
        "decode_block.cu: if (group == 0 && last < first + PIECE) {  ->  if (group == 0 && last <= first + PIECE) {",
    ],
    "a pack at the very end is then taken one by one": [
        "gelu.cu: if (at + width <= size)  ->  if (at + width < size)",
        "gelu.cu: if (at + width <= size)  ->  if (at + width < size)  #2",
        "adamw.cu: if (at + width <= tensor.size)  ->  if (at + width < tensor.size)",
        "cast.cu: if (at + width <= tensor.size)  ->  if (at + width < tensor.size)",
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
        "clip.cu: if (max_norm > 0 && norm > max_norm) scale *= max_norm / norm;"
        "  ->  if (max_norm > 0 && norm >= max_norm) scale *= max_norm / norm;",
        "attention.cu: constexpr int LANES = HEAD / width < WARP ? HEAD / width : WARP;"
        "  ->  constexpr int LANES = HEAD / width <= WARP ? HEAD / width : WARP;",
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
        "attention_mma.cuh: const float near = top + log_total;  ->  const float near = top - log_total;",
    ],
    "a tile of which all is allowed is then looked through key by key": [
        "attention_mma.cu: const bool whole = next <= problem.Tk && (!problem.is_causal || next <= first_row + 1);"
        "  ->  const bool whole = next <= problem.Tk && (!problem.is_causal || next < first_row + 1);",
        "attention_mma.cu: const bool whole = next <= problem.Tk && (!problem.is_causal || next <= first_row + 1);"
        "  ->  const bool whole = next < problem.Tk && (!problem.is_causal || next <= first_row + 1);",
        "attention_mma.cu: const bool whole = next <= problem.Tk && (!problem.is_causal || next <= first_row + 1);"
        "  ->  const bool whole = next <= problem.Tk && (!problem.is_causal || next <= first_row - 1);",
        "attention_mma.cu: const bool inside = next <= problem.Tq && own_key + 16 <= problem.Tk;"
        "  ->  const bool inside = next < problem.Tq && own_key + 16 <= problem.Tk;",
        "attention_mma.cu: const bool inside = next <= problem.Tq && own_key + 16 <= problem.Tk;"
        "  ->  const bool inside = next <= problem.Tq && own_key + 16 < problem.Tk;",
        "attention_mma.cu: const bool whole = inside && (!problem.is_causal || own_key + 16 <= first + start + 1);"
        "  ->  const bool whole = inside && (!problem.is_causal || own_key + 16 < first + start + 1);",
        "attention_mma.cu: const bool whole = inside && (!problem.is_causal || own_key + 16 <= first + start + 1);"
        "  ->  const bool whole = inside && (!problem.is_causal || own_key + 16 <= first - start + 1);",
        "attention_mma.cu: const bool whole = inside && (!problem.is_causal || own_key + 16 <= first + start + 1);"
        "  ->  const bool whole = inside && (!problem.is_causal || own_key + 16 <= first + start - 1);",
        "attention_mma.cu: const bool inside = next <= problem.Tk && first_row + 16 <= problem.Tq;"
        "  ->  const bool inside = next < problem.Tk && first_row + 16 <= problem.Tq;",
        "attention_mma.cu: const bool inside = next <= problem.Tk && first_row + 16 <= problem.Tq;"
        "  ->  const bool inside = next <= problem.Tk && first_row + 16 < problem.Tq;",
        "attention_mma.cu: const bool whole = inside && (!problem.is_causal || first_key + start + 15 <= first_row);"
        "  ->  const bool whole = inside && (!problem.is_causal || first_key + start + 15 < first_row);",
    ],
    "a tile is then copied that nobody looks at": [
        "attention_mma.cu: if (STAGES == 2 && next < stop) {  ->  if (STAGES == 2 && next <= stop) {",
        "attention_mma.cu: if (STAGES == 1 && next < stop) {  ->  if (STAGES == 1 && next <= stop) {",
        "attention_mma.cu: if (begin < problem.Tq) copy_tile(begin, 0);"
        "  ->  if (begin <= problem.Tq) copy_tile(begin, 0);",
        "attention_mma.cu: if (STAGES == 2 && next < problem.Tq) copy_tile(next, 1 - stage);"
        "  ->  if (STAGES == 2 && next <= problem.Tq) copy_tile(next, 1 - stage);",
        "attention_mma.cu: if (STAGES == 1 && next < problem.Tq) copy_tile(next, 0);"
        "  ->  if (STAGES == 1 && next <= problem.Tq) copy_tile(next, 0);",
        "attention_mma.cu: if (STAGES == 2 && next < stop) copy_tile(next, 1 - stage);"
        "  ->  if (STAGES == 2 && next <= stop) copy_tile(next, 1 - stage);",
        "attention_mma.cu: if (STAGES == 1 && next < stop) copy_tile(next, 0);"
        "  ->  if (STAGES == 1 && next <= stop) copy_tile(next, 0);",
    ],
    "one tile at a time then, and nothing on its way": [
        "attention_mma.cuh: static constexpr int STAGES = HEAD <= 64 ? 2 : 1;"
        "  ->  static constexpr int STAGES = HEAD < 64 ? 2 : 1;",
    ],
    "accesses then are of single numbers: slower, and right": [
        "common.cuh: struct alignas(sizeof(real) * width) Pack {  ->  struct alignas(sizeof(real)) Pack {",
    ],
    "no kernel calls block_max twice": [
        "softmax.cuh: __syncthreads();  ->  ;  #2",
    ],
    "the lengths are multiples of a pack: the loop ends at the same place": [
        "attention_mma.cuh: for (int d = 0; d < HEAD / 8; d += 2) {  ->  for (int d = 0; d < HEAD / 8 - 1; d += 2) {",
        "attention.cuh: for (int d = 0; d < HEAD; d += PACK) {  ->  for (int d = 0; d < HEAD - 1; d += PACK) {",
        "attention.cuh: for (int key = 0; key < keys; key += PACK) {"
        "  ->  for (int key = 0; key < keys - 1; key += PACK) {",
        "attention_mma.cuh: for (int step = 0; step < HEAD / 16; step += 2) {"
        "  ->  for (int step = 0; step < HEAD / 16 - 1; step += 2) {",
        "attention_mma.cu: for (int n = 0; n < SIZE / 8; n += 2)  ->  for (int n = 0; n < SIZE / 8 - 1; n += 2)",
        "attention_mma.cu: for (int start = 0; start < SIZE; start += 16) {"
        "  ->  for (int start = 0; start < SIZE - 1; start += 16) {",
        "attention_mma.cu: for (int start = 0; start < SIZE; start += 16) {"
        "  ->  for (int start = 0; start < SIZE - 1; start += 16) {  #2",
    ],
    "a pack is then loaded behind the last one of a local array, over what is loaded anew before it is used": [
        "attention.cuh: for (int i = 0; i < rows; i++) load(a + (down() + SIDE * i) * PITCH + d, p[i]);"
        "  ->  for (int i = 0; i <= rows; i++) load(a + (down() + SIDE * i) * PITCH + d, p[i]);",
        "attention.cuh: for (int i = 0; i < rows; i++) load(weights + (down() + SIDE * i) * WEIGHTS_PITCH + key, w[i]);"
        "  ->  for (int i = 0; i <= rows; i++) load(weights + (down() + SIDE * i) * WEIGHTS_PITCH + key, w[i]);",
        "attention_mma.cu: for (int n = 0; n < SIZE / 8; n++)  ->  for (int n = 0; n <= SIZE / 8; n++)",
        "attention_mma.cu: for (int n = 0; n < 2; n++) {  ->  for (int n = 0; n <= 2; n++) {  #2",
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
        "attention_mma.cu: for (int first_key = 0; first_key < stop; first_key += SIZE) {"
        "  ->  for (int first_key = 0; first_key <= stop; first_key += SIZE) {  #2",
    ],
    "rows beyond the end are then taken for allowed, and never stored": [
        "attention_mma.cu: const bool inside = next <= problem.Tq && own_key + 16 <= problem.Tk;"
        "  ->  const bool inside = next <= problem.Tq && own_key - 16 <= problem.Tk;",
        "attention_mma.cu: const bool inside = next <= problem.Tk && first_row + 16 <= problem.Tq;"
        "  ->  const bool inside = next <= problem.Tk && first_row - 16 <= problem.Tq;",
    ],
    "scores that the mask hides are then computed, and hidden": [
        "attention_mma.cu: const int seen = problem.is_causal ? first_row + 16 - first_key : SIZE;"
        "  ->  const int seen = problem.is_causal ? first_row + 16 + first_key : SIZE;",
        "attention_mma.cu: if (8 * n < seen) row_by_row<HEAD>(s[n], q_here, k_tile, 8 * n);"
        "  ->  if (8 * n <= seen) row_by_row<HEAD>(s[n], q_here, k_tile, 8 * n);",
        "attention_mma.cu: if (8 * n < seen) row_by_row<HEAD>(s[n], q_here, k_tile, 8 * n);"
        "  ->  if (8 < seen) row_by_row<HEAD>(s[n], q_here, k_tile, 8 * n);",
        "attention_mma.cu: if (8 * n < seen) add_weighted<HEAD>(sums, s[n], s[n + 1], v_tile, 8 * n);"
        "  ->  if (8 * n <= seen) add_weighted<HEAD>(sums, s[n], s[n + 1], v_tile, 8 * n);",
        "attention_mma.cu: if (8 * n < seen) add_weighted<HEAD>(sums, s[n], s[n + 1], v_tile, 8 * n);"
        "  ->  if (8 < seen) add_weighted<HEAD>(sums, s[n], s[n + 1], v_tile, 8 * n);",
        "attention_mma.cu: if (problem.is_causal && first + start + 15 < own_key) continue;"
        "  ->  if (problem.is_causal && first + start + 15 < own_key) ;",
        "attention_mma.cu: if (problem.is_causal && first_key + start >= first_row + 16) continue;"
        "  ->  if (problem.is_causal && first_key + start > first_row + 16) continue;",
        "attention_mma.cu: if (problem.is_causal && first_key + start >= first_row + 16) continue;"
        "  ->  if (problem.is_causal && first_key + start >= first_row + 16) ;",
        "attention_mma.cu: if (problem.is_causal && first_key + start >= first_row + 16) continue;"
        "  ->  if (problem.is_causal && first_key - start >= first_row + 16) continue;",
    ],
    "never equal: one is a multiple of 16, the other 15 more": [
        "attention_mma.cu: if (problem.is_causal && first + start + 15 < own_key) continue;"
        "  ->  if (problem.is_causal && first + start + 15 <= own_key) continue;",
    ],
    "the condition in the loop holds for no more than that": [
        "attention_mma.cuh: for (int d = 0; d < HEAD / 8; d++)  ->  for (int d = 0; d <= HEAD / 8; d++)",
    ],
}

LISTED = {change for table in (EQUIVALENT, cases.EQUIVALENT) for changes in table.values() for change in changes}
