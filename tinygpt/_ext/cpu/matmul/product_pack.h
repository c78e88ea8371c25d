/* The sizes of a matrix product's parts, and packing: strips of A and panels of B, so that the loop that multiplies them
 * (product_block.h) reads memory in order. */
#ifndef TINYGPT_PRODUCT_PACK_H
#define TINYGPT_PRODUCT_PACK_H

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

#endif
