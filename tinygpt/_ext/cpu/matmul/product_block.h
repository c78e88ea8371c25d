/* The building blocks of a matrix product: packing strips of A and panels of B, and multiplying a strip by some panels.
 * product.h says why the matrices are split like this, and divides the work among the threads.
 */
#ifndef TINYGPT_PRODUCT_BLOCK_H
#define TINYGPT_PRODUCT_BLOCK_H

#include <stddef.h>
#include <string.h>

#include "attention.h"
#include "bfloat16.h"

/* Whether a step of a sum is one instruction that is written as such. The compiler changes the order of other sums in a loop
 * that is written out. */
#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#define TG_FUSED 1
#else
#define TG_FUSED 0
#endif

/* Of AVX-512's 32 registers, 28 hold sums, two hold a row of the panel, one holds an element of the strip; of AVX2's 16,
 * 12 hold sums. */
enum {
    PRODUCT_LANES = TG_VECTOR_BYTES / (int)sizeof(float),
    PRODUCT_ROWS = TG_REGISTERS == 32 ? 14 : 6,
    PRODUCT_COLUMNS = 2 * PRODUCT_LANES,
    PRODUCT_STEP = TG_REGISTERS == 32 ? 16 : 8, /* from one k to the next in a packed strip: a cache line or half of it */
    PRODUCT_DEPTH = TG_REGISTERS == 32 ? 640 : 320,
    PRODUCT_STRIDE = PRODUCT_DEPTH + 16,  /* between the rows of a copied strip */
    PRODUCT_STRAIGHT = PRODUCT_LANES == 16, /* rows may be used where they lie: with AVX2 copying them is as fast */
    PRODUCT_STEPS = !TG_FUSED ? 1 : TG_REGISTERS == 32 ? 2 : 4, /* of k, per turn of the innermost loop */
    PRODUCT_GROUP = 3,                    /* rows where they lie that share a register for their address */
    PRODUCT_BAND = 224 / PRODUCT_ROWS,    /* maximum number of strips packed together */
    PRODUCT_PART = 256 / PRODUCT_COLUMNS, /* maximum number of panels packed together */
    PRODUCT_SLICE = 64,                   /* steps of k per task, when all of A is packed */
    PRODUCT_SHARED = 1 << 23,             /* maximum size of a B packed for all threads: no cache holds more */
    PRODUCT_TILE = 8,                     /* steps of k that are packed at a time from a transposed A */
    /* Prefetch distances, in steps of k: of rows to pack, of a packed strip (from L3), of a panel (from L2). */
    AHEAD_ROWS = 8,
    AHEAD_STRIP = 32,
    AHEAD_PANEL = 24
};

/* With `pairs` the factors are in bfloat16, and a word of 32 bits, which is called a float here and below, holds two
 * neighbours along k: then K, depths and strides count words. Where neighbours along k are a row or column apart in
 * memory, a_k or b_k counts numbers of 16 bits, and packing makes the words. */
struct tg_gemm {
    ptrdiff_t M, N, K;
    const float *a, *b;
    ptrdiff_t a_row, a_k, b_k, b_column; /* A(i, k) = a[i * a_row + k * a_k], B(k, j) = b[k * b_k + j * b_column] */
    float *c;                            /* NULL: C is `rounded` */
    ptrdiff_t c_row;
    int add;                             /* C += A . B instead of C = A . B */
    int pairs, half;                     /* bfloat16; its last word has one number instead of two */
    uint16_t *rounded;                   /* C in bfloat16, whose sums are floats until they are whole */
    int failed;                          /* a thread ran out of memory */
    int as_they_lie;                     /* A's rows are used in place, not copied */
    ptrdiff_t depth;                     /* length of a piece of k; the last may be shorter */
    ptrdiff_t strips, rows;              /* strips of A, and rows per strip; the last may have fewer */
    ptrdiff_t panels, part;              /* panels of B, and panels per part */
    ptrdiff_t band, bands;               /* strips per band, and bands */
    float *packed;                       /* the operand that is packed once for all threads, or NULL */
};

static inline ptrdiff_t tg_least(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
static inline ptrdiff_t tg_ceil_div(ptrdiff_t n, ptrdiff_t size) { return (n + size - 1) / size; }

/* Floats from one packed panel, or strip, to the next: an odd number of cache lines, because lines whose distance
 * is a power of two map to the same few cache sets. */
static inline ptrdiff_t tg_panel_size(ptrdiff_t depth) { return depth * PRODUCT_COLUMNS + 16; }
static inline ptrdiff_t tg_strip_size(ptrdiff_t depth) { return depth * PRODUCT_STEP + 16; }

/* Packing --------------------------------------------------------------------------------------------------- */

/* Transpose a square of PRODUCT_LANES rows: swap the off-diagonal quarters of ever smaller squares. */
static inline void tg_transpose(float *out, ptrdiff_t out_stride, const float *x, ptrdiff_t stride) {
    enum { L = PRODUCT_LANES };
#if defined(__GNUC__) && !defined(__clang__)
    tg_vec_float row[L];
    for (int i = 0; i < L; i++) row[i] = *(const tg_vec_float *)(x + i * stride);
#pragma GCC unroll 4
    for (int half = L / 2; half > 0; half /= 2) {
        tg_integers_float low, high;
        for (int e = 0; e < L; e++) {
            low[e] = e & half ? L + e - half : e;
            high[e] = e & half ? L + e : e + half;
        }
#pragma GCC unroll 16
        for (int i = 0; i < L; i++)
            if (!(i & half)) {
                const tg_vec_float first = row[i], second = row[i + half];
                row[i] = __builtin_shuffle(first, second, low);
                row[i + half] = __builtin_shuffle(first, second, high);
            }
    }
    for (int i = 0; i < L; i++) *(tg_vec_float *)(out + i * out_stride) = row[i];
#else
    for (int j = 0; j < L; j++)
        for (int i = 0; i < L; i++) out[j * out_stride + i] = x[i * stride + j];
#endif
}

typedef uint32_t tg_word __attribute__((may_alias));

/* `count` words, each of a number of row k and one of the row below it, which are `stride` apart in a matrix of 16-bit
 * numbers. k counts words; `half`: the row below does not exist, and zeros take its place. */
static inline void tg_interleave(float *out, const uint16_t *row, ptrdiff_t stride, int half, ptrdiff_t count) {
    const uint16_t *below = row + stride;
    tg_word *word = (tg_word *)out;
    if (half)
        for (ptrdiff_t j = 0; j < count; j++) word[j] = row[j];
    else
        for (ptrdiff_t j = 0; j < count; j++) word[j] = row[j] | (uint32_t)below[j] << 16;
}

/* A panel of a transposed matrix: B(k, j) = b[k + j * b_column]. */
static void tg_pack_transposed(float *out, const float *b, ptrdiff_t b_column, ptrdiff_t depth) {
    ptrdiff_t k = 0;
    for (; k + PRODUCT_LANES <= depth; k += PRODUCT_LANES)
        for (int j = 0; j < PRODUCT_COLUMNS; j += PRODUCT_LANES)
            tg_transpose(out + k * PRODUCT_COLUMNS + j, PRODUCT_COLUMNS, b + k + j * b_column, b_column);
    for (; k < depth; k++)
        for (int j = 0; j < PRODUCT_COLUMNS; j++) out[k * PRODUCT_COLUMNS + j] = b[k + j * b_column];
}

/* tg_pack_panels for a matrix in bfloat16 whose rows are contiguous. */
static void tg_pack_panels_of_pairs(const struct tg_gemm *g, float *out, ptrdiff_t first, ptrdiff_t last, ptrdiff_t k0,
                                    ptrdiff_t depth) {
    const uint16_t *b = (const uint16_t *)g->b + 2 * k0 * g->b_k;
    const ptrdiff_t size = tg_panel_size(depth);
    for (ptrdiff_t k = 0; k < depth; k++) {
        const uint16_t *row = b + 2 * k * g->b_k, *coming = row + 2 * AHEAD_ROWS * g->b_k;
        const int half = g->half && k0 + k == g->K - 1;
        for (ptrdiff_t p = first; p < last; p++) {
            float *words = out + (p - first) * size + k * PRODUCT_COLUMNS;
            const ptrdiff_t j = p * PRODUCT_COLUMNS, columns = tg_least(PRODUCT_COLUMNS, g->N - j);
            __builtin_prefetch(coming + j);
            __builtin_prefetch(coming + j + g->b_k);
            if (columns == PRODUCT_COLUMNS) {
                tg_interleave(words, row + j, g->b_k, half, PRODUCT_COLUMNS);
            } else {
                memset(words, 0, PRODUCT_COLUMNS * sizeof(float));
                tg_interleave(words, row + j, g->b_k, half, columns);
            }
        }
    }
}

/* Pack panels first .. last - 1 of B, rows k0 .. k0 + depth - 1: 32 adjacent columns per k, zero beyond the last
 * column. */
static void tg_pack_panels(const struct tg_gemm *g, float *out, ptrdiff_t first, ptrdiff_t last, ptrdiff_t k0,
                           ptrdiff_t depth) {
    if (g->pairs && g->b_column == 1) {
        tg_pack_panels_of_pairs(g, out, first, last, k0, depth);
        return;
    }
    const float *b = g->b + k0 * g->b_k + first * PRODUCT_COLUMNS * g->b_column;
    const ptrdiff_t size = tg_panel_size(depth), columns = g->N - first * PRODUCT_COLUMNS;
    const ptrdiff_t whole = tg_least(columns / PRODUCT_COLUMNS, last - first);
    if (g->b_column == 1) {
        for (ptrdiff_t k = 0; k < depth; k++) {
            const float *row = b + k * g->b_k, *coming = row + AHEAD_ROWS * g->b_k;
            for (ptrdiff_t p = 0; p < whole; p++) {
                __builtin_prefetch(coming + p * PRODUCT_COLUMNS);
                __builtin_prefetch(coming + p * PRODUCT_COLUMNS + PRODUCT_LANES);
                memcpy(out + p * size + k * PRODUCT_COLUMNS, row + p * PRODUCT_COLUMNS, PRODUCT_COLUMNS * sizeof(float));
            }
        }
    } else {
        for (ptrdiff_t p = 0; p < whole; p++)
            tg_pack_transposed(out + p * size, b + p * PRODUCT_COLUMNS * g->b_column, g->b_column, depth);
    }
    if (whole < last - first) {
        const float *from = b + whole * PRODUCT_COLUMNS * g->b_column;
        const ptrdiff_t left = columns - whole * PRODUCT_COLUMNS;
        for (ptrdiff_t k = 0; k < depth; k++)
            for (ptrdiff_t j = 0; j < PRODUCT_COLUMNS; j++)
                out[whole * size + k * PRODUCT_COLUMNS + j] = j < left ? from[k * g->b_k + j * g->b_column] : 0;
    }
}

/* Pack strips first .. last - 1 of a transposed A, A(i, k) = a[i + k * a_k], columns k0 .. k0 + depth - 1: the
 * strip's rows for each k. Packed strips are `size` apart. Some steps of k are packed strip by strip, so that what is
 * written lies together: one step at a time would write to as many pages as there are strips. */
static void tg_pack_strips(const struct tg_gemm *g, float *out, ptrdiff_t size, ptrdiff_t first, ptrdiff_t last,
                           ptrdiff_t k0, ptrdiff_t depth) {
    const ptrdiff_t from = first * g->rows, to = tg_least(last * g->rows, g->M);
    for (ptrdiff_t k = 0; k < depth; k += PRODUCT_TILE) {
        const ptrdiff_t steps = tg_least(PRODUCT_TILE, depth - k);
        const float *rows = g->a + (k0 + k) * g->a_k;
        const uint16_t *pairs = (const uint16_t *)g->a + 2 * (k0 + k) * g->a_k;
        for (ptrdiff_t s = first; s < last; s++) {
            const ptrdiff_t i = s * g->rows, left = g->M - i;
            float *packed = out + (s - first) * size + k * PRODUCT_STEP;
            for (ptrdiff_t step = 0; step < steps; step++, packed += PRODUCT_STEP) {
                if (g->pairs) {
                    const uint16_t *column = pairs + 2 * step * g->a_k + i;
                    const int half = g->half && k0 + k + step == g->K - 1;
                    __builtin_prefetch(column + 2 * PRODUCT_TILE * g->a_k);
                    __builtin_prefetch(column + (2 * PRODUCT_TILE + 1) * g->a_k);
                    if (left >= PRODUCT_STEP)
                        tg_interleave(packed, column, g->a_k, half, PRODUCT_STEP);
                    else
                        tg_interleave(packed, column, g->a_k, half, tg_least(left, g->rows));
                    continue;
                }
                const float *column = rows + step * g->a_k + i;
                __builtin_prefetch(column + PRODUCT_TILE * g->a_k);
                if (left >= PRODUCT_STEP) /* includes rows of the next strip, unused: copying a whole vector is faster */
                    memcpy(packed, column, PRODUCT_STEP * sizeof(float));
                else
                    memcpy(packed, column, (size_t)tg_least(left, g->rows) * sizeof(float));
            }
        }
    }
}

/* Multiplying ----------------------------------------------------------------------------------------------- */

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
static inline tg_vec_float tg_add_product_of(tg_vec_float sum, const float *factor, tg_vec_float numbers) {
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
            left[i] = tg_add_product_of(left[i], factor, b_left);
            right[i] = tg_add_product_of(right[i], factor, b_right);
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
