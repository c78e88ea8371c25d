/* exp, the normal distribution function and random words in a form that compilers can vectorise: no branches, no calls,
 * the same operations for every lane. Included once, by build/kernels.pyx.
 */
#ifndef TINYGPT_VMATH_H
#define TINYGPT_VMATH_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The size of a vector register in bytes. */
#if defined(__AVX512F__)
enum { TG_VECTOR_BYTES = 64 };
#elif defined(__AVX__)
enum { TG_VECTOR_BYTES = 32 };
#else
enum { TG_VECTOR_BYTES = 16 };
#endif
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

/* a * b + c, fused (rounded once) if the processor supports that. A builtin call, so that -fassociative-math cannot
 * reorder the steps of exp's argument reduction. Without such an instruction, TG_APART separates the steps by an XOR
 * with a variable that is always 0, which the compiler cannot know; an asm barrier would prevent vectorisation. */
#ifdef __FMA__
#define TG_FMAF(a, b, c) __builtin_fmaf(a, b, c)
#define TG_FMA(a, b, c) __builtin_fma(a, b, c)
#define TG_APARTF(x) (x)
#define TG_APART(x) (x)
#else
#define TG_FMAF(a, b, c) ((a) * (b) + (c))
#define TG_FMA(a, b, c) ((a) * (b) + (c))
#define TG_APARTF(x) tg_apartf(x)
#define TG_APART(x) tg_apart(x)
__attribute__((visibility("hidden"))) uint64_t tg_no_bits; /* not static: another file might set it */
static inline float tg_apartf(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits ^= (uint32_t)tg_no_bits;
    memcpy(&x, &bits, sizeof bits);
    return x;
}
static inline double tg_apart(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits ^= tg_no_bits;
    memcpy(&x, &bits, sizeof bits);
    return x;
}
#endif

/* Optimisation barrier: hides from the compiler how x was computed. Otherwise -fassociative-math would combine
 * subtractions that must be done one after the other. */
#if defined(__x86_64__)
#define TG_HIDE(x) __asm__("" : "+x"(x))
#elif defined(__aarch64__)
#define TG_HIDE(x) __asm__("" : "+w"(x))
#else
#define TG_HIDE(x) __asm__("" : "+m"(x))
#endif

/* 1, hidden from the compiler: it cannot reassociate a + one * (b + c) as it can a + (b + c). */
static inline double tg_hidden_one(void) {
    double one = 1;
    TG_HIDE(one);
    return one;
}

/* (a - b) + c, in this order: for numbers that are the sum of two parts (tinygpt/ops/_two_parts.py). */
static inline double tg_less_then_more(double a, double b, double c) {
    TG_HIDE(b); /* b may be a sum that contains a, which would cancel */
    double difference = a - b;
    TG_HIDE(difference);
    return difference + c;
}

/* exp(-rest), for the rounding error `rest` of a log-sum-exp. It is usually tiny, and then three terms of the
 * series suffice. */
static inline double tg_exp_minus(double rest) {
    return fabs(rest) < 1e-5 ? 1 - rest * (1 - 0.5 * rest) : exp(-rest);
}

/* exp(x) = 2^n * exp(r) with n = round(x / ln 2), |r| <= ln(2)/2. n ln 2 is subtracted in two parts; the first part of
 * ln 2 has enough trailing zeros that n times it is exact. exp(r) is its Taylor series, to degree 7 (float: the next
 * term is 5e-9 of the sum) or 13 (double: 4e-18).
 *
 * Underflow and overflow need no branches. x is clamped to a value whose n gives exponent bits 0, so the factor 2^n
 * and the result are 0 (for all results below 2^-126.5; double: 2^-1022.5). n is clamped to the value whose bits
 * mean infinity (so all results above 2^127.5 are already infinity; double: 2^1023.5). A NaN propagates through r. */
static inline float tg_expf(float x) {
    x = x < -88.1f ? -88.1f : x;
    float n = rintf(x * 1.44269504088896341f);
    n = n > 128.0f ? 128.0f : n;
    float r = TG_APARTF(TG_FMAF(n, -0.693145751953125f, x));
    r = TG_FMAF(n, -1.42860682030941723212e-6f, r);
    float p = 1.0f / 5040;
    p = TG_FMAF(p, r, 1.0f / 720);
    p = TG_FMAF(p, r, 1.0f / 120);
    p = TG_FMAF(p, r, 1.0f / 24);
    p = TG_FMAF(p, r, 1.0f / 6);
    p = TG_FMAF(p, r, 0.5f);
    p = TG_FMAF(p, r, 1.0f);
    p = TG_FMAF(p, r, 1.0f);
    uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

static inline double tg_exp(double x) {
    x = x < -709.1 ? -709.1 : x;
    double n = rint(x * 1.44269504088896340736);
    n = n > 1024.0 ? 1024.0 : n;
    double r = TG_APART(TG_FMA(n, -6.93147180369123816490e-01, x));
    r = TG_FMA(n, -1.90821492927058770002e-10, r);
    double p = 1.0 / 6227020800;
    p = TG_FMA(p, r, 1.0 / 479001600);
    p = TG_FMA(p, r, 1.0 / 39916800);
    p = TG_FMA(p, r, 1.0 / 3628800);
    p = TG_FMA(p, r, 1.0 / 362880);
    p = TG_FMA(p, r, 1.0 / 40320);
    p = TG_FMA(p, r, 1.0 / 5040);
    p = TG_FMA(p, r, 1.0 / 720);
    p = TG_FMA(p, r, 1.0 / 120);
    p = TG_FMA(p, r, 1.0 / 24);
    p = TG_FMA(p, r, 1.0 / 6);
    p = TG_FMA(p, r, 0.5);
    p = TG_FMA(p, r, 1.0);
    p = TG_FMA(p, r, 1.0);
    /* 64-bit integers convert to and from double only with AVX-512; 32 bits suffice and vectorise everywhere. */
    uint64_t bits = (uint64_t)(uint32_t)((int32_t)n + 1023) << 52;
    double power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

/* The normal distribution function, by the expansion that tinygpt/ops/erf.py derives: with z = |x| / sqrt(2),
 * erfc(z) = exp(-z^2) * 3 / (z + 3) * g(w), w = (z - 3) / (z + 3). The coefficients of g shrink fast: float needs 18
 * of the 23. Beyond z = 30 the tail is 0 in either type, and clamping z there keeps w finite. */
static inline float tg_normal_cdff(float x) {
    float z = fabsf(x) * 0.70710678118654752440f;
    z = z > 30.0f ? 30.0f : z;
    const float inverse = 1.0f / (z + 3.0f), w = 1.0f - 6.0f * inverse; /* divisions are slow: use only one */
    float g = -7.241314802770049e-08f;
    g = TG_FMAF(g, w, -1.3722842699707078e-07f);
    g = TG_FMAF(g, w, 3.2798388174367714e-07f);
    g = TG_FMAF(g, w, 9.225829640201545e-07f);
    g = TG_FMAF(g, w, -1.5801189369395114e-06f);
    g = TG_FMAF(g, w, -5.823857407636014e-06f);
    g = TG_FMAF(g, w, 1.013157867515692e-05f);
    g = TG_FMAF(g, w, 3.585392363681283e-05f);
    g = TG_FMAF(g, w, -9.225899997789508e-05f);
    g = TG_FMAF(g, w, -0.00018276991424949872f);
    g = TG_FMAF(g, w, 0.0010113539579816233f);
    g = TG_FMAF(g, w, -0.00040413887394316183f);
    g = TG_FMAF(g, w, -0.008942411537958437f);
    g = TG_FMAF(g, w, 0.039842587095666314f);
    g = TG_FMAF(g, w, -0.10348908730032487f);
    g = TG_FMAF(g, w, 0.19674278570136933f);
    g = TG_FMAF(g, w, -0.294464817723293f);
    g = TG_FMAF(g, w, 0.3580023023627799f);
    const float tail = tg_expf(-z * z) * 1.5f * g * inverse;
    return x > 0.0f ? 1.0f - tail : tail;
}

static inline double tg_normal_cdf(double x) {
    double z = fabs(x) * 0.70710678118654752440;
    z = z > 30.0 ? 30.0 : z;
    const double w = (z - 3.0) / (z + 3.0);
    double g = 2.3183140785839886e-12;
    g = TG_FMA(g, w, -1.3433763579084274e-09);
    g = TG_FMA(g, w, -1.1893885619150114e-09);
    g = TG_FMA(g, w, 1.3174436327280305e-08);
    g = TG_FMA(g, w, 1.6652640553604126e-08);
    g = TG_FMA(g, w, -7.241314802770049e-08);
    g = TG_FMA(g, w, -1.3722842699707078e-07);
    g = TG_FMA(g, w, 3.2798388174367714e-07);
    g = TG_FMA(g, w, 9.225829640201545e-07);
    g = TG_FMA(g, w, -1.5801189369395114e-06);
    g = TG_FMA(g, w, -5.823857407636014e-06);
    g = TG_FMA(g, w, 1.013157867515692e-05);
    g = TG_FMA(g, w, 3.585392363681283e-05);
    g = TG_FMA(g, w, -9.225899997789508e-05);
    g = TG_FMA(g, w, -0.00018276991424949872);
    g = TG_FMA(g, w, 0.0010113539579816233);
    g = TG_FMA(g, w, -0.00040413887394316183);
    g = TG_FMA(g, w, -0.008942411537958437);
    g = TG_FMA(g, w, 0.039842587095666314);
    g = TG_FMA(g, w, -0.10348908730032487);
    g = TG_FMA(g, w, 0.19674278570136933);
    g = TG_FMA(g, w, -0.294464817723293);
    g = TG_FMA(g, w, 0.3580023023627799);
    const double tail = tg_exp(-z * z) * 1.5 * g / (z + 3.0);
    return x > 0.0 ? 1.0 - tail : tail;
}

/* Philox4x32-10, the random words of tinygpt/random.py, on TG_COUNTERS counters in parallel. Each word is the lower
 * half of a 64-bit lane, because that is how vector instructions multiply 32 by 32 bits into 64; they ignore the
 * upper halves. In: the counters. Out: the words. */
typedef uint64_t tg_counters __attribute__((vector_size(TG_VECTOR_BYTES)));
enum { TG_COUNTERS = TG_VECTOR_BYTES / 8 };

static inline tg_counters tg_multiply_halves(tg_counters a, uint32_t factor) {
    const tg_counters b = (tg_counters){0} + factor;
#if defined(__AVX512F__)
    return (tg_counters)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (tg_counters)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__) && !defined(__AVX__)
    return (tg_counters)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
    return (a & 0xffffffffu) * b;
#endif
}

static inline void tg_philox(tg_counters c[4], uint64_t seed) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; round++) {
        const tg_counters p0 = tg_multiply_halves(c[0], 0xD2511F53u), p1 = tg_multiply_halves(c[2], 0xCD9E8D57u);
        c[0] = (p1 >> 32) ^ c[1] ^ k0;
        c[2] = (p0 >> 32) ^ c[3] ^ k1;
        c[1] = p1;
        c[3] = p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

/* 4 * TG_MANY words of a row, from the counter `quad` on. The vectors of counters are independent, which hides the
 * latency of the multiplications. */
enum { TG_VECTORS = 4, TG_MANY = TG_VECTORS * TG_COUNTERS };
static inline void tg_random_words(uint32_t *out, uint32_t quad, uint32_t row, uint64_t seed, uint64_t stream) {
    tg_counters c[TG_VECTORS][4];
#pragma GCC unroll 4
    for (int v = 0; v < TG_VECTORS; v++) {
        for (int i = 0; i < TG_COUNTERS; i++) c[v][0][i] = quad + (uint32_t)(v * TG_COUNTERS + i);
        c[v][1] = (tg_counters){0} + row;
        c[v][2] = (tg_counters){0} + (uint32_t)stream;
        c[v][3] = (tg_counters){0} + (stream >> 32);
    }
#pragma GCC unroll 4
    for (int v = 0; v < TG_VECTORS; v++) tg_philox(c[v], seed);
    for (int v = 0; v < TG_VECTORS; v++)
        for (int i = 0; i < TG_COUNTERS; i++)
            for (int word = 0; word < 4; word++) out[4 * (v * TG_COUNTERS + i) + word] = (uint32_t)c[v][word][i];
}

/* The factors of a dropout mask, 0 or `kept`, for the first `count` columns of one row. */
#define TG_DROPOUT_MASK(type)                                                                                       \
    static inline void tg_mask_##type(type *mask, ptrdiff_t count, uint64_t row, uint32_t threshold, type kept,      \
                                      uint64_t seed, uint64_t stream) {                                             \
        uint32_t words[4 * TG_MANY];                                                                               \
        for (ptrdiff_t j = 0; j < count; j += 4 * TG_MANY) {                                                       \
            tg_random_words(words, (uint32_t)(j / 4), (uint32_t)row, seed, stream);                                \
            const ptrdiff_t n = count - j < 4 * TG_MANY ? count - j : 4 * TG_MANY;                                 \
            for (ptrdiff_t i = 0; i < n; i++) mask[j + i] = words[i] >= threshold ? kept : 0;                      \
        }                                                                                                          \
    }
TG_DROPOUT_MASK(float)
TG_DROPOUT_MASK(double)

/* Sums over a row in double precision. A single running sum would be bound by the latency of the addition, so there
 * are four vectors of sums. */
typedef double tg_doubles __attribute__((vector_size(TG_VECTOR_BYTES), aligned(8), may_alias));
enum { TG_DOUBLES = TG_VECTOR_BYTES / 8, TG_SUMS = 4 };

static inline double tg_total(const tg_doubles *sum) {
    const tg_doubles all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    double total = 0;
    for (int i = 0; i < TG_DOUBLES; i++) total += all[i];
    return total;
}

/* Convert a vector of TG_DOUBLES floats, or doubles, to doubles. An intrinsic for floats, since some compilers
 * convert the two halves separately. */
typedef float tg_some_float __attribute__((vector_size(TG_DOUBLES * sizeof(float)), aligned(4), may_alias));
typedef double tg_some_double __attribute__((vector_size(TG_DOUBLES * sizeof(double)), aligned(8), may_alias));
static inline tg_doubles tg_to_doubles_float(tg_some_float x) {
#if defined(__AVX512F__)
    return (tg_doubles)_mm512_cvtps_pd((__m256)x);
#else
    return __builtin_convertvector(x, tg_doubles);
#endif
}
static inline tg_doubles tg_to_doubles_double(tg_some_double x) { return x; }

/* The lower half of a vector of floats plus its upper half, in double precision. */
typedef float tg_floats __attribute__((vector_size(TG_VECTOR_BYTES), aligned(4), may_alias));
enum { TG_FLOATS = TG_VECTOR_BYTES / 4 };
static inline tg_doubles tg_widened(tg_floats v) {
#if defined(__AVX512F__)
    const __m512d bits = _mm512_castps_pd((__m512)v);
    const __m256 lower = _mm256_castpd_ps(_mm512_castpd512_pd256(bits));
    const __m256 upper = _mm256_castpd_ps(_mm512_extractf64x4_pd(bits, 1));
    return (tg_doubles)_mm512_add_pd(_mm512_cvtps_pd(lower), _mm512_cvtps_pd(upper));
#else
    tg_some_float half[2];
    memcpy(half, &v, sizeof half);
    return tg_to_doubles_float(half[0]) + tg_to_doubles_float(half[1]);
#endif
}

#endif
