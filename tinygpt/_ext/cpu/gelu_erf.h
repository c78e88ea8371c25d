/* The erf form of GELU in float32 with AVX-512, with one power of two and no division.
 *
 * Let z = |x| and Q(z) = Phi(-z), the upper tail of the normal distribution. Both results follow from it:
 *
 *     x Phi(x)              = max(x, 0) - z Q(z)
 *     d/dx (x Phi(x))       = Q(z) slope(z) for x <= 0, and 1 minus that for x > 0, with slope(z) = 1 - z phi(z) / Q(z)
 *
 * log2 Q and slope are nearly parabolas, so piecewise polynomials of degree 4 approximate both. The pieces are the
 * quarters of the octaves of z + 1 from 1 to 16, so the index of a piece is four bits of z + 1 as a float. A register
 * holds one coefficient of all 16 pieces, and one instruction looks it up for 16 elements. Since Q is computed as a
 * power of two, it keeps its relative accuracy down to the smallest floats.
 *
 * Error, measured over floats of all magnitudes against long double: forward at most 7.5e-8 * max(1, |x|); relative
 * error for x < 0 at most 8.3e-7 down to -4 and 8.6e-6 down to -13.1; backward 1.3e-7.
 */
#ifndef TINYGPT_GELU_ERF_H
#define TINYGPT_GELU_ERF_H

#include "vmath.h"

/* For double precision and other processors: vectorised by the compiler, with the formulas of tinygpt/ops/gelu.py. */
#define TG_GELU_ERF_LOOPS(type, exponential, cdf)                                                                   \
    static void tg_gelu_erf_forward_##type(const type *x, type *y, ptrdiff_t n) {                                  \
        for (ptrdiff_t i = 0; i < n; i++) {                                                                        \
            const type phi = cdf(x[i]);                                                                            \
            y[i] = phi > 0 ? x[i] * phi : phi; /* phi 0 or NaN: -inf * 0 would be NaN */                           \
        }                                                                                                          \
    }                                                                                                              \
    static void tg_gelu_erf_backward_##type(const type *dy, const type *x, type *dx, ptrdiff_t n) {                \
        for (ptrdiff_t i = 0; i < n; i++) {                                                                        \
            const type density = (type)0.39894228040143267794 * exponential(x[i] * x[i] * (type)-0.5);             \
            dx[i] = dy[i] * (cdf(x[i]) + (density > 0 ? x[i] * density : density));                                \
        }                                                                                                          \
    }

#if defined(__AVX512F__) && defined(__AVX512DQ__)

enum { TG_PIECES = 16, TG_TERMS = 5 };
static const float TG_FAR = 13.28f; /* beyond it, z Q(z) < 2^-128 is taken as 0 */
typedef struct { __m512 origin, log_tail[TG_TERMS], slope[TG_TERMS]; } tg_tables; /* one lane per piece */
static tg_tables tg_pieces;

static double tg_log_tail(double z) { return log2(tg_normal_cdf(-z)); }
static double tg_slope(double z) {
    return 1 - z * 0.39894228040143267794 * exp(-z * z / 2) / tg_normal_cdf(-z);
}

/* Coefficients, from c[0] up, of the polynomial in z - origin that interpolates f at the Chebyshev nodes of begin ..
 * end. */
static void tg_fit(double (*f)(double), double begin, double end, double origin, double *c) {
    double node[TG_TERMS], value[TG_TERMS];
    for (int i = 0; i < TG_TERMS; i++) {
        const double z = (begin + end) / 2 + (end - begin) / 2 * cos(3.14159265358979323846 * (i + 0.5) / TG_TERMS);
        node[i] = z - origin;
        value[i] = f(z);
    }
    for (int k = 1; k < TG_TERMS; k++) /* divided differences: Newton's form */
        for (int i = TG_TERMS - 1; i >= k; i--) value[i] = (value[i] - value[i - 1]) / (node[i] - node[i - k]);
    for (int k = 0; k < TG_TERMS; k++) c[k] = 0;
    for (int i = TG_TERMS - 1; i >= 0; i--) { /* c = c * (d - node) + value, as powers of d */
        for (int k = TG_TERMS - 1; k > 0; k--) c[k] = c[k - 1] - node[i] * c[k];
        c[0] = value[i] - node[i] * c[0];
    }
}

/* Fill tg_pieces. Called once, before the first kernel. The first piece starts at its origin 0, where both are
 * exact. */
static void tg_make_pieces(void) {
    for (int octave = 1; octave < 16; octave *= 2)
        for (int quarter = 4; quarter < 8; quarter++) {
            const double begin = octave * quarter / 4.0 - 1, end = octave * (quarter + 1) / 4.0 - 1;
            const float first = (float)(begin + 1), origin = begin > 0 ? (float)((begin + end) / 2) : 0;
            uint32_t bits;
            memcpy(&bits, &first, sizeof bits);
            const int piece = bits >> 21 & 15;
            double log_tail[TG_TERMS], slope[TG_TERMS];
            tg_fit(tg_log_tail, begin, end, origin, log_tail);
            tg_fit(tg_slope, begin, end, origin, slope);
            tg_pieces.origin[piece] = origin;
            for (int k = 0; k < TG_TERMS; k++) {
                tg_pieces.log_tail[k][piece] = (float)log_tail[k];
                tg_pieces.slope[k][piece] = (float)slope[k];
            }
        }
}

typedef struct { __m512 tail, d; __m512i piece; __mmask16 near; } tg_place;

/* Evaluate, for each element, the polynomial of its piece at d. */
static inline __m512 tg_piecewise(const __m512 *terms, __m512i piece, __m512 d) {
    __m512 sum = _mm512_permutexvar_ps(piece, terms[4]);
    sum = _mm512_fmadd_ps(sum, d, _mm512_permutexvar_ps(piece, terms[3]));
    sum = _mm512_fmadd_ps(sum, d, _mm512_permutexvar_ps(piece, terms[2]));
    sum = _mm512_fmadd_ps(sum, d, _mm512_permutexvar_ps(piece, terms[1]));
    return _mm512_fmadd_ps(sum, d, _mm512_permutexvar_ps(piece, terms[0]));
}

/* Q(z), the piece that z is in, and d = z - origin. `near` is false from TG_FAR on, and true for a NaN, which must
 * stay NaN. */
static inline tg_place tg_tail(__m512 z, const tg_tables *t) {
    tg_place at;
    at.near = _mm512_cmp_ps_mask(z, _mm512_set1_ps(TG_FAR), _CMP_NGE_UQ);
    at.piece = _mm512_srli_epi32(_mm512_castps_si512(_mm512_add_ps(z, _mm512_set1_ps(1.0f))), 21);
    at.d = _mm512_sub_ps(z, _mm512_permutexvar_ps(at.piece, t->origin));
    const __m512 log_tail = tg_piecewise(t->log_tail, at.piece, at.d);
    const __m512 f = _mm512_reduce_ps(log_tail, _MM_FROUND_TO_NEG_INF); /* the fractional part */
    __m512 power = _mm512_set1_ps(0.00186713f); /* 2^f: minimax polynomial of degree 5, error 9e-8 */
    power = _mm512_fmadd_ps(power, f, _mm512_set1_ps(0.009017031f));
    power = _mm512_fmadd_ps(power, f, _mm512_set1_ps(0.055799913f));
    power = _mm512_fmadd_ps(power, f, _mm512_set1_ps(0.24016444f));
    power = _mm512_fmadd_ps(power, f, _mm512_set1_ps(0.6931513f));
    power = _mm512_fmadd_ps(power, f, _mm512_set1_ps(1.0f));
    at.tail = _mm512_maskz_scalef_ps(at.near, power, log_tail); /* times 2^floor(log_tail) */
    return at;
}

static inline __m512 tg_gelu_erf(__m512 x, const tg_tables *t) {
    const __m512 z = _mm512_abs_ps(x);
    const tg_place at = tg_tail(z, t); /* max returns its second operand if either is NaN */
    return _mm512_mask3_fnmadd_ps(z, at.tail, _mm512_max_ps(_mm512_setzero_ps(), x), at.near);
}

static inline __m512 tg_gelu_erf_slope(__m512 x, const tg_tables *t) {
    const tg_place at = tg_tail(_mm512_abs_ps(x), t);
    const __m512 left = _mm512_maskz_mul_ps(at.near, at.tail, tg_piecewise(t->slope, at.piece, at.d));
    const __mmask16 right = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
    return _mm512_mask_sub_ps(left, right, _mm512_set1_ps(1.0f), left);
}

/* n elements in vectors; the last vector has n % 16 elements, and its other lanes are neither read nor written. */
static void tg_gelu_erf_forward_float(const float *x, float *y, ptrdiff_t n) {
    const tg_tables t = tg_pieces;
    ptrdiff_t i = 0;
    for (; i + 16 <= n; i += 16) _mm512_storeu_ps(y + i, tg_gelu_erf(_mm512_loadu_ps(x + i), &t));
    const __mmask16 rest = (__mmask16)((1u << (n - i)) - 1);
    _mm512_mask_storeu_ps(y + i, rest, tg_gelu_erf(_mm512_maskz_loadu_ps(rest, x + i), &t));
}

static void tg_gelu_erf_backward_float(const float *dy, const float *x, float *dx, ptrdiff_t n) {
    const tg_tables t = tg_pieces;
    ptrdiff_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m512 slope = tg_gelu_erf_slope(_mm512_loadu_ps(x + i), &t);
        _mm512_storeu_ps(dx + i, _mm512_mul_ps(_mm512_loadu_ps(dy + i), slope));
    }
    const __mmask16 rest = (__mmask16)((1u << (n - i)) - 1);
    const __m512 slope = tg_gelu_erf_slope(_mm512_maskz_loadu_ps(rest, x + i), &t);
    _mm512_mask_storeu_ps(dx + i, rest, _mm512_mul_ps(_mm512_maskz_loadu_ps(rest, dy + i), slope));
}
#else
static void tg_make_pieces(void) {}
TG_GELU_ERF_LOOPS(float, tg_expf, tg_normal_cdff)
#endif
TG_GELU_ERF_LOOPS(double, tg_exp, tg_normal_cdf)

#endif
