/* bfloat16: the upper half of a float. Reading a number is exact; writing one rounds to nearest, ties to even.
 * Included once, by build/kernels.pyx.
 */
#ifndef TINYGPT_BFLOAT16_H
#define TINYGPT_BFLOAT16_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "vmath.h"

/* TG_PAIRS: whether this build has the instruction that adds the products of two pairs to a float (AVX512_BF16). It is
 * written as assembly, so that a level that must also run on processors without it can have it: tg_has_pairs checks. */
#if defined(__AVX512F__) && defined(__x86_64__) && (__GNUC__ >= 10 || __clang_major__ >= 9)
#define TG_PAIRS 1
#else
#define TG_PAIRS 0
#endif

static int tg_has_pairs(void) {
#if TG_PAIRS
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bf16") != 0;
#else
    return 0;
#endif
}

/* out = x, for n numbers. */
static void tg_widen(float *restrict out, const uint16_t *restrict x, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++) {
        const uint32_t bits = (uint32_t)x[i] << 16;
        memcpy(out + i, &bits, sizeof bits);
    }
}

/* out = x rounded, for n numbers. A NaN stays one. */
static void tg_narrow(uint16_t *restrict out, const float *restrict x, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, nan = (bits >> 16 & 0x8000) | 0x7fc0;
        out[i] = (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded);
    }
}

#endif
