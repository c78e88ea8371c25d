/* 4-bit weights: sums of their products with a few rows of x, and unpacking. tinygpt/ops/_four_bits.py has the
 * format: panels of sixteen columns, in which a word holds eight terms of one column's sum, and a scale belongs to 32.
 *
 * A panel is contiguous and holds whole sums. So a thread reads its panels as long streams, keeps the sums in registers
 * and writes each once; there are no partial sums to add up. The 32 terms of a group are added before they are scaled,
 * which saves a multiplication for each weight. With several rows of x a weight is unpacked once for all of them.
 *
 * One row or several, each sum has the same order. So the bits of y do not depend on the number of threads, and those of
 * row m not on the other rows.
 */
#ifndef TINYGPT_FOUR_BITS_H
#define TINYGPT_FOUR_BITS_H

#include "pool.h"
#include "weights.h"

enum {
    TG_PANEL = 16,                      /* columns of a panel */
    TG_PANEL_PARTS = TG_PANEL / TG_LANE,      /* vectors of a row of it */
    TG_NIBBLES = 8,                     /* weights of a word */
    TG_FOUR_GROUP = 32,                 /* terms that share a scale */
    TG_FOUR_PANELS = TG_LANE == 16 ? 4 : 2, /* panels that are read together for one row of x */
    TG_FOUR_ROWS = TG_LANE / 2,          /* rows of x that are multiplied together */
    TG_MOST_SUMS = 8                    /* vectors of sums, in either case */
};

/* The weights at bits 4 i .. 4 i + 3 of the words, in two's complement, as floats. */
TG_INLINE tg_floats tg_nibbles(tg_words words, int i) {
#if defined(__AVX512F__)
    const __m512 values = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
    return (tg_floats)_mm512_permutexvar_ps((__m512i)(words >> 4 * i), values); /* which reads four bits of each word */
#elif defined(__AVX2__)
    return (tg_floats)_mm256_cvtepi32_ps((__m256i)((tg_ints)(words << (28 - 4 * i)) >> 28));
#else
    return __builtin_convertvector((tg_ints)(words << (28 - 4 * i)) >> 28, tg_floats);
#endif
}

/* A vector of scales, which are the upper halves of floats. */
TG_INLINE tg_floats tg_half_scales(const uint16_t *scales) { return tg_weights(scales, 0, TG_BFLOAT16); }

/* The sums of `rows` rows of x, ldx apart, with `panels` panels, `apart` words and `scales_apart` scales apart. */
TG_INLINE void tg_panel_sums(const uint32_t *words, const uint16_t *scales, ptrdiff_t apart, ptrdiff_t scales_apart,
                             const float *x, ptrdiff_t ldx, ptrdiff_t K, int rows, int panels, tg_floats *total) {
    const int vectors = panels * TG_PANEL_PARTS;
#pragma GCC unroll 8
    for (int i = 0; i < rows * vectors; i++) total[i] = (tg_floats){0};
    for (ptrdiff_t k = 0; k < K; k += TG_FOUR_GROUP) {
        tg_floats sum[TG_MOST_SUMS];
#pragma GCC unroll 8
        for (int i = 0; i < rows * vectors; i++) sum[i] = (tg_floats){0};
        for (ptrdiff_t word = k / TG_NIBBLES; word < (k + TG_FOUR_GROUP) / TG_NIBBLES; word++) {
            const float *terms = x + word * TG_NIBBLES;
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) {
                const uint32_t *at = words + v / TG_PANEL_PARTS * apart + word * TG_PANEL + v % TG_PANEL_PARTS * TG_LANE;
                const tg_words packed = *(const tg_words *)at;
#pragma GCC unroll 8
                for (int i = 0; i < TG_NIBBLES; i++) {
                    const tg_floats weight = tg_nibbles(packed, i);
                    const ptrdiff_t term = i / 2 + i % 2 * (TG_NIBBLES / 2); /* a byte has terms four apart */
#pragma GCC unroll 8
                    for (int m = 0; m < rows; m++) {
                        const tg_floats factor = terms[m * ldx + term] - (tg_floats){0};
                        sum[m * vectors + v] = tg_multiply_add(weight, factor, sum[m * vectors + v]);
                    }
                }
            }
        }
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            const ptrdiff_t at = v / TG_PANEL_PARTS * scales_apart + k / TG_FOUR_GROUP * TG_PANEL + v % TG_PANEL_PARTS * TG_LANE;
            const tg_floats scale = tg_half_scales(scales + at);
#pragma GCC unroll 8
            for (int m = 0; m < rows; m++)
                total[m * vectors + v] = tg_multiply_add(scale, sum[m * vectors + v], total[m * vectors + v]);
        }
    }
}

/* W as floats: (K, N), or its transpose (N, K) for an embedding -------------------------------------------------- */

struct tg_four_unpacking {
    const struct tg_matrix *matrix;
    float *out;
    int transposed;
};

/* The eight terms of a panel's words, a row of out (., N) each, of which `count` columns are there. */
TG_INLINE void tg_unpack_words(const uint32_t *words, const uint16_t *scales, float *out, ptrdiff_t N, ptrdiff_t count) {
    tg_words packed[TG_PANEL_PARTS];
    tg_floats scale[TG_PANEL_PARTS];
    for (int v = 0; v < TG_PANEL_PARTS; v++) {
        packed[v] = *(const tg_words *)(words + v * TG_LANE);
        scale[v] = tg_half_scales(scales + v * TG_LANE);
    }
#pragma GCC unroll 8
    for (int i = 0; i < TG_NIBBLES; i++) {
        float *row = out + (i / 2 + i % 2 * (TG_NIBBLES / 2)) * N, padded[TG_PANEL]; /* a byte has terms four apart */
#pragma GCC unroll 4
        for (int v = 0; v < TG_PANEL_PARTS; v++)
            *(tg_floats *)((count == TG_PANEL ? row : padded) + v * TG_LANE) = tg_nibbles(packed[v], i) * scale[v];
        if (count < TG_PANEL) memcpy(row, padded, (size_t)count * sizeof(float));
    }
}

/* The terms of groups begin .. end - 1: whole rows of W, eight at a time, however many panels these pieces are read from. */
static void tg_unpack_groups(void *task, ptrdiff_t begin, ptrdiff_t end) {
    const struct tg_four_unpacking *t = task;
    const struct tg_matrix *w = t->matrix;
    const ptrdiff_t K = w->rows, N = w->columns;
    for (ptrdiff_t k = begin * TG_FOUR_GROUP; k < end * TG_FOUR_GROUP; k += TG_NIBBLES)
        for (ptrdiff_t j = 0; j < N; j += TG_PANEL) {
            const uint32_t *words = (const uint32_t *)w->weight + j * (K / TG_NIBBLES) + k / TG_NIBBLES * TG_PANEL;
            const uint16_t *scales = w->half_scale + j * (K / TG_FOUR_GROUP) + k / TG_FOUR_GROUP * TG_PANEL;
            const ptrdiff_t count = N - j < TG_PANEL ? N - j : TG_PANEL;
            if (t->transposed) {
                float rows[TG_NIBBLES * TG_PANEL];
                tg_unpack_words(words, scales, rows, TG_PANEL, TG_PANEL);
                for (ptrdiff_t c = 0; c < count; c++)
                    for (int i = 0; i < TG_NIBBLES; i++) t->out[(j + c) * K + k + i] = rows[i * TG_PANEL + c];
            } else if (count == TG_PANEL) {
                tg_unpack_words(words, scales, t->out + k * N + j, N, TG_PANEL);
            } else {
                tg_unpack_words(words, scales, t->out + k * N + j, N, count);
            }
        }
}

static void tg_four_unpack(const struct tg_matrix *matrix, int transposed, float *out) {
    struct tg_four_unpacking t = {matrix, out, transposed};
    tg_parallel_for(tg_unpack_groups, &t, matrix->rows / TG_FOUR_GROUP, 1);
}

#endif
