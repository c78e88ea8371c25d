/* A matrix of weights, in formats that are unpacked to float in registers:
 *
 *     float32
 *     bfloat16: the upper half of a float32
 *     int8 with scales: w = q * scale, one scale for each column, or for each `group` elements of a column
 *     int4 in panels, with scales in bfloat16: see four_bits.h
 */
#ifndef TINYGPT_WEIGHTS_H
#define TINYGPT_WEIGHTS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "attention.h"
#include "pool.h"
#include "vmath.h"

enum { TG_FLOAT32, TG_BFLOAT16, TG_INT8, TG_INT4 };
enum { TG_WHOLE_INT8 = TG_INT4 + 1 }; /* for the body of a product: int8, whose scales multiply the finished sums */
enum { TG_LANE = TG_VECTOR_BYTES / 4 };

typedef float tg_floats __attribute__((vector_size(TG_VECTOR_BYTES), aligned(4), may_alias));
typedef uint32_t tg_words __attribute__((vector_size(TG_VECTOR_BYTES), aligned(4), may_alias));
typedef int32_t tg_ints __attribute__((vector_size(TG_VECTOR_BYTES), aligned(4), may_alias));
typedef uint16_t tg_halves __attribute__((vector_size(TG_VECTOR_BYTES / 2), aligned(2), may_alias));
typedef int8_t tg_bytes __attribute__((vector_size(TG_VECTOR_BYTES / 4), aligned(1), may_alias));

/* A matrix of rows x columns weights, row-major. scale is NULL except for int8. In y = x W the scale of element (r,
 * c) is scale[r / group * columns + c]; in the transposed product, whose rows are the outputs, it is scale[r *
 * ceil(columns / group) + c / group]. In int4, rows are always the terms of a sum, and the scales are half_scale. */
struct tg_matrix {
    const void *weight;
    const float *scale;
    const uint16_t *half_scale;
    const float *bias; /* added to the product; may be NULL */
    ptrdiff_t rows, columns, group;
    int format;
    int rounded; /* int8 and int4 only: products round the activations to 8 bits too (integer_tile.h) */
};

#define TG_INLINE static inline __attribute__((always_inline))

/* Optimisation barrier: hides how a vector was computed, which stops -fassociative-math from turning (q * scale) * x
 * into q * (scale * x). The compiler might do that for one row of x but not for several, which would give different
 * bits. */
#if defined(__x86_64__)
#define TG_BARRIER(vector) __asm__("" : "+v"(vector))
#elif defined(__aarch64__)
#define TG_BARRIER(vector) __asm__("" : "+w"(vector))
#else
#define TG_BARRIER(vector) ((void)0)
#endif

/* a * b + c, fused (rounded once) if the processor supports that. Written as an intrinsic, because for some
 * processors (-march=znver3) the compiler makes different choices for one row than for several, both whether to fuse
 * and how to order a chain of such sums, which would give different bits. */
TG_INLINE tg_floats tg_multiply_add(tg_floats a, tg_floats b, tg_floats c) {
#if defined(__AVX512F__)
    return (tg_floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    return (tg_floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    c += a * b;
    TG_BARRIER(c);
    return c;
#endif
}

TG_INLINE int tg_is_int8(int format) { return format == TG_INT8 || format == TG_WHOLE_INT8; }
TG_INLINE ptrdiff_t tg_weight_bytes(int format) { return format == TG_FLOAT32 ? 4 : format == TG_BFLOAT16 ? 2 : 1; }

/* Element i of the weights as a float, not yet scaled. */
TG_INLINE float tg_weight(const void *weight, ptrdiff_t i, int format) {
    if (format == TG_FLOAT32) return ((const float *)weight)[i];
    if (tg_is_int8(format)) return ((const int8_t *)weight)[i];
    const uint32_t bits = (uint32_t)((const uint16_t *)weight)[i] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Elements i .. i + TG_LANE - 1. Intrinsics, because compilers convert such vectors element by element. */
TG_INLINE tg_floats tg_weights(const void *weight, ptrdiff_t i, int format) {
    if (format == TG_FLOAT32) return *(const tg_floats *)((const float *)weight + i);
    const int8_t *bytes = (const int8_t *)weight + i;
    const uint16_t *halves = (const uint16_t *)weight + i;
#if defined(__AVX512F__)
    if (tg_is_int8(format))
        return (tg_floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)bytes)));
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)halves));
    return (tg_floats)_mm512_slli_epi32(wide, 16);
#elif defined(__AVX2__)
    if (tg_is_int8(format))
        return (tg_floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)bytes)));
    return (tg_floats)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)halves)), 16);
#else
    if (tg_is_int8(format))
        return __builtin_convertvector(__builtin_convertvector(*(const tg_bytes *)bytes, tg_ints), tg_floats);
    return (tg_floats)(__builtin_convertvector(*(const tg_halves *)halves, tg_words) << 16);
#endif
}

/* W as floats, for the matrix library ------------------------------------------------------------------------- */

struct tg_unpacking {
    const struct tg_matrix *matrix;
    float *out;
    int axis; /* the axis along which groups share a scale */
};

/* Unpack rows begin .. end - 1. Groups of columns share a scale (axis 1), or groups of rows share a row of scales
 * (axis 0). */
TG_INLINE void tg_unpack_of(const struct tg_unpacking *t, ptrdiff_t begin, ptrdiff_t end, int format) {
    const struct tg_matrix *w = t->matrix;
    const ptrdiff_t N = w->columns, groups = (N + w->group - 1) / w->group;
    for (ptrdiff_t r = begin; r < end; r++) {
        float *out = t->out + r * N;
        for (ptrdiff_t j = 0; j < N; j++) out[j] = tg_weight(w->weight, r * N + j, format);
        if (format != TG_INT8) continue;
        const float *scale = t->axis == 0 ? w->scale + r / w->group * N : w->scale + r * groups;
        if (t->axis == 0)
            for (ptrdiff_t j = 0; j < N; j++) out[j] *= scale[j];
        else
            for (ptrdiff_t j = 0; j < N; j++) out[j] *= scale[j / w->group];
    }
}

static void tg_unpack_rows(void *task, ptrdiff_t begin, ptrdiff_t end) {
    const struct tg_unpacking *t = task;
    if (t->matrix->format == TG_BFLOAT16)
        tg_unpack_of(t, begin, end, TG_BFLOAT16);
    else if (t->matrix->format == TG_INT8)
        tg_unpack_of(t, begin, end, TG_INT8);
    else
        tg_unpack_of(t, begin, end, TG_FLOAT32);
}

static void tg_unpack(const struct tg_matrix *matrix, int axis, float *out) {
    struct tg_unpacking t = {matrix, out, axis};
    tg_parallel_for(tg_unpack_rows, &t, matrix->rows, 16);
}

#endif
