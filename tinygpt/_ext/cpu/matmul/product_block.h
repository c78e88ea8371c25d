/* The innermost part of a matrix product: multiplying a strip of A by some panels of B, which product_pack.h packs.
 * product.h says why the matrices are split like this, and divides the work among the threads.
 */
#ifndef TINYGPT_PRODUCT_BLOCK_H
#define TINYGPT_PRODUCT_BLOCK_H

#include "product_pack.h"

/* Store the first `columns` columns of a block. Not inlined, and its rows not unrolled: only the last panel of a matrix
 * comes here, but its code would be most of each block's. */
static __attribute__((noinline)) void tg_store_columns(int rows, const float *restrict block, float *restrict c,
                                                       ptrdiff_t c_row, ptrdiff_t columns, int add) {
    for (int i = 0; i < rows; i++, block += PRODUCT_COLUMNS, c += c_row)
        for (ptrdiff_t j = 0; j < columns; j++) c[j] = add ? c[j] + block[j] : block[j];
}

/* sum += the products of the two numbers of each word, with the roundings of the instruction: the second product is
 * added first, each sum is rounded to the nearest float, and floats below 2^-126 count as zero. */
static inline tg_vec_float tg_add_pairs(tg_vec_float sum, const float *word, tg_vec_float words) {
#if TG_PAIRS
    const __m512i factor = _mm512_castps_si512(_mm512_set1_ps(*word));
    __asm__("vdpbf16ps %1, %2, %0" : "+v"(sum) : "v"(factor), "v"(words));
#endif
    return sum;
}

/* sum += *factor * numbers. Written as an instruction: the compiler would move eight of the sums to other registers at every
 * step, and an Intel processor that begins four instructions a cycle has no time for that. */
static inline tg_vec_float tg_add_product(tg_vec_float sum, const float *factor, tg_vec_float numbers) {
#if TG_FUSED
#ifdef __AVX512F__
    const tg_vec_float factors = _mm512_set1_ps(*factor);
#else
    const tg_vec_float factors = _mm256_set1_ps(*factor);
#endif
    __asm__("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(factors), "v"(numbers));
    return sum;
#else
    return sum + *factor * numbers;
#endif
}

/* The same, but the instruction reads its factor itself, where there is one that can. */
static inline tg_vec_float tg_add_product_reading(tg_vec_float sum, const float *factor, tg_vec_float numbers) {
#ifdef __AVX512F__
    __asm__("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(numbers), "m"(*factor));
    return sum;
#else
    return tg_add_product(sum, factor, numbers);
#endif
}

/* Add a row of the panel, times each row's factor, to the sums. rows_at: where the factors of every `group` rows are, which
 * are `row_stride` apart.
 *
 * A core of Intel's begins four instructions a cycle, two while its other hardware thread is busy, and at most two of them
 * read. A row of a block takes three: its factor is read and multiplied twice. It takes two if both multiplications read
 * it; so they do in some rows, before reading becomes the limit. It is one in a packed strip, which comes from afar. */
static inline __attribute__((always_inline)) void tg_step(const int pairs, const int rows, tg_vec_float *left,
                                                          tg_vec_float *right, const float *const *rows_at,
                                                          const int group, const ptrdiff_t row_stride,
                                                          const ptrdiff_t offset, const float *panel_row) {
    __builtin_prefetch(panel_row + AHEAD_PANEL * PRODUCT_COLUMNS);
    if (PRODUCT_LANES == 16) __builtin_prefetch(panel_row + AHEAD_PANEL * PRODUCT_COLUMNS + PRODUCT_LANES);
    const tg_vec_float b_left = *(const tg_vec_float *)panel_row;
    const tg_vec_float b_right = *(const tg_vec_float *)(panel_row + PRODUCT_LANES);
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++) {
        const float *factor = rows_at[i / group] + i % group * row_stride + offset;
        if (pairs) {
            left[i] = tg_add_pairs(left[i], factor, b_left);
            right[i] = tg_add_pairs(right[i], factor, b_right);
        } else if (group < rows && i % group == 0) {
            left[i] = tg_add_product_reading(left[i], factor, b_left);
            right[i] = tg_add_product_reading(right[i], factor, b_right);
        } else {
            left[i] = tg_add_product(left[i], factor, b_left);
            right[i] = tg_add_product(right[i], factor, b_right);
        }
    }
}

/* One block of C, at most 32 columns. The number of rows and the strip's strides are compile-time constants. */
static inline __attribute__((always_inline)) void tg_multiply_block(const int pairs, const int rows, ptrdiff_t depth,
                                                           const float *restrict strip,
                                                           const ptrdiff_t row_stride, const ptrdiff_t k_stride,
                                                           const float *restrict panel, float *restrict c,
                                                           ptrdiff_t c_row, ptrdiff_t columns, int add) {
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < PRODUCT_COLUMNS; v += 16) __builtin_prefetch(c + i * c_row + v, 1, 2);
    /* An address of two registers would make two instructions of a multiply-add that reads, so the first row of each group
     * has a register of its own. */
    const int group = PRODUCT_STRAIGHT && k_stride == 1 ? PRODUCT_GROUP : rows, groups = (rows + group - 1) / group;
    const float *rows_at[PRODUCT_ROWS];
#pragma GCC unroll 14
    for (int g = 0; g < groups; g++) rows_at[g] = strip + g * group * row_stride;
    tg_vec_float left[PRODUCT_ROWS], right[PRODUCT_ROWS];
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++) left[i] = right[i] = (tg_vec_float){0};
    const float *const end = panel + depth * PRODUCT_COLUMNS;
    for (; panel + PRODUCT_STEPS * PRODUCT_COLUMNS <= end; panel += PRODUCT_STEPS * PRODUCT_COLUMNS) {
#pragma GCC unroll 4
        for (int step = 0; step < PRODUCT_STEPS; step++) {
            if (k_stride > 1) __builtin_prefetch(rows_at[0] + (step + AHEAD_STRIP) * k_stride);
            tg_step(pairs, rows, left, right, rows_at, group, row_stride, step * k_stride, panel + step * PRODUCT_COLUMNS);
        }
#pragma GCC unroll 14
        for (int g = 0; g < groups; g++) {
            rows_at[g] += PRODUCT_STEPS * k_stride;
            __asm__("" : "+r"(rows_at[g])); /* or the compiler would use an index again */
        }
    }
#pragma GCC unroll 1 /* a quarter less code */
    for (; panel < end; panel += PRODUCT_COLUMNS) {
        tg_step(pairs, rows, left, right, rows_at, group, row_stride, 0, panel);
#pragma GCC unroll 14
        for (int g = 0; g < groups; g++) rows_at[g] += k_stride;
    }
    if (columns >= PRODUCT_COLUMNS) {
#pragma GCC unroll 14
        for (int i = 0; i < rows; i++) {
            tg_vec_float *to = (tg_vec_float *)(c + i * c_row), *on = (tg_vec_float *)(c + i * c_row + PRODUCT_LANES);
            if (add) {
                left[i] += *to;
                right[i] += *on;
            }
            *to = left[i];
            *on = right[i];
        }
        return;
    }
    float block[PRODUCT_ROWS * PRODUCT_COLUMNS] __attribute__((aligned(64)));
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++) {
        *(tg_vec_float *)(block + i * PRODUCT_COLUMNS) = left[i];
        *(tg_vec_float *)(block + i * PRODUCT_COLUMNS + PRODUCT_LANES) = right[i];
    }
    tg_store_columns(rows, block, c, c_row, columns, add);
}

/* The strip of PRODUCT_ROWS rows that will be copied next. */
struct tg_coming {
    const float *rows; /* NULL: no such strip */
    ptrdiff_t stride;
};

/* Prefetch some rows of the next strip: after `turns` turns, all of it. */
static inline void tg_ask(struct tg_coming coming, ptrdiff_t depth, ptrdiff_t turn, ptrdiff_t turns) {
    if (!coming.rows) return;
    for (ptrdiff_t r = turn * PRODUCT_ROWS / turns; r < (turn + 1) * PRODUCT_ROWS / turns; r++)
        for (ptrdiff_t k = 0; k < depth; k += 16) __builtin_prefetch(coming.rows + r * coming.stride + k, 0, 2);
}

/* Multiply a strip by one panel: packed, or rows that are `row_stride` apart (PRODUCT_STRIDE with AVX2). Not inlined: the
 * compiler would otherwise copy the loop over the panels into each case, 130 KB of code instead of 38, which took a quarter
 * of its whole time. */
#define TG_STRIP(pairs, rows)                                                                                          \
    case rows:                                                                                                         \
        if (rows > PRODUCT_ROWS) break;                                                                                \
        if (packed) tg_multiply_block(pairs, rows, depth, strip, 1, PRODUCT_STEP, panel, c, c_row, columns, add);      \
        else tg_multiply_block(pairs, rows, depth, strip, stride, 1, panel, c, c_row, columns, add);                   \
        break;
#define TG_STRIPS(pairs)                                                                                               \
    switch (rows) {                                                                                                    \
        TG_STRIP(pairs, 1) TG_STRIP(pairs, 2) TG_STRIP(pairs, 3) TG_STRIP(pairs, 4) TG_STRIP(pairs, 5)                 \
        TG_STRIP(pairs, 6) TG_STRIP(pairs, 7) TG_STRIP(pairs, 8) TG_STRIP(pairs, 9) TG_STRIP(pairs, 10)                \
        TG_STRIP(pairs, 11) TG_STRIP(pairs, 12) TG_STRIP(pairs, 13) TG_STRIP(pairs, 14)                                \
    }

static __attribute__((noinline)) void tg_strip_by_panel(ptrdiff_t rows, ptrdiff_t depth, const float *strip, int packed,
                                                        ptrdiff_t row_stride, const float *panel, float *c,
                                                        ptrdiff_t c_row, ptrdiff_t columns, int add) {
    const ptrdiff_t stride = PRODUCT_STRAIGHT ? row_stride : PRODUCT_STRIDE; /* a constant where it can be one */
    TG_STRIPS(0)
}

/* The same for words of two numbers; only where tg_has_pairs. */
static __attribute__((noinline)) void tg_strip_by_panel_of_pairs(ptrdiff_t rows, ptrdiff_t depth, const float *strip,
                                                                 int packed, ptrdiff_t row_stride, const float *panel,
                                                                 float *c, ptrdiff_t c_row, ptrdiff_t columns, int add) {
#if TG_PAIRS
    const ptrdiff_t stride = PRODUCT_STRAIGHT ? row_stride : PRODUCT_STRIDE;
    TG_STRIPS(1)
#endif
}

/* Multiply a strip by the panels of `columns` columns. */
static void tg_strip(int pairs, ptrdiff_t rows, ptrdiff_t depth, const float *strip, int packed, ptrdiff_t row_stride,
                     const float *panel, float *c, ptrdiff_t c_row, ptrdiff_t columns, int add, struct tg_coming coming) {
    const ptrdiff_t panels = tg_ceil_div(columns, PRODUCT_COLUMNS);
    for (ptrdiff_t p = 0; p < panels; p++, panel += tg_panel_size(depth), c += PRODUCT_COLUMNS) {
        tg_ask(coming, depth, p, panels);
        const ptrdiff_t left = columns - p * PRODUCT_COLUMNS;
        if (pairs) tg_strip_by_panel_of_pairs(rows, depth, strip, packed, row_stride, panel, c, c_row, left, add);
        else tg_strip_by_panel(rows, depth, strip, packed, row_stride, panel, c, c_row, left, add);
    }
}

/* Floats between two rows of the sums of a C in bfloat16, for a part, and how many a task needs for `strips` strips:
 * one strip's if each is whole after one piece of k. */
static inline ptrdiff_t tg_sums_row(const struct tg_gemm *g) { return g->part * PRODUCT_COLUMNS + 16; }
static inline ptrdiff_t tg_sums_size(const struct tg_gemm *g, ptrdiff_t strips) {
    return (g->depth < g->K ? strips : 1) * g->rows * tg_sums_row(g);
}

/* Whether a strip may be used where A's rows lie: not if more of its lines than the L1 cache has ways share a set, as
 * where the rows are a multiple of 4 KB apart. */
static int tg_rows_spread(ptrdiff_t a_row, ptrdiff_t depth) {
    enum { SETS = 64, WAYS = 8, LINE = 16 };
    int lines[SETS] = {0}, most = 0;
    for (ptrdiff_t r = 0; r < PRODUCT_ROWS; r++)
        for (ptrdiff_t k = 0; k < depth; k += LINE) {
            const int there = ++lines[(r * a_row + k) / LINE % SETS];
            if (there > most) most = there;
        }
    return most <= WAYS + 2;
}

/* Multiply the piece of strip s that starts at k0 by the panels of a part. strip: packed, or NULL for A's rows. sums: for a
 * C in bfloat16, of the strips from `first` on; the last piece makes them whole. */
static void tg_multiply(const struct tg_gemm *g, ptrdiff_t s, ptrdiff_t k0, const float *strip, const float *panels,
                        ptrdiff_t part, float *sums, ptrdiff_t first) {
    const ptrdiff_t i = s * g->rows, rows = tg_least(g->rows, g->M - i), depth = tg_least(g->depth, g->K - k0);
    const ptrdiff_t j = part * g->part * PRODUCT_COLUMNS, columns = tg_least(g->N - j, g->part * PRODUCT_COLUMNS);
    const float *row = g->a + i * g->a_row + k0;
    const int packed = strip != NULL, straight = PRODUCT_STRAIGHT && g->as_they_lie;
    float copy[PRODUCT_ROWS * PRODUCT_STRIDE] __attribute__((aligned(64)));
    struct tg_coming coming = {NULL, g->a_row};
    if (!packed) {
        if (i + rows + PRODUCT_ROWS <= g->M) coming.rows = row + rows * g->a_row;
        for (ptrdiff_t r = 0; !straight && r < rows; r++)
            memcpy(copy + r * PRODUCT_STRIDE, row + r * g->a_row, (size_t)depth * sizeof(float));
        strip = straight ? row : copy;
    }
    const ptrdiff_t row_stride = straight ? g->a_row : PRODUCT_STRIDE;
    if (!g->rounded) {
        tg_strip(g->pairs, rows, depth, strip, packed, row_stride, panels, g->c + i * g->c_row + j, g->c_row, columns,
                 g->add || k0 > 0, coming);
        return;
    }
    sums += g->depth < g->K ? (s - first) * g->rows * tg_sums_row(g) : 0;
    tg_strip(g->pairs, rows, depth, strip, packed, row_stride, panels, sums, tg_sums_row(g), columns, k0 > 0, coming);
    for (ptrdiff_t r = 0; k0 + depth == g->K && r < rows; r++)
        tg_narrow(g->rounded + (i + r) * g->c_row + j, sums + r * tg_sums_row(g), columns);
}

#endif
