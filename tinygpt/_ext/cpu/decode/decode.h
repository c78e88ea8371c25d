/* Decoding one token at a time: products of a few rows with a large matrix, and a whole block of the model.
 * Included once, by build/kernels.pyx. The class Block in tinygpt/gpt.py has the mathematics.
 *
 * With one row, every weight is read from memory once and used for a single multiply-add, so reading the weights takes
 * all of the time, and everything here is arranged to read memory in long sequential runs.
 *
 * A matrix W (K, N) multiplies from the right: y = x W. Its rows are split into eight blocks, whatever the number of
 * threads or of rows of x. Block b computes its part of the sum over k for all N columns; its memory is contiguous, and
 * is read as TG_DEEP streams. Whoever reads the product next (`tg_sum`) adds up the partial sums in the order of the
 * blocks, and the bias. So the bits of y do not depend on the number of threads, and those of row m not on the other
 * rows.
 *
 * Three weight formats, unpacked to float in registers on the fly:
 *     float32
 *     bfloat16: the upper half of a float32
 *     int8 with scales: w = q * scale, one scale for each column, or for each `group` elements of a column
 */
#ifndef TINYGPT_DECODE_H
#define TINYGPT_DECODE_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "attention.h"
#include "gelu_erf.h"
#include "pool.h"
#include "vmath.h"

enum { TG_FLOAT32, TG_BFLOAT16, TG_INT8 };
enum { TG_BLOCKS = 8, TG_DEEP = 8, TG_TILE = 512, TG_PAD = 16, TG_ROWS_AT_ONCE = 16 };
enum { TG_LANE = TG_VECTOR_BYTES / 4 };

typedef float tg_floats __attribute__((vector_size(TG_VECTOR_BYTES), aligned(4), may_alias));
typedef uint32_t tg_words __attribute__((vector_size(TG_VECTOR_BYTES), aligned(4), may_alias));
typedef int32_t tg_ints __attribute__((vector_size(TG_VECTOR_BYTES), aligned(4), may_alias));
typedef uint16_t tg_halves __attribute__((vector_size(TG_VECTOR_BYTES / 2), aligned(2), may_alias));
typedef int8_t tg_bytes __attribute__((vector_size(TG_VECTOR_BYTES / 4), aligned(1), may_alias));

/* A matrix of rows x columns weights, row-major. scale is NULL except for int8. In y = x W the scale of element (r,
 * c) is scale[r / group * columns + c]; in the transposed product, whose rows are the outputs, it is scale[r *
 * ceil(columns / group) + c / group]. */
struct tg_matrix {
    const void *weight;
    const float *scale;
    const float *bias; /* added to the product; may be NULL */
    ptrdiff_t rows, columns, group;
    int format;
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

/* Element i of the weights as a float, not yet scaled. */
TG_INLINE float tg_weight(const void *weight, ptrdiff_t i, int format) {
    if (format == TG_FLOAT32) return ((const float *)weight)[i];
    if (format == TG_INT8) return ((const int8_t *)weight)[i];
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
    if (format == TG_INT8)
        return (tg_floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)bytes)));
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)halves));
    return (tg_floats)_mm512_slli_epi32(wide, 16);
#elif defined(__AVX2__)
    if (format == TG_INT8)
        return (tg_floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)bytes)));
    return (tg_floats)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)halves)), 16);
#else
    if (format == TG_INT8)
        return __builtin_convertvector(__builtin_convertvector(*(const tg_bytes *)bytes, tg_ints), tg_floats);
    return (tg_floats)(__builtin_convertvector(*(const tg_halves *)halves, tg_words) << 16);
#endif
}

/* Columns j .. j + TG_LANE - 1 of M rows of y (`pitch` apart) += x (M, deep) times the vectors in `part`. */
TG_INLINE void tg_add_products(const float *x, ptrdiff_t M, int deep, const tg_floats *part, float *y, ptrdiff_t pitch) {
    for (ptrdiff_t m = 0; m < M; m++) {
        tg_floats *out = (tg_floats *)(y + m * pitch), sum = *out;
#pragma GCC unroll 8
        for (int r = 0; r < deep; r++) sum = tg_multiply_add(part[r], x[m * TG_DEEP + r] - (tg_floats){0}, sum);
        *out = sum;
    }
}

/* y += x[:, k] W[k] for the `deep` <= TG_DEEP rows k, k + apart, k + 2 apart, ... of W, in columns j0 .. j1 - 1. The
 * rows of x are ldx apart. The vectors of W stay in registers for all M <= TG_ROWS_AT_ONCE rows of x. */
TG_INLINE void tg_deep_rows(const struct tg_matrix *w, const float *x, ptrdiff_t ldx, ptrdiff_t M, ptrdiff_t k,
                            ptrdiff_t apart, int deep, ptrdiff_t j0, ptrdiff_t j1, float *y, ptrdiff_t pitch, int format) {
    const ptrdiff_t N = w->columns, size = format == TG_FLOAT32 ? 4 : format == TG_BFLOAT16 ? 2 : 1;
    const float *scale[TG_DEEP];
    if (format == TG_INT8)
        for (int r = 0; r < deep; r++) scale[r] = w->scale + (k + r * apart) / w->group * N;
    float factors[TG_ROWS_AT_ONCE * TG_DEEP]; /* the elements of x that are used, contiguous */
    for (ptrdiff_t m = 0; m < M; m++)
        for (int r = 0; r < deep; r++) factors[m * TG_DEEP + r] = x[m * ldx + k + r * apart];
    tg_floats part[TG_DEEP];
    ptrdiff_t j = j0;
    for (; j + TG_LANE <= j1; j += TG_LANE) {
#pragma GCC unroll 8
        for (int r = 0; r < deep; r++) {
            part[r] = tg_weights(w->weight, (k + r * apart) * N + j, format);
            if (format == TG_INT8) part[r] *= *(const tg_floats *)(scale[r] + j);
            if (format == TG_INT8 && M == 1) TG_BARRIER(part[r]); /* with several rows the loop has the same effect */
            if (M > 1) __builtin_prefetch((const char *)w->weight + ((k + 1 + r * apart) * N + j) * size);
        }
        tg_add_products(factors, M, deep, part, y + j, pitch);
    }
    if (j == j1) return;
    /* The last columns, as a vector padded with zeros: y is padded too. */
    for (int r = 0; r < deep; r++) {
        part[r] = (tg_floats){0};
        for (int i = 0; i < j1 - j; i++) {
            part[r][i] = tg_weight(w->weight, (k + r * apart) * N + j + i, format);
            if (format == TG_INT8) part[r][i] *= scale[r][j + i];
        }
        TG_BARRIER(part[r]);
    }
    tg_add_products(factors, M, deep, part, y + j, pitch);
}

/* The same for all columns and rows k0 .. k1 - 1, but y is overwritten. The rows that are read together are an
 * eighth of the block apart, which makes long streams in different pages, as the hardware prefetcher needs them.
 * With several rows of x, columns are processed in tiles of TG_TILE, so that the sums stay in the L1 cache. */
TG_INLINE void tg_columns_of(const struct tg_matrix *w, const float *x, ptrdiff_t ldx, ptrdiff_t M, ptrdiff_t k0,
                             ptrdiff_t k1, float *y, ptrdiff_t pitch, int format) {
    const ptrdiff_t N = w->columns, tile = M == 1 ? N : TG_TILE, apart = (k1 - k0) / TG_DEEP;
    for (ptrdiff_t j0 = 0; j0 < N; j0 += tile) {
        const ptrdiff_t j1 = j0 + tile < N ? j0 + tile : N, cleared = j1 == N ? pitch - j0 : j1 - j0;
        for (ptrdiff_t m = 0; m < M; m++) memset(y + m * pitch + j0, 0, (size_t)cleared * sizeof(float));
        for (ptrdiff_t k = k0; k < k0 + apart; k++) tg_deep_rows(w, x, ldx, M, k, apart, TG_DEEP, j0, j1, y, pitch, format);
        for (ptrdiff_t k = k0 + apart * TG_DEEP; k < k1; k++)
            tg_deep_rows(w, x, ldx, M, k, 1, 1, j0, j1, y, pitch, format);
    }
}

static void tg_columns(const struct tg_matrix *w, const float *x, ptrdiff_t ldx, ptrdiff_t M, ptrdiff_t k0, ptrdiff_t k1,
                       float *y, ptrdiff_t pitch) {
    for (; M > 0; M -= TG_ROWS_AT_ONCE, x += TG_ROWS_AT_ONCE * ldx, y += TG_ROWS_AT_ONCE * pitch) {
        const ptrdiff_t rows = M < TG_ROWS_AT_ONCE ? M : TG_ROWS_AT_ONCE;
        if (w->format == TG_FLOAT32)
            tg_columns_of(w, x, ldx, rows, k0, k1, y, pitch, TG_FLOAT32);
        else if (w->format == TG_BFLOAT16)
            tg_columns_of(w, x, ldx, rows, k0, k1, y, pitch, TG_BFLOAT16);
        else
            tg_columns_of(w, x, ldx, rows, k0, k1, y, pitch, TG_INT8);
    }
}

/* The first row of block b of K rows: a multiple of TG_DEEP, with blocks as equal as possible. */
static inline ptrdiff_t tg_block_begin(ptrdiff_t K, ptrdiff_t b) {
    const ptrdiff_t deep = (K + TG_DEEP - 1) / TG_DEEP, k = deep * b / TG_BLOCKS * TG_DEEP;
    return k < K ? k : K;
}

/* The partial sums of a product: block b's part of row m is at parts + (b * M + m) * pitch. */
struct tg_parts {
    float *parts;
    ptrdiff_t M, pitch;
};

/* out[j] = the sum over the blocks for column j0 + j of row m, plus the bias, for `count` columns. */
static void tg_sum(const struct tg_parts *p, const struct tg_matrix *w, ptrdiff_t m, ptrdiff_t j0, ptrdiff_t count,
                   float *restrict out) {
    const float *restrict row = p->parts + m * p->pitch + j0;
    memcpy(out, row, (size_t)count * sizeof(float));
    for (int b = 1; b < TG_BLOCKS; b++) {
        row += p->M * p->pitch;
        for (ptrdiff_t j = 0; j < count; j++) out[j] += row[j];
    }
    if (w->bias)
        for (ptrdiff_t j = 0; j < count; j++) out[j] += w->bias[j0 + j];
}

/* y = x W. --------------------------------------------------------------------------------------------------------- */

struct tg_product {
    const struct tg_matrix *matrix;
    const float *x;
    ptrdiff_t ldx;
    struct tg_parts out;
};

static void tg_product_blocks(void *task, ptrdiff_t begin, ptrdiff_t end) {
    const struct tg_product *t = task;
    const ptrdiff_t K = t->matrix->rows;
    for (ptrdiff_t b = begin; b < end; b++)
        tg_columns(t->matrix, t->x, t->ldx, t->out.M, tg_block_begin(K, b), tg_block_begin(K, b + 1),
                   t->out.parts + b * t->out.M * t->out.pitch, t->out.pitch);
}

/* The padding keeps rows from being 4 KB apart, where they would evict one another from the cache, and makes room
 * for the last vector, which may reach beyond column N. */
static inline ptrdiff_t tg_pitch(ptrdiff_t N) { return N + TG_PAD; }

/* The partial sums of x W, for x with M rows of matrix->rows elements, ldx apart. */
static struct tg_parts tg_product(const struct tg_matrix *matrix, const float *x, ptrdiff_t ldx, ptrdiff_t M, float *parts) {
    struct tg_product t = {matrix, x, ldx, {parts, M, tg_pitch(matrix->columns)}};
    tg_parallel_for(tg_product_blocks, &t, TG_BLOCKS, 1);
    return t.out;
}

/* y = x W^T, with the outputs as rows of W: dot products. ---------------------------------------------------------- */

TG_INLINE float tg_lane_sum(tg_floats v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    for (int width = TG_LANE / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) v[i] += v[i + width];
    return v[0];
#endif
}

/* Rows of W that are read together, as separate streams; and rows of x, so that a vector of W is unpacked once for
 * several. */
enum { TG_DOTS = 4, TG_WIDE = TG_REGISTERS == 32 ? 4 : 2 };

/* y[m, n] = x[m] . W[n] for `wide` <= TG_WIDE rows m and the `count` <= TG_DOTS rows n, n + apart, n + 2 apart, ... */
TG_INLINE void tg_dot_rows(const struct tg_matrix *w, const float *x, int wide, ptrdiff_t n, ptrdiff_t apart, int count,
                           float *y, int format) {
    const ptrdiff_t K = w->columns, N = w->rows, groups = (K + w->group - 1) / w->group;
    tg_floats sum[TG_WIDE][TG_DOTS] = {{{0}}};
    for (ptrdiff_t g = 0; g < groups; g++) {
        const ptrdiff_t end = (g + 1) * w->group < K ? (g + 1) * w->group : K;
        ptrdiff_t k = g * w->group;
        for (; k + TG_LANE <= end; k += TG_LANE) {
#pragma GCC unroll 4
            for (int r = 0; r < count; r++) {
                tg_floats part = tg_weights(w->weight, (n + r * apart) * K + k, format);
                if (format == TG_INT8) part *= w->scale[(n + r * apart) * groups + g];
                if (format == TG_INT8) TG_BARRIER(part);
#pragma GCC unroll 4
                for (int m = 0; m < wide; m++)
                    sum[m][r] = tg_multiply_add(part, *(const tg_floats *)(x + m * K + k), sum[m][r]);
            }
        }
        if (k == end) continue;
        /* The last elements of the group, as vectors padded with zeros. */
        for (int r = 0; r < count; r++) {
            tg_floats part = {0};
            for (int i = 0; i < end - k; i++) {
                part[i] = tg_weight(w->weight, (n + r * apart) * K + k + i, format);
                if (format == TG_INT8) part[i] *= w->scale[(n + r * apart) * groups + g];
            }
            TG_BARRIER(part);
            for (int m = 0; m < wide; m++) {
                tg_floats xs = {0};
                for (int i = 0; i < end - k; i++) xs[i] = x[m * K + k + i];
                sum[m][r] = tg_multiply_add(part, xs, sum[m][r]);
            }
        }
    }
    for (int m = 0; m < wide; m++)
        for (int r = 0; r < count; r++) y[m * N + n + r * apart] = tg_lane_sum(sum[m][r]);
}

struct tg_dots {
    const struct tg_matrix *matrix;
    const float *x;
    float *y;
    ptrdiff_t M;
};

/* The dot products of `count` rows of W with all rows of x. */
TG_INLINE void tg_dots_at(const struct tg_dots *t, ptrdiff_t n, ptrdiff_t apart, int count, int format) {
    const ptrdiff_t K = t->matrix->columns, N = t->matrix->rows;
    ptrdiff_t m = 0;
    for (; m + TG_WIDE <= t->M; m += TG_WIDE)
        tg_dot_rows(t->matrix, t->x + m * K, TG_WIDE, n, apart, count, t->y + m * N, format);
    for (; m < t->M; m++) tg_dot_rows(t->matrix, t->x + m * K, 1, n, apart, count, t->y + m * N, format);
}

/* Rows begin .. end - 1 of W, read as TG_DOTS long streams. */
TG_INLINE void tg_dots_of(const struct tg_dots *t, ptrdiff_t begin, ptrdiff_t end, int format) {
    const ptrdiff_t apart = (end - begin) / TG_DOTS;
    for (ptrdiff_t n = begin; n < begin + apart; n++) tg_dots_at(t, n, apart, TG_DOTS, format);
    for (ptrdiff_t n = begin + apart * TG_DOTS; n < end; n++) tg_dots_at(t, n, 1, 1, format);
}

static void tg_dots_chunk(void *task, ptrdiff_t begin, ptrdiff_t end) {
    const struct tg_dots *t = task;
    if (t->matrix->format == TG_FLOAT32)
        tg_dots_of(t, begin, end, TG_FLOAT32);
    else if (t->matrix->format == TG_BFLOAT16)
        tg_dots_of(t, begin, end, TG_BFLOAT16);
    else
        tg_dots_of(t, begin, end, TG_INT8);
}

/* y (M, N) = x (M, K) W^T, W (N, K). The order of each sum depends only on K and the group size. */
static void tg_transposed_product(const struct tg_matrix *matrix, const float *x, ptrdiff_t M, float *y) {
    struct tg_dots t = {matrix, x, y, M};
    tg_parallel_for(tg_dots_chunk, &t, matrix->rows, 1024);
}

/* W as floats, for the matrix library. ----------------------------------------------------------------------------- */

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

/* One block of the model. ------------------------------------------------------------------------------------------ */

enum { TG_GELU_TANH, TG_GELU_ERF, TG_RELU, TG_SILU };

struct tg_block {
    struct tg_matrix attn, attn_proj, fc, proj;
    const float *ln_1, *ln_1_bias, *ln_2, *ln_2_bias;
    ptrdiff_t M, C, H, capacity;
    double eps_1, eps_2, scale; /* scale: of attention's scores */
    int activation;             /* of the MLP: TG_GELU_TANH, ... */
    float *x;              /* (M, C) the residual stream */
    float *keys, *values;  /* (M, H, capacity, D) */
    const int64_t *length; /* (M,) tokens in the cache before this one */
    float *normed;         /* (M, C) */
    float *mixed;          /* (M, C) the output of attention */
    float *wide;           /* (M, proj.rows) the output of the activation; at least (M, C) */
    float *parts[2];       /* partial sums: parts[1] those of the block's last product, parts[0] those of all others */
    struct tg_parts last;
};

static void tg_norm(const float *x, const float *weight, const float *bias, double eps, ptrdiff_t C, float *y) {
    double total = 0, squares = 0;
    for (ptrdiff_t j = 0; j < C; j++) total += x[j];
    const double mean = total / (double)C;
    for (ptrdiff_t j = 0; j < C; j++) squares += (x[j] - mean) * (x[j] - mean);
    const float rstd = (float)(1.0 / sqrt(squares / (double)C + eps));
    for (ptrdiff_t j = 0; j < C; j++) {
        const float norm = (float)(x[j] - mean) * rstd * weight[j];
        y[j] = bias ? norm + bias[j] : norm;
    }
}

/* x += the last product, whose matrix is `before`. */
static void tg_add_rows(struct tg_block *t, const struct tg_matrix *before, ptrdiff_t begin, ptrdiff_t end) {
    for (ptrdiff_t m = begin; m < end; m++) {
        float *branch = t->normed + m * t->C, *x = t->x + m * t->C;
        tg_sum(&t->last, before, m, 0, t->C, branch);
        for (ptrdiff_t j = 0; j < t->C; j++) x[j] += branch[j];
    }
}

static void tg_norm_1_rows(void *task, ptrdiff_t begin, ptrdiff_t end) {
    struct tg_block *t = task;
    for (ptrdiff_t m = begin; m < end; m++)
        tg_norm(t->x + m * t->C, t->ln_1, t->ln_1_bias, t->eps_1, t->C, t->normed + m * t->C);
}

static void tg_norm_2_rows(void *task, ptrdiff_t begin, ptrdiff_t end) {
    struct tg_block *t = task;
    tg_add_rows(t, &t->attn_proj, begin, end);
    for (ptrdiff_t m = begin; m < end; m++)
        tg_norm(t->x + m * t->C, t->ln_2, t->ln_2_bias, t->eps_2, t->C, t->normed + m * t->C);
}

static void tg_last_rows(void *task, ptrdiff_t begin, ptrdiff_t end) {
    struct tg_block *t = task;
    tg_add_rows(t, &t->proj, begin, end);
}

/* out (D) += the sum over n keys of score * value. Up to four vectors of out stay in registers. */
static void tg_add_values(const float *score, const float *values, ptrdiff_t n, ptrdiff_t D, float *out) {
    ptrdiff_t d = 0;
    for (; d + 4 * TG_LANE <= D; d += 4 * TG_LANE) {
        tg_floats *to = (tg_floats *)(out + d), a = to[0], b = to[1], c = to[2], e = to[3];
        for (ptrdiff_t t = 0; t < n; t++) {
            const tg_floats *value = (const tg_floats *)(values + t * D + d);
            a += score[t] * value[0];
            b += score[t] * value[1];
            c += score[t] * value[2];
            e += score[t] * value[3];
        }
        to[0] = a, to[1] = b, to[2] = c, to[3] = e;
    }
    for (; d < D; d++)
        for (ptrdiff_t t = 0; t < n; t++) out[d] += score[t] * values[t * D + d];
}

static inline float tg_dot(const float *a, const float *b, ptrdiff_t D) {
    tg_floats sum = {0};
    ptrdiff_t d = 0;
    for (; d + TG_LANE <= D; d += TG_LANE) sum += *(const tg_floats *)(a + d) * *(const tg_floats *)(b + d);
    float tail = 0;
    for (; d < D; d++) tail += a[d] * b[d];
    return tg_lane_sum(sum) + tail;
}

enum { TG_SPAN = 128 }; /* keys processed together */

/* out (D) = softmax(q . keys) values over `count` keys, in one pass (online softmax): when the running maximum
 * grows, the sums so far are rescaled. q is already scaled. */
static void tg_attend(const float *q, const float *keys, const float *values, ptrdiff_t count, ptrdiff_t D, float *out) {
    float top = -INFINITY, total = 0, score[TG_SPAN];
    memset(out, 0, (size_t)D * sizeof(float));
    for (ptrdiff_t first = 0; first < count; first += TG_SPAN) {
        const ptrdiff_t n = count - first < TG_SPAN ? count - first : TG_SPAN;
        for (ptrdiff_t t = 0; t < n; t++) {
            const float *value = values + (first + t) * D; /* needed soon: prefetch it now */
            for (ptrdiff_t d = 0; d < D; d += 16) __builtin_prefetch(value + d);
            score[t] = tg_dot(q, keys + (first + t) * D, D);
        }
        const float highest = tg_largest_float(score, n, top), shrink = tg_expf(top - highest);
        top = highest;
        for (ptrdiff_t d = 0; d < D; d++) out[d] *= shrink;
        float added = 0;
        for (ptrdiff_t t = 0; t < n; t++) added += score[t] = tg_expf(score[t] - top);
        total = total * shrink + added;
        tg_add_values(score, values + first * D, n, D, out);
    }
    for (ptrdiff_t d = 0; d < D; d++) out[d] /= total;
}

/* For pairs (row, head): take q, k, v from the product, append k and v to the cache, attend to all tokens of the
 * row. */
static void tg_attend_heads(void *task, ptrdiff_t begin, ptrdiff_t end) {
    const struct tg_block *t = task;
    const ptrdiff_t D = t->C / t->H;
    for (ptrdiff_t i = begin; i < end; i++) {
        const ptrdiff_t m = i / t->H, h = i % t->H, length = t->length[m];
        float *keys = t->keys + i * t->capacity * D, *values = t->values + i * t->capacity * D;
        float *out = t->mixed + m * t->C + h * D, *q = t->wide + i * D; /* wide is unused here, and large enough */
        tg_sum(&t->last, &t->attn, m, h * D, D, q);
        tg_sum(&t->last, &t->attn, m, t->C + h * D, D, keys + length * D);
        tg_sum(&t->last, &t->attn, m, 2 * t->C + h * D, D, values + length * D);
        const float scale = (float)t->scale;
        for (ptrdiff_t d = 0; d < D; d++) q[d] *= scale;
        tg_attend(q, keys, values, length + 1, D, out);
    }
}

/* v = activation(v) for n elements, elementwise, so that a result does not depend on the element's index. */
static void tg_activate(float *v, ptrdiff_t n, int activation) {
    if (activation == TG_GELU_TANH)
        for (ptrdiff_t i = 0; i < n; i++) {
            const float x = v[i] < -40 ? -40 : v[i]; /* as in gelu.pyx */
            const float u = 0.79788456080286535588f * (x + 0.044715f * x * x * x);
            v[i] = x / (1.0f + tg_expf(-2.0f * u));
        }
    else if (activation == TG_GELU_ERF)
        tg_gelu_erf_forward_float(v, v, n);
    else if (activation == TG_RELU)
        for (ptrdiff_t i = 0; i < n; i++) v[i] = v[i] < 0 ? 0 : v[i]; /* a NaN stays NaN */
    else
        for (ptrdiff_t i = 0; i < n; i++) {
            const float x = v[i] < -100 ? -100 : v[i]; /* avoids -inf / inf = NaN */
            v[i] = x / (1.0f + tg_expf(-x));
        }
}

/* The second product of the MLP: each block first applies the activation to its own part of the first product. */
static void tg_mlp_blocks(void *task, ptrdiff_t begin, ptrdiff_t end) {
    struct tg_block *t = task;
    const ptrdiff_t K = t->proj.rows, N = t->proj.columns;
    for (ptrdiff_t b = begin; b < end; b++) {
        const ptrdiff_t k0 = tg_block_begin(K, b), k1 = tg_block_begin(K, b + 1);
        for (ptrdiff_t m = 0; m < t->M; m++) {
            tg_sum(&t->last, &t->fc, m, k0, k1 - k0, t->wide + m * K + k0);
            tg_activate(t->wide + m * K + k0, k1 - k0, t->activation);
        }
        tg_columns(&t->proj, t->wide, K, t->M, k0, k1, t->parts[1] + b * t->M * tg_pitch(N), tg_pitch(N));
    }
}

/* x += attention(ln_1(x)); x += mlp(ln_2(x)), for one new token of each of M rows. */
static void tg_decode_block(struct tg_block *t) {
    tg_parallel_for(tg_norm_1_rows, t, t->M, 4);
    t->last = tg_product(&t->attn, t->normed, t->C, t->M, t->parts[0]);
    tg_parallel_for(tg_attend_heads, t, t->M * t->H, 1);
    t->last = tg_product(&t->attn_proj, t->mixed, t->C, t->M, t->parts[0]);
    tg_parallel_for(tg_norm_2_rows, t, t->M, 4);
    t->last = tg_product(&t->fc, t->normed, t->C, t->M, t->parts[0]);
    tg_parallel_for(tg_mlp_blocks, t, TG_BLOCKS, 1);
    t->last = (struct tg_parts){t->parts[1], t->M, tg_pitch(t->C)};
    tg_parallel_for(tg_last_rows, t, t->M, 4);
}

#endif
