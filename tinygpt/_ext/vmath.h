/* exp, the normal distribution function and random words in a form that compilers turn into vector code:
 * no branches, no calls, one set of lines for every lane. Included once by kernels.pyx.
 */
#ifndef TINYGPT_VMATH_H
#define TINYGPT_VMATH_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* a * b + c in one rounding where the processor has it. Written as a call so that -fassociative-math can't
 * move the pieces of exp's argument reduction. */
#ifdef __FMA__
#define TG_FMAF(a, b, c) __builtin_fmaf(a, b, c)
#define TG_FMA(a, b, c) __builtin_fma(a, b, c)
#else
#define TG_FMAF(a, b, c) ((a) * (b) + (c))
#define TG_FMA(a, b, c) ((a) * (b) + (c))
#endif

/* exp(x) = 2^n * exp(r) with n = round(x / ln 2), |r| <= ln(2)/2. ln 2 is taken off in two pieces, the first with
 * enough trailing zeros that n times it is exact. exp(r) is its Taylor series, to degree 7 (float: the next term
 * is 5e-9 of the sum) or 13 (double: 4e-18).
 *
 * The ends come out without branches: x is held at a value whose n gives the exponent bits 0, so the factor 2^n is 0
 * and so is the result (for all results below the smallest normal number); n is held at the value whose bits mean
 * infinity (so the last third of a binade below the largest number is infinity already). A NaN passes through r. */
static inline float tg_expf(float x) {
    x = x < -88.1f ? -88.1f : x;
    float n = rintf(x * 1.44269504088896341f);
    n = n > 128.0f ? 128.0f : n;
    float r = TG_FMAF(n, -0.693145751953125f, x);
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
    double r = TG_FMA(n, -6.93147180369123816490e-01, x);
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

/* Random words of tinygpt/random.py: row `row`, columns first .. first + 4*quads - 1, first a multiple of 4.
 * Philox4x32-10 on LANES counters side by side. */
enum { TG_LANES = 64 }; /* many enough that the compiler keeps the loops and turns them into vector code */
static inline void tg_philox_lanes(uint32_t *out, uint32_t quad, uint32_t row, uint64_t seed, uint64_t stream) {
    uint32_t c0[TG_LANES], c1[TG_LANES], c2[TG_LANES], c3[TG_LANES];
    for (int i = 0; i < TG_LANES; i++) {
        c0[i] = quad + (uint32_t)i;
        c1[i] = row;
        c2[i] = (uint32_t)stream;
        c3[i] = (uint32_t)(stream >> 32);
    }
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < TG_LANES; i++) {
            uint64_t p0 = (uint64_t)c0[i] * 0xD2511F53u, p1 = (uint64_t)c2[i] * 0xCD9E8D57u;
            uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1[i] ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3[i] ^ k1;
            c1[i] = (uint32_t)p1;
            c3[i] = (uint32_t)p0;
            c0[i] = n0;
            c2[i] = n2;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    for (int i = 0; i < TG_LANES; i++) {
        out[4 * i] = c0[i];
        out[4 * i + 1] = c1[i];
        out[4 * i + 2] = c2[i];
        out[4 * i + 3] = c3[i];
    }
}

/* The factors of a dropout mask, 0 or `kept`, for `count` columns from `first` (a multiple of 4) of one row. */
static inline void tg_mask_float(float *mask, ptrdiff_t first, ptrdiff_t count, uint64_t row, uint32_t threshold,
                                 float kept, uint64_t seed, uint64_t stream) {
    uint32_t words[4 * TG_LANES];
    for (ptrdiff_t j = 0; j < count; j += 4 * TG_LANES) {
        tg_philox_lanes(words, (uint32_t)((first + j) / 4), (uint32_t)row, seed, stream);
        ptrdiff_t n = count - j < 4 * TG_LANES ? count - j : 4 * TG_LANES;
        for (ptrdiff_t i = 0; i < n; i++) mask[j + i] = words[i] >= threshold ? kept : 0.0f;
    }
}

static inline void tg_mask_double(double *mask, ptrdiff_t first, ptrdiff_t count, uint64_t row, uint32_t threshold,
                                  double kept, uint64_t seed, uint64_t stream) {
    uint32_t words[4 * TG_LANES];
    for (ptrdiff_t j = 0; j < count; j += 4 * TG_LANES) {
        tg_philox_lanes(words, (uint32_t)((first + j) / 4), (uint32_t)row, seed, stream);
        ptrdiff_t n = count - j < 4 * TG_LANES ? count - j : 4 * TG_LANES;
        for (ptrdiff_t i = 0; i < n; i++) mask[j + i] = words[i] >= threshold ? kept : 0.0;
    }
}

#endif
