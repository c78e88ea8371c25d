/* Integer products of a single row of activations with 8-bit weights: integer_tile.h.
 *
 * Every weight is multiplied once, so whatever prepares it counts as much as its product. With AVX2 a quad is multiplied
 * as it is, its absolute values by activations that take its signs (pairs of products fit into 16 bits: 2 * 128 * 127
 * < 2^15), where several rows take it apart into 16-bit numbers once for all of them. Rows of W are put side by side
 * in the processor's own order of columns, which the sums leave at the end; and weights that lie along the sum are
 * multiplied where they lie, and their sums transposed.
 */
#ifndef TINYGPT_INTEGER_SINGLE_H
#define TINYGPT_INTEGER_SINGLE_H

#include "integer_tile.h"

#if defined(__AVX2__) && !defined(__AVX512BW__)
/* In each lane, the four products of weights with activations, added up. */
TG_INLINE __m256i tg_dots_of_bytes(__m256i weights, __m256i x) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
#endif

/* The sums of a span of a row in TG_PANEL_VECTORS vectors of columns. row: the first row of W of the span. */
TG_INLINE void tg_sums_of_columns(const struct tg_span *x, const int8_t *row, ptrdiff_t N, int terms, tg_ints *sum, int vnni) {
    const int8_t *four[4];
#if defined(__AVX2__) && !defined(__AVX512BW__)
    __m256i total[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int k = 0; k < terms; k += 4, row += 4 * N) {
        const __m256i at = (__m256i)tg_everywhere(x->quads[0] + k);
        __m256i r[4];
        tg_ints quads[4];
        tg_four_rows(row, N, terms - k, four);
        for (int i = 0; i < 4; i++) r[i] = _mm256_loadu_si256((const __m256i *)four[i]);
        tg_side_by_side(r, quads);
        for (int i = 0; i < 4; i++) total[i] = _mm256_add_epi32(total[i], tg_dots_of_bytes((__m256i)quads[i], at));
    }
    for (int i = 0; i < 2; i++) {
        sum[i] = (tg_ints)_mm256_permute2x128_si256(total[2 * i], total[2 * i + 1], 0x20);
        sum[i + 2] = (tg_ints)_mm256_permute2x128_si256(total[2 * i], total[2 * i + 1], 0x31);
    }
    (void)vnni;
#else
    for (int v = 0; v < TG_PANEL_VECTORS; v++) sum[v] = tg_start(x, 0, vnni);
    for (int k = 0; k < terms; k += 4, row += 4 * N) {
        tg_ints quads[TG_PANEL_VECTORS], factors[2], at[2];
        tg_four_rows(row, N, terms - k, four);
        tg_quads_of_rows(four, quads);
        tg_terms_of(x, 0, k / 4, at, vnni);
#pragma GCC unroll 4
        for (int v = 0; v < TG_PANEL_VECTORS; v++) {
            tg_factors(quads[v], factors, vnni);
            sum[v] = tg_add_dots(sum[v], factors, at, vnni);
        }
    }
    for (int v = 0; v < TG_PANEL_VECTORS; v++) sum[v] = tg_whole_sum(sum[v], vnni);
#endif
}

/* The sums of a whole span of a row for TG_LANE outputs, whose weights lie in rows, `stride` bytes apart. */
TG_INLINE tg_ints tg_sums_of_outputs(const struct tg_span *x, const int8_t *weights, ptrdiff_t stride, int vnni) {
#if defined(__AVX2__) && !defined(__AVX512BW__)
    const __m256i at = _mm256_loadu_si256((const __m256i *)x->quads[0]);
    __m256i a[8];
    for (int i = 0; i < 8; i++) a[i] = tg_dots_of_bytes(_mm256_loadu_si256((const __m256i *)(weights + i * stride)), at);
    for (int i = 0; i < 8; i += 2)
        a[i] = _mm256_add_epi32(_mm256_unpacklo_epi32(a[i], a[i + 1]), _mm256_unpackhi_epi32(a[i], a[i + 1]));
    for (int i = 0; i < 8; i += 4)
        a[i] = _mm256_add_epi32(_mm256_unpacklo_epi64(a[i], a[i + 2]), _mm256_unpackhi_epi64(a[i], a[i + 2]));
    (void)vnni;
    return (tg_ints)_mm256_add_epi32(_mm256_permute2x128_si256(a[0], a[4], 0x20),
                                     _mm256_permute2x128_si256(a[0], a[4], 0x31));
#else
    tg_ints quads[TG_QUADS], factors[2], at[2], sum = tg_start(x, 0, vnni);
    tg_quads_of_outputs(weights, stride, quads);
#pragma GCC unroll 8
    for (int q = 0; q < TG_QUADS; q++) {
        tg_factors(quads[q], factors, vnni);
        tg_terms_of(x, 0, q, at, vnni);
        sum = tg_add_dots(sum, factors, at, vnni);
    }
    return tg_whole_sum(sum, vnni);
#endif
}

#endif
