/* Integer products: 8-bit weights by activations rounded to 8 bits, summed in 32-bit integers, which are exact.
 *
 * TG_SPAN_TERMS neighbouring terms of a sum, a span, share a scale of the activations:
 *
 *     y[m, n] += (float)(sum over the span of q[m, k] w[k, n]) * scale[m]     (and * the weights' scale, if it has groups)
 *
 * Each product and each sum on that line is rounded by itself, in this order (TG_BARRIER keeps them apart), so y has the
 * same bits on every processor and in the reference.
 *
 * Four terms of a column lie together in a lane, a quad: the layout that the processor's instructions multiply. A panel is
 * the quads of a span for a few vectors of columns. Whoever can put weights into quads of signed bytes (two layouts are
 * below; packed 4-bit weights could be another) can use what multiplies them, `tg_panel_rows`.
 *
 * - AVX512-VNNI multiplies unsigned by signed bytes, four terms in one instruction. The weights get an offset of 128, and
 *   the initial value of the sum corrects for that. The instruction is written in assembly, since the level as a whole
 *   is compiled for processors without it, and chosen at run time.
 * - Elsewhere pairs of 16-bit numbers are multiplied and added. A quad is taken apart into its even and its odd bytes, as
 *   the upper halves of 16-bit numbers: one instruction for either, and a sum that is 256 times too large.
 *   (AVX2's product of bytes saturates: 127 * 127 * 2 fits into 16 bits but 255 * 127 * 2 does not, so it needs absolute
 *   values and signs, and takes as many instructions; only for a single row, where nothing is taken apart for others, it
 *   is ahead: integer_single.h.)
 */
#ifndef TINYGPT_INTEGER_TILE_H
#define TINYGPT_INTEGER_TILE_H

#include <float.h>

#include "weights.h"

enum {
    TG_SPAN_TERMS = 32,
    TG_QUADS = TG_SPAN_TERMS / 4,
    TG_ROWS_AT_ONCE = 32,
    TG_PANEL_VECTORS = 4,                                /* of columns in a panel: a row of it is TG_VECTOR_BYTES weights */
    TG_SUM_ROWS = 4,                               /* rows and vectors of sums in registers */
    TG_SUM_VECTORS = 2,
};

typedef int16_t tg_shorts __attribute__((vector_size(TG_VECTOR_BYTES), aligned(2), may_alias));

/* The activations of up to TG_ROWS_AT_ONCE rows for one span. */
struct tg_span {
    int8_t quads[TG_ROWS_AT_ONCE][TG_SPAN_TERMS];
    int16_t pairs[TG_ROWS_AT_ONCE][TG_SPAN_TERMS]; /* of each four: terms 0, 2, 1, 3 */
    int32_t start[TG_ROWS_AT_ONCE];           /* of a sum over weights with an offset of 128 */
    float scale[TG_ROWS_AT_ONCE];
};

static int tg_vnni_unwanted; /* by a test */

static int tg_has_vnni(void) {
#if defined(__AVX512BW__)
    return !tg_vnni_unwanted && __builtin_cpu_supports("avx512vnni");
#else
    return 0;
#endif
}

static int tg_use_vnni(int wanted) {
    const int was = !tg_vnni_unwanted;
    tg_vnni_unwanted = !wanted;
    return was;
}

/* Round `terms` <= TG_SPAN_TERMS numbers of row m: q = x / scale, to nearest, ties to even, scale = max|x| / 127. Numbers that
 * are not finite have no such scale, and make the whole row nan. */
static void tg_round_row(const float *x, ptrdiff_t terms, struct tg_span *s, ptrdiff_t m) {
    uint32_t words[TG_SPAN_TERMS] = {0}, largest = 0;
    float values[TG_SPAN_TERMS], most;
    int32_t total = 0;
    memcpy(words, x, (size_t)terms * sizeof(float));
    memcpy(values, words, sizeof values);
    for (int i = 0; i < TG_SPAN_TERMS; i++) largest = (words[i] & 0x7FFFFFFF) > largest ? words[i] & 0x7FFFFFFF : largest;
    const int finite = largest < 0x7F800000;
    memcpy(&most, &largest, sizeof most);
    const float scale = most / 127 > FLT_MIN ? most / 127 : FLT_MIN;
    for (int i = 0; i < TG_SPAN_TERMS; i++) {
        const int q = finite ? (int)__builtin_rintf(values[i] / scale) : 0;
        s->quads[m][i] = (int8_t)q;
        total += q;
    }
    for (int i = 0; i < TG_SPAN_TERMS; i += 4)
        for (int j = 0; j < 4; j++) s->pairs[m][i + j] = s->quads[m][i + (j * 2 & 3) + j / 2];
    s->start[m] = -128 * total;
    s->scale[m] = finite ? scale : (float)NAN;
}

/* The factors of a quad of weights: one vector with VNNI, else two. */
TG_INLINE void tg_factors(tg_ints quad, tg_ints *factors, int vnni) {
    if (vnni) {
        factors[0] = quad ^ (int32_t)0x80808080;
    } else {
        factors[0] = (tg_ints)((tg_shorts)quad << 8);
        factors[1] = (tg_ints)((tg_shorts)quad & (int16_t)0xFF00);
    }
}

/* a . b in each lane, of two 16-bit numbers each. */
TG_INLINE tg_ints tg_dot_pairs(tg_ints a, tg_ints b) {
#if defined(__AVX512BW__)
    return (tg_ints)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (tg_ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (tg_ints)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    return (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

TG_INLINE tg_ints tg_everywhere(const void *four_bytes) {
    int32_t word;
    memcpy(&word, four_bytes, sizeof word);
    return word + (tg_ints){0};
}

/* What quad q of row m is multiplied by: as many vectors as tg_factors makes. */
TG_INLINE void tg_terms_of(const struct tg_span *x, ptrdiff_t m, int q, tg_ints *terms, int vnni) {
    if (vnni) {
        terms[0] = tg_everywhere(x->quads[m] + 4 * q);
    } else {
        terms[0] = tg_everywhere(x->pairs[m] + 4 * q);
        terms[1] = tg_everywhere(x->pairs[m] + 4 * q + 2);
    }
}

TG_INLINE tg_ints tg_add_dots(tg_ints sum, const tg_ints *factors, const tg_ints *terms, int vnni) {
#if defined(__AVX512BW__)
    if (vnni) {
        __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(factors[0]), "v"(terms[0]));
        return sum;
    }
#endif
    sum += tg_dot_pairs(factors[0], terms[0]) + tg_dot_pairs(factors[1], terms[1]);
    TG_BARRIER(sum); /* or the compiler adds up all quads of a sum before it begins the next */
    return sum;
}

/* What a sum of row m starts with, and the sum in the end. */
TG_INLINE tg_ints tg_start(const struct tg_span *x, ptrdiff_t m, int vnni) { return (vnni ? x->start[m] : 0) + (tg_ints){0}; }
TG_INLINE tg_ints tg_whole_sum(tg_ints sum, int vnni) { return vnni ? sum : sum >> 8; }

/* y += the sum of a span, scaled. weight_scale: of these columns, or NULL. */
TG_INLINE void tg_add_span(tg_ints sum, float scale, const float *weight_scale, float *y) {
    tg_floats part = __builtin_convertvector(sum, tg_floats) * scale;
    TG_BARRIER(part);
    if (weight_scale) part *= *(const tg_floats *)weight_scale;
    TG_BARRIER(part);
    *(tg_floats *)y += part;
}

/* A panel's products with `rows` <= TG_SUM_ROWS rows from row m on, added to y. The factors of a vector of quads are
 * `apart` after those of the quad before. Where a span has fewer terms, the activations of those beyond are zero. */
TG_INLINE void tg_panel_block(const struct tg_span *x, ptrdiff_t m, int rows, const tg_ints *panel, int apart,
                              int vectors, const float *weight_scale, float *y, ptrdiff_t pitch, int vnni) {
    const int each = vnni ? 1 : 2;
    tg_ints sum[TG_SUM_ROWS][TG_SUM_VECTORS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) sum[r][v] = tg_start(x, m + r, vnni);
#pragma GCC unroll 8
    for (int q = 0; q < TG_QUADS; q++) {
        tg_ints factors[TG_SUM_VECTORS * 2];
#pragma GCC unroll 8
        for (int i = 0; i < vectors * each; i++) factors[i] = panel[q * apart + i];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            tg_ints terms[2];
            tg_terms_of(x, m + r, q, terms, vnni);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) sum[r][v] = tg_add_dots(sum[r][v], factors + v * each, terms, vnni);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            tg_add_span(tg_whole_sum(sum[r][v], vnni), x->scale[m + r], weight_scale ? weight_scale + v * TG_LANE : NULL,
                        y + (m + r) * pitch + v * TG_LANE);
}

/* y (M, pitch) += a span of x times a panel of `vectors` vectors of columns. */
TG_INLINE void tg_panel_rows(const struct tg_span *x, ptrdiff_t M, const tg_ints *panel, int apart, int vectors,
                             const float *weight_scale, float *y, ptrdiff_t pitch, int vnni) {
    ptrdiff_t m = 0;
    for (; m + TG_SUM_ROWS <= M; m += TG_SUM_ROWS)
        tg_panel_block(x, m, TG_SUM_ROWS, panel, apart, vectors, weight_scale, y, pitch, vnni);
    if (m + 2 <= M) {
        tg_panel_block(x, m, 2, panel, apart, vectors, weight_scale, y, pitch, vnni);
        m += 2;
    }
    if (m < M) tg_panel_block(x, m, 1, panel, apart, vectors, weight_scale, y, pitch, vnni);
}

/* Weights to quads --------------------------------------------------------------------------------------------- */

/* Four rows of W from `row` on. Of a last one or three, the first stands for those beyond: their activations are zero. */
TG_INLINE void tg_four_rows(const int8_t *row, ptrdiff_t N, int left, const int8_t *four[4]) {
    for (int i = 0; i < 4; i++) four[i] = row + (i < left ? i : 0) * N;
}

#if defined(__AVX2__) && !defined(__AVX512BW__)
/* Four rows' bytes side by side: each vector has four columns and, in its upper half, the four that are 16 further on. */
TG_INLINE void tg_side_by_side(const __m256i row[4], tg_ints *quads) {
    __m256i pair[4];
    for (int i = 0; i < 4; i += 2) {
        pair[i] = _mm256_unpacklo_epi8(row[i], row[i + 1]);
        pair[i + 1] = _mm256_unpackhi_epi8(row[i], row[i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        quads[2 * i] = (tg_ints)_mm256_unpacklo_epi16(pair[i], pair[i + 2]);
        quads[2 * i + 1] = (tg_ints)_mm256_unpackhi_epi16(pair[i], pair[i + 2]);
    }
}
#endif

/* Four rows of TG_VECTOR_BYTES weights -> TG_PANEL_VECTORS vectors of quads, the columns in their order. */
TG_INLINE void tg_quads_of_rows(const int8_t *const row[4], tg_ints *quads) {
#if defined(__AVX512BW__)
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i r[4], pair[4];
    for (int i = 0; i < 4; i++) r[i] = _mm512_permutexvar_epi32(order, _mm512_loadu_si512(row[i]));
    for (int i = 0; i < 4; i += 2) {
        pair[i] = _mm512_unpacklo_epi8(r[i], r[i + 1]);
        pair[i + 1] = _mm512_unpackhi_epi8(r[i], r[i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        quads[2 * i] = (tg_ints)_mm512_unpacklo_epi16(pair[i], pair[i + 2]);
        quads[2 * i + 1] = (tg_ints)_mm512_unpackhi_epi16(pair[i], pair[i + 2]);
    }
#elif defined(__AVX2__)
    const __m256i order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    __m256i r[4];
    for (int i = 0; i < 4; i++)
        r[i] = _mm256_permutevar8x32_epi32(_mm256_loadu_si256((const __m256i *)row[i]), order);
    tg_side_by_side(r, quads);
#else
    int8_t bytes[TG_VECTOR_BYTES][4];
    for (int c = 0; c < TG_VECTOR_BYTES; c++)
        for (int i = 0; i < 4; i++) bytes[c][i] = row[i][c];
    memcpy(quads, bytes, sizeof bytes);
#endif
}

/* TG_LANE outputs whose weights lie in rows, `stride` bytes apart -> TG_QUADS vectors of quads. */
TG_INLINE void tg_quads_of_outputs(const int8_t *weights, ptrdiff_t stride, tg_ints *quads) {
#if defined(__AVX512BW__)
    __m512i a[8], b[8];
    for (int i = 0; i < 8; i++)
        a[i] = _mm512_inserti64x4(
            _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(weights + i * stride))),
            _mm256_loadu_si256((const __m256i *)(weights + (i + 8) * stride)), 1);
    const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), high = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
    for (int i = 0; i < 8; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + j + 2]);
            a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + j + 2]);
        }
    for (int i = 0; i < 4; i++) {
        quads[i] = (tg_ints)_mm512_permutex2var_epi64(a[i], low, a[i + 4]);
        quads[i + 4] = (tg_ints)_mm512_permutex2var_epi64(a[i], high, a[i + 4]);
    }
#elif defined(__AVX2__)
    __m256i a[8], b[8];
    for (int i = 0; i < 8; i++) a[i] = _mm256_loadu_si256((const __m256i *)(weights + i * stride));
    for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            a[i + 2 * j] = _mm256_unpacklo_epi64(b[i + j], b[i + j + 2]);
            a[i + 2 * j + 1] = _mm256_unpackhi_epi64(b[i + j], b[i + j + 2]);
        }
    for (int i = 0; i < 4; i++) {
        quads[i] = (tg_ints)_mm256_permute2x128_si256(a[i], a[i + 4], 0x20);
        quads[i + 4] = (tg_ints)_mm256_permute2x128_si256(a[i], a[i + 4], 0x31);
    }
#else
    int8_t bytes[TG_QUADS][TG_LANE][4];
    for (int q = 0; q < TG_QUADS; q++)
        for (int n = 0; n < TG_LANE; n++) memcpy(bytes[q][n], weights + n * stride + 4 * q, 4);
    memcpy(quads, bytes, sizeof bytes);
#endif
}

#endif
