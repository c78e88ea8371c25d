/* y = x W^T for a few rows of x and a large matrix W (N, K), in any of the formats of weights.h: dot products of the
 * rows of W, the outputs, with those of x. The order of each sum depends only on K and the group size.
 */
#ifndef TINYGPT_FEW_ROWS_TRANSPOSED_H
#define TINYGPT_FEW_ROWS_TRANSPOSED_H

#include "pool.h"
#include "weights.h"

TG_INLINE float tg_lane_sum(tg_floats v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    for (int width = TG_LANE / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) v[i] += v[i + width];
    return v[0];
#endif
}

/* out[i] = the sum of the lanes of v[i], for TG_LANE vectors: the additions of tg_lane_sum, TG_LANE of them at a time. */
static void tg_lane_sums(const tg_floats *v, float *out) {
    tg_floats row[TG_LANE];
#pragma GCC unroll 16
    for (int i = 0; i < TG_LANE; i++) row[i] = v[i];
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC unroll 4
    for (int half = TG_LANE / 2; half > 0; half /= 2) {
        tg_ints low, high;
#pragma GCC unroll 16
        for (int e = 0; e < TG_LANE; e++) {
            low[e] = e & half ? TG_LANE + e - half : e;
            high[e] = e & half ? TG_LANE + e : e + half;
        }
#pragma GCC unroll 8
        for (int i = 0; i < half; i++)
            row[i] = __builtin_shuffle(row[i], row[i + half], low) + __builtin_shuffle(row[i], row[i + half], high);
    }
    *(tg_floats *)out = row[0];
#else
    for (int i = 0; i < TG_LANE; i++) out[i] = tg_lane_sum(row[i]);
#endif
}

/* Rows of W that are read together, as separate streams; and rows of x, so that a vector of W is unpacked once for
 * several. Unpacking int8 is worth it to AVX2 to have twice as many rows of x, and half as many of W, in its registers. */
enum { TG_DOTS = 4, TG_WIDE = TG_REGISTERS == 32 ? 4 : 2, TG_WIDER = 4 };

/* y[m, n] = x[m] . W[n] for `wide` <= TG_WIDER rows m and the `count` <= TG_DOTS rows n, n + apart, n + 2 apart, ... ahead: fetch
 * the next row of each stream into the L2 cache meanwhile, which the hardware does too late if it has to wait for the sums. */
TG_INLINE void tg_dot_rows(const struct tg_matrix *w, const float *x, int wide, ptrdiff_t n, ptrdiff_t apart, int count,
                           float *y, int format, int ahead) {
    const ptrdiff_t K = w->columns, N = w->rows, groups = (K + w->group - 1) / w->group;
    const ptrdiff_t size = format == TG_FLOAT32 ? 4 : 2;
    tg_floats sum[TG_WIDER][TG_DOTS];
#pragma GCC unroll 8
    for (int m = 0; m < wide; m++)
#pragma GCC unroll 4
        for (int r = 0; r < count; r++) sum[m][r] = (tg_floats){0};
    for (ptrdiff_t g = 0; g < groups; g++) {
        const ptrdiff_t end = (g + 1) * w->group < K ? (g + 1) * w->group : K;
        ptrdiff_t k = g * w->group;
        for (; k + TG_LANE <= end; k += TG_LANE) {
#pragma GCC unroll 4
            for (int r = 0; r < count; r++) {
                tg_floats part = tg_weights(w->weight, (n + r * apart) * K + k, format);
                if (format == TG_INT8) part *= w->scale[(n + r * apart) * groups + g];
                if (format == TG_INT8) TG_BARRIER(part);
                if (ahead) __builtin_prefetch((const char *)w->weight + ((n + 1 + r * apart) * K + k) * size, 0, 2);
#pragma GCC unroll 8
                for (int m = 0; m < wide; m++)
                    sum[m][r] = tg_multiply_add(part, *(const tg_floats *)(x + m * K + k), sum[m][r]);
            }
        }
        if (k == end) continue;
        /* The last elements of the group, as vectors padded with zeros. */
#pragma GCC unroll 4
        for (int r = 0; r < count; r++) {
            tg_floats part = {0};
            for (int i = 0; i < end - k; i++) {
                part[i] = tg_weight(w->weight, (n + r * apart) * K + k + i, format);
                if (format == TG_INT8) part[i] *= w->scale[(n + r * apart) * groups + g];
            }
            TG_BARRIER(part);
#pragma GCC unroll 8
            for (int m = 0; m < wide; m++) {
                tg_floats xs = {0};
                for (int i = 0; i < end - k; i++) xs[i] = x[m * K + k + i];
                sum[m][r] = tg_multiply_add(part, xs, sum[m][r]);
            }
        }
    }
    float scale[TG_DOTS]; /* of the finished sums */
    for (int r = 0; r < count; r++) scale[r] = format == TG_WHOLE_INT8 ? w->scale[n + r * apart] : 1;
    if (wide > TG_WIDE && wide * count == TG_LANE) {
        tg_floats all[TG_LANE];
        float total[TG_LANE];
#pragma GCC unroll 8
        for (int i = 0; i < TG_LANE; i++) all[i] = sum[i / count][i % count];
        tg_lane_sums(all, total);
        for (int i = 0; i < TG_LANE; i++) y[i / count * N + n + i % count * apart] = total[i] * scale[i % count];
        return;
    }
#pragma GCC unroll 8
    for (int m = 0; m < wide; m++)
#pragma GCC unroll 4
        for (int r = 0; r < count; r++) y[m * N + n + r * apart] = tg_lane_sum(sum[m][r]) * scale[r];
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
    const int ahead = !tg_is_int8(format) && t->M >= 2 * TG_WIDE;
    ptrdiff_t m = 0;
    if (tg_is_int8(format) && TG_WIDE < TG_WIDER && count == TG_DOTS)
        for (; m + TG_WIDER <= t->M; m += TG_WIDER)
            for (int r = 0; r < TG_DOTS; r += 2)
                tg_dot_rows(t->matrix, t->x + m * K, TG_WIDER, n + r * apart, apart, 2, t->y + m * N, format, 0);
    if (format == TG_FLOAT32 && TG_WIDE == 2) /* nothing to unpack: registers for three rows; but leave no single row */
        for (; t->M - m == 3 || t->M - m > 4; m += 3)
            tg_dot_rows(t->matrix, t->x + m * K, 3, n, apart, count, t->y + m * N, format, ahead);
    for (; m + TG_WIDE <= t->M; m += TG_WIDE)
        tg_dot_rows(t->matrix, t->x + m * K, TG_WIDE, n, apart, count, t->y + m * N, format, ahead);
    for (; m < t->M; m++) tg_dot_rows(t->matrix, t->x + m * K, 1, n, apart, count, t->y + m * N, format, 0);
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
    else if (t->matrix->group < t->matrix->columns)
        tg_dots_of(t, begin, end, TG_INT8);
    else
        tg_dots_of(t, begin, end, TG_WHOLE_INT8);
}

/* y (M, N) = x (M, K) W^T, W (N, K). The order of each sum depends only on K and the group size. */
static void tg_transposed_product(const struct tg_matrix *matrix, const float *x, ptrdiff_t M, float *y) {
    struct tg_dots t = {matrix, x, y, M};
    tg_parallel_for(tg_dots_chunk, &t, matrix->rows, 1024);
}

#endif
