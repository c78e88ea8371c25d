/* What softmax and cross-entropy do to a row, for rows of any length.
 *
 * A vocabulary of 65 is four vectors and one element. A loop vectorised by the compiler spends most of its time on that
 * last element and the branches around it. So with AVX-512 and float32 the last vector is masked: the lanes beyond the
 * row are neither read nor written, and count as -infinity in a maximum or a sum of exponentials.
 */
#ifndef TINYGPT_SOFTMAX_H
#define TINYGPT_SOFTMAX_H

#include "vmath.h"

/* For double precision and other processors: vectorised by the compiler. */
#define TG_ROWS(type, exponential)                                                                                  \
    /* the sum of exp(x - shift); the exponentials go to y, unless that is NULL */                                   \
    static inline double tg_exp_sum_##type(const type *x, type *y, ptrdiff_t n, type shift) {                      \
        double sum = 0;                                                                                            \
        if (!y)                                                                                                    \
            for (ptrdiff_t j = 0; j < n; j++) sum += exponential(x[j] - shift);                                    \
        else                                                                                                       \
            for (ptrdiff_t j = 0; j < n; j++) sum += y[j] = exponential(x[j] - shift);                             \
        return sum;                                                                                                \
    }                                                                                                              \
    /* y = add + exp(x - shift) * factor, add a row or NULL */                                                      \
    static inline void tg_exp_scaled_##type(const type *x, const type *add, type *y, ptrdiff_t n, type shift,      \
                                            type factor) {                                                         \
        if (add)                                                                                                   \
            for (ptrdiff_t j = 0; j < n; j++) y[j] = add[j] + exponential(x[j] - shift) * factor;                  \
        else                                                                                                       \
            for (ptrdiff_t j = 0; j < n; j++) y[j] = exponential(x[j] - shift) * factor;                           \
    }                                                                                                              \
    static inline void tg_scale_##type(type *y, ptrdiff_t n, type factor) {                                        \
        for (ptrdiff_t j = 0; j < n; j++) y[j] *= factor;                                                          \
    }                                                                                                              \
    /* y = (x - near) - rest, in two loops: in one, the compiler would add up near and rest first */               \
    static inline void tg_deviations_##type(const type *x, type *y, ptrdiff_t n, type near, type rest) {           \
        for (ptrdiff_t j = 0; j < n; j++) y[j] = x[j] - near;                                                      \
        for (ptrdiff_t j = 0; j < n; j++) y[j] -= rest;                                                            \
    }                                                                                                              \
    static inline double tg_dot_##type(const type *a, const type *b, ptrdiff_t n) {                                \
        double sum = 0;                                                                                            \
        for (ptrdiff_t j = 0; j < n; j++) sum += a[j] * b[j];                                                      \
        return sum;                                                                                                \
    }                                                                                                              \
    /* y = weight * (x - mean) */                                                                                   \
    static inline void tg_weighed_##type(const type *x, const type *weight, type *y, ptrdiff_t n, type mean) {     \
        for (ptrdiff_t j = 0; j < n; j++) y[j] = weight[j] * (x[j] - mean);                                        \
    }

#ifdef __AVX512F__

/* The mask of a vector's first n lanes. */
static inline __mmask16 tg_lanes(ptrdiff_t n) { return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1); }

/* exp for x up to 88, with the same steps as tg_expf, but a minimax polynomial of degree 6 (error 1e-8) and the
 * instruction that scales by 2^n. Below -87.3, where that instruction would be slow, the result is 0. A NaN stays
 * NaN. */
static inline __m512 tg_exps(__m512 x) {
    const __mmask16 normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.3f), _CMP_NLT_UQ);
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-0.693145751953125f), x);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(-1.42860682030941723212e-6f), r);
    __m512 p = _mm512_set1_ps(0.0013836845755577087f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.008374815806746483f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.04166822507977486f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.16666419804096222f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.49999991059303284f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_maskz_scalef_ps(normal, p, n);
}

/* The sum of a vector of floats, in double precision. */
static inline double tg_wide_sum(__m512 v) {
    const __m256 upper = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1));
    return _mm512_reduce_add_pd(_mm512_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(v)), _mm512_cvtps_pd(upper)));
}

enum { TG_TOGETHER = 128 }; /* elements that are summed in a vector of floats before they go into a sum in double */

static inline double tg_exp_sum_float(const float *x, float *y, ptrdiff_t n, float shift) {
    const __m512 nothing = _mm512_set1_ps(-INFINITY), away = _mm512_set1_ps(shift);
    double total = 0;
    for (ptrdiff_t start = 0; start < n; start += TG_TOGETHER) {
        const ptrdiff_t stop = n - start < TG_TOGETHER ? n : start + TG_TOGETHER;
        __m512 sum = _mm512_setzero_ps();
        for (ptrdiff_t j = start; j < stop; j += 16) {
            const __mmask16 lanes = tg_lanes(n - j);
            const __m512 e = tg_exps(_mm512_sub_ps(_mm512_mask_loadu_ps(nothing, lanes, x + j), away));
            if (y) _mm512_mask_storeu_ps(y + j, lanes, e);
            sum = _mm512_add_ps(sum, e);
        }
        total += tg_wide_sum(sum);
    }
    return total;
}

static inline void tg_exp_scaled_float(const float *x, const float *add, float *y, ptrdiff_t n, float shift, float factor) {
    const __m512 away = _mm512_set1_ps(shift), times = _mm512_set1_ps(factor);
    for (ptrdiff_t j = 0; j < n; j += 16) {
        const __mmask16 lanes = tg_lanes(n - j);
        const __m512 e = tg_exps(_mm512_sub_ps(_mm512_maskz_loadu_ps(lanes, x + j), away));
        const __m512 plus = add ? _mm512_maskz_loadu_ps(lanes, add + j) : _mm512_setzero_ps();
        _mm512_mask_storeu_ps(y + j, lanes, _mm512_fmadd_ps(e, times, plus));
    }
}

static inline void tg_scale_float(float *y, ptrdiff_t n, float factor) {
    for (ptrdiff_t j = 0; j < n; j += 16) {
        const __mmask16 lanes = tg_lanes(n - j);
        _mm512_mask_storeu_ps(y + j, lanes, _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, y + j), _mm512_set1_ps(factor)));
    }
}

static inline void tg_deviations_float(const float *x, float *y, ptrdiff_t n, float near, float rest) {
    const __m512 large = _mm512_set1_ps(near), small = _mm512_set1_ps(rest), one = _mm512_set1_ps(1.0f);
    for (ptrdiff_t j = 0; j < n; j += 16) { /* a multiply-add: the compiler must not add up near and rest */
        const __mmask16 lanes = tg_lanes(n - j);
        const __m512 d = _mm512_sub_ps(_mm512_maskz_loadu_ps(lanes, x + j), large);
        _mm512_mask_storeu_ps(y + j, lanes, _mm512_fnmadd_ps(one, small, d));
    }
}

static inline double tg_dot_float(const float *a, const float *b, ptrdiff_t n) {
    double total = 0;
    for (ptrdiff_t start = 0; start < n; start += TG_TOGETHER) {
        const ptrdiff_t stop = n - start < TG_TOGETHER ? n : start + TG_TOGETHER;
        __m512 sum = _mm512_setzero_ps();
        for (ptrdiff_t j = start; j < stop; j += 16) {
            const __mmask16 lanes = tg_lanes(n - j);
            sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(lanes, a + j), _mm512_maskz_loadu_ps(lanes, b + j), sum);
        }
        total += tg_wide_sum(sum);
    }
    return total;
}

static inline void tg_weighed_float(const float *x, const float *weight, float *y, ptrdiff_t n, float mean) {
    const __m512 middle = _mm512_set1_ps(mean);
    for (ptrdiff_t j = 0; j < n; j += 16) {
        const __mmask16 lanes = tg_lanes(n - j);
        const __m512 off = _mm512_sub_ps(_mm512_maskz_loadu_ps(lanes, x + j), middle);
        _mm512_mask_storeu_ps(y + j, lanes, _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, weight + j), off));
    }
}
#else
TG_ROWS(float, tg_expf)
#endif
TG_ROWS(double, tg_exp)

#endif
