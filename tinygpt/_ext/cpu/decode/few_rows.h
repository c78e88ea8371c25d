/* y = x W for a few rows of x and a large matrix W (K, N), in any of the formats of weights.h. Included by decode.h.
 *
 * With one row, every weight is read from memory once and used for a single multiply-add, so reading the weights takes
 * all of the time; a processor reads one in the time of about eight multiply-adds. So everything here is arranged to read
 * memory in long sequential runs.
 *
 * The rows of W are split into eight blocks, whatever the number of threads or of rows of x. Block b computes its part of
 * the sum over k for all N columns; its memory is contiguous, and is read as TG_DEEP streams, an eighth of the block
 * apart: in different pages, as the hardware prefetcher needs them. It follows no more than these, and stops where a
 * stream leaves its row for a tile of columns: so whole rows are read, with several rows of x too. Whoever reads the
 * product next (`tg_sum`) adds up the partial sums in the order of the blocks, and the bias. Up to TG_WAITING rows of x
 * the prefetcher falls behind in float32, which has the longest rows, and is helped by prefetch instructions, into the
 * L2 cache: in the L1 cache the streams collide in the same few sets.
 *
 * With several rows of x, TG_HELD rows of a stripe of W stay in registers, unpacked, while all rows of x are multiplied
 * with them. AVX-512 multiplies by an element in memory without an instruction to load it, so a stripe is one vector wide;
 * with AVX2 it is two, so that half as many loads are needed.
 *
 * One row or several, each sum has the same order. So the bits of y do not depend on the number of threads, and those of
 * row m not on the other rows.
 */
#ifndef TINYGPT_FEW_ROWS_H
#define TINYGPT_FEW_ROWS_H

#include "four_bits_product.h"
#include "pool.h"
#include "integer_rows.h"
#include "weights.h"

enum {
    TG_BLOCKS = 8,
    TG_DEEP = 8,
    TG_STRIPE = TG_REGISTERS == 32 ? 1 : 2, /* vectors of a row of W that are held in registers */
    TG_HELD = TG_DEEP / TG_STRIPE,          /* rows of W that are held */
    TG_WAITING = 12,    /* up to this many rows of x, float32 weights take longer to read than to multiply */
    TG_SOON = 256,      /* floats from what is multiplied to what is prefetched into the L2 cache */
    TG_PAD = 16,
    TG_FIT = 1 << 17, /* sums of several rows of x that the L2 cache should hold */
    TG_RUN = 1024     /* if it holds no whole rows, tiles of a multiple of this many columns: a page of float32 */
};

/* Some rows of a matrix that are read together, and their scales: where they begin. Taken before a loop that stores to y,
 * which might be anywhere for all that the compiler knows: it would read the matrix's sizes anew for every column. */
struct tg_deep {
    const char *row[TG_DEEP];
    const float *scale[TG_DEEP];
};

/* M rows of y, pitch apart, += x (M, TG_DEEP) times `held` rows of `vectors` vectors of W. */
TG_INLINE void tg_add_stripe(const float *x, ptrdiff_t M, int held, int vectors, const tg_floats *part, float *y,
                             ptrdiff_t pitch) {
    for (ptrdiff_t m = 0; m < M; m++) {
        tg_floats *out = (tg_floats *)(y + m * pitch), sum[TG_STRIPE];
        for (int v = 0; v < vectors; v++) sum[v] = out[v];
#pragma GCC unroll 8
        for (int r = 0; r < held; r++) {
            const tg_floats factor = x[m * TG_DEEP + r] - (tg_floats){0};
            for (int v = 0; v < vectors; v++) sum[v] = tg_multiply_add(part[r * vectors + v], factor, sum[v]);
        }
        for (int v = 0; v < vectors; v++) out[v] = sum[v];
    }
}

/* y += x times `deep` rows of W in `vectors` vectors from column j on, `held` rows at a time. soon: fetch
 * what comes TG_SOON floats later into the L2 cache. */
TG_INLINE void tg_stripe(const struct tg_deep *d, const float *x, ptrdiff_t M, int deep, int held, int vectors,
                         ptrdiff_t j, float *y, ptrdiff_t pitch, int format, int soon) {
#pragma GCC unroll 2
    for (int first = 0; first < deep; first += held) {
        tg_floats part[TG_DEEP];
#pragma GCC unroll 8
        for (int r = 0; r < held; r++)
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++) {
                const ptrdiff_t column = j + v * TG_LANE;
                tg_floats *to = part + r * vectors + v;
                *to = tg_weights(d->row[first + r], column, format);
                if (format == TG_INT8) *to *= *(const tg_floats *)(d->scale[first + r] + column);
                if (format == TG_INT8) TG_BARRIER(*to);
                if (soon) __builtin_prefetch((const float *)d->row[first + r] + column + TG_SOON, 0, 2);
            }
        tg_add_stripe(x + first, M, held, vectors, part, y + j, pitch);
    }
}

/* The last columns, j .. j1 - 1, as a vector padded with zeros: y is padded too. */
TG_INLINE void tg_last_columns(const struct tg_deep *d, const float *x, ptrdiff_t M, int deep, ptrdiff_t j, ptrdiff_t j1,
                               float *y, ptrdiff_t pitch, int format) {
    tg_floats part[TG_DEEP];
    for (int r = 0; r < deep; r++) {
        part[r] = (tg_floats){0};
        for (int i = 0; i < j1 - j; i++) {
            part[r][i] = tg_weight(d->row[r], j + i, format);
            if (format == TG_INT8) part[r][i] *= d->scale[r][j + i];
        }
        TG_BARRIER(part[r]);
    }
    tg_add_stripe(x, M, deep, 1, part, y + j, pitch);
}

/* y += x[:, k] W[k] for the `deep` <= TG_DEEP rows k, k + apart, k + 2 apart, ... of W, in columns j0 .. j1 - 1. The
 * rows of x are ldx apart. */
TG_INLINE void tg_deep_rows(const struct tg_matrix *w, const float *x, ptrdiff_t ldx, ptrdiff_t M, ptrdiff_t k,
                            ptrdiff_t apart, int deep, ptrdiff_t j0, ptrdiff_t j1, float *y, ptrdiff_t pitch, int format,
                            int soon) {
    struct tg_deep d;
    for (int r = 0; r < deep; r++) {
        d.row[r] = (const char *)w->weight + (k + r * apart) * w->columns * tg_weight_bytes(format);
        d.scale[r] = format == TG_INT8 ? w->scale + (k + r * apart) / w->group * w->columns : NULL;
    }
    float factors[TG_ROWS_AT_ONCE * TG_DEEP]; /* the elements of x that are used, contiguous */
    for (ptrdiff_t m = 0; m < M; m++)
        for (int r = 0; r < deep; r++) factors[m * TG_DEEP + r] = x[m * ldx + k + r * apart];
    ptrdiff_t j = j0;
    if (M > 1 && deep == TG_DEEP)
        for (; j + TG_STRIPE * TG_LANE <= j1; j += TG_STRIPE * TG_LANE)
            tg_stripe(&d, factors, M, deep, TG_HELD, TG_STRIPE, j, y, pitch, format, soon);
    for (; j + TG_LANE <= j1; j += TG_LANE) tg_stripe(&d, factors, M, deep, deep, 1, j, y, pitch, format, soon);
    if (j < j1) tg_last_columns(&d, factors, M, deep, j, j1, y, pitch, format);
}

/* The same for all columns and rows k0 .. k1 - 1, but y is overwritten. */
TG_INLINE void tg_columns_of(const struct tg_matrix *w, const float *x, ptrdiff_t ldx, ptrdiff_t M, ptrdiff_t k0,
                             ptrdiff_t k1, float *y, ptrdiff_t pitch, int format, int soon) {
    const ptrdiff_t N = w->columns, apart = (k1 - k0) / TG_DEEP, fit = TG_FIT / M / TG_RUN * TG_RUN;
    const ptrdiff_t tile = M == 1 ? N : fit;
    for (ptrdiff_t j0 = 0; j0 < N; j0 += tile) {
        const ptrdiff_t j1 = j0 + tile < N ? j0 + tile : N, cleared = j1 == N ? pitch - j0 : j1 - j0;
        for (ptrdiff_t m = 0; m < M; m++) memset(y + m * pitch + j0, 0, (size_t)cleared * sizeof(float));
        for (ptrdiff_t k = k0; k < k0 + apart; k++)
            tg_deep_rows(w, x, ldx, M, k, apart, TG_DEEP, j0, j1, y, pitch, format, soon);
        for (ptrdiff_t k = k0 + apart * TG_DEEP; k < k1; k++)
            tg_deep_rows(w, x, ldx, M, k, 1, 1, j0, j1, y, pitch, format, 0);
    }
}

TG_INLINE void tg_columns_in(const struct tg_matrix *w, const float *x, ptrdiff_t ldx, ptrdiff_t M, ptrdiff_t k0,
                             ptrdiff_t k1, float *y, ptrdiff_t pitch) {
    if (w->format == TG_FLOAT32 && M > 1 && M <= TG_WAITING)
        tg_columns_of(w, x, ldx, M, k0, k1, y, pitch, TG_FLOAT32, 1);
    else if (w->format == TG_FLOAT32)
        tg_columns_of(w, x, ldx, M, k0, k1, y, pitch, TG_FLOAT32, 0);
    else if (w->format == TG_BFLOAT16)
        tg_columns_of(w, x, ldx, M, k0, k1, y, pitch, TG_BFLOAT16, 0);
    else if (w->group < w->rows)
        tg_columns_of(w, x, ldx, M, k0, k1, y, pitch, TG_INT8, 0);
    else
        tg_columns_of(w, x, ldx, M, k0, k1, y, pitch, TG_WHOLE_INT8, 0);
}

/* y (M, pitch) = x W over the rows k0 .. k1 - 1 of W. One row has separate code. */
static void tg_columns(const struct tg_matrix *w, const float *x, ptrdiff_t ldx, ptrdiff_t M, ptrdiff_t k0, ptrdiff_t k1,
                       float *y, ptrdiff_t pitch) {
    for (; M > 0; M -= TG_ROWS_AT_ONCE, x += TG_ROWS_AT_ONCE * ldx, y += TG_ROWS_AT_ONCE * pitch) {
        if (w->rounded)
            tg_integer_columns(w, x, ldx, M < TG_ROWS_AT_ONCE ? M : TG_ROWS_AT_ONCE, k0, k1, y, pitch);
        else if (M == 1)
            tg_columns_in(w, x, ldx, 1, k0, k1, y, pitch);
        else
            tg_columns_in(w, x, ldx, M < TG_ROWS_AT_ONCE ? M : TG_ROWS_AT_ONCE, k0, k1, y, pitch);
    }
}

/* The first row of block b: a multiple of TG_DEEP, or of the terms that are rounded together, with blocks as equal as
 * possible. */
static inline ptrdiff_t tg_block_begin(const struct tg_matrix *w, ptrdiff_t b) {
    const ptrdiff_t K = w->rows, unit = w->rounded ? tg_span_terms(w, K) : TG_DEEP;
    const ptrdiff_t units = (K + unit - 1) / unit, k = units * b / TG_BLOCKS * unit;
    return k < K ? k : K;
}

/* The partial sums of a product: block b's part of row m is at parts + (b * M + m) * pitch. */
struct tg_parts {
    float *parts;
    ptrdiff_t M, pitch;
    int blocks; /* TG_BLOCKS, or 1 if the sums are whole */
};

/* out[j] = the sum over the blocks for column j0 + j of row m, plus the bias, for `count` columns. A scale that belongs to
 * the whole column comes in here. */
static void tg_sum(const struct tg_parts *p, const struct tg_matrix *w, ptrdiff_t m, ptrdiff_t j0, ptrdiff_t count,
                   float *restrict out) {
    const float *restrict row = p->parts + m * p->pitch + j0;
    memcpy(out, row, (size_t)count * sizeof(float));
    for (int b = 1; b < p->blocks; b++) {
        row += p->M * p->pitch;
        for (ptrdiff_t j = 0; j < count; j++) out[j] += row[j];
    }
    if (w->scale && w->group >= w->rows)
        for (ptrdiff_t j = 0; j < count; j++) out[j] = out[j] * w->scale[j0 + j];
    if (w->bias)
        for (ptrdiff_t j = 0; j < count; j++) out[j] += w->bias[j0 + j];
}

struct tg_sums {
    struct tg_parts parts;
    const struct tg_matrix *matrix;
    float *out;
};

static void tg_sum_rows(void *task, ptrdiff_t begin, ptrdiff_t end) {
    const struct tg_sums *t = task;
    const ptrdiff_t N = t->matrix->columns;
    for (ptrdiff_t m = begin; m < end; m++) tg_sum(&t->parts, t->matrix, m, 0, N, t->out + m * N);
}

/* All of them, (M, columns). */
static void tg_sum_all(struct tg_parts parts, const struct tg_matrix *matrix, float *out) {
    struct tg_sums t = {parts, matrix, out};
    tg_parallel_for(tg_sum_rows, &t, parts.M, 2);
}

struct tg_product {
    const struct tg_matrix *matrix;
    const float *x;
    ptrdiff_t ldx;
    struct tg_parts out;
};

static void tg_product_blocks(void *task, ptrdiff_t begin, ptrdiff_t end) {
    const struct tg_product *t = task;
    for (ptrdiff_t b = begin; b < end; b++)
        tg_columns(t->matrix, t->x, t->ldx, t->out.M, tg_block_begin(t->matrix, b), tg_block_begin(t->matrix, b + 1),
                         t->out.parts + b * t->out.M * t->out.pitch, t->out.pitch);
}

/* The padding keeps rows from being 4 KB apart, where they would evict one another from the cache, and makes room
 * for the last vector, which may reach beyond column N. */
static inline ptrdiff_t tg_pitch(ptrdiff_t N) { return N + TG_PAD; }

/* The partial sums of x W, for x with M rows of matrix->rows elements, ldx apart. parts: room for TG_BLOCKS * M rows of
 * them; of int4, where the sums are whole, for M rows and tg_rounded_room. */
static struct tg_parts tg_product(const struct tg_matrix *matrix, const float *x, ptrdiff_t ldx, ptrdiff_t M, float *parts) {
    const ptrdiff_t pitch = tg_pitch(matrix->columns);
    if (matrix->format == TG_INT4) {
        tg_four_product(matrix, x, ldx, M, parts, pitch, parts + M * pitch);
        return (struct tg_parts){parts, M, pitch, 1};
    }
    struct tg_product t = {matrix, x, ldx, {parts, M, pitch, TG_BLOCKS}};
    tg_parallel_for(tg_product_blocks, &t, TG_BLOCKS, 1);
    return t.out;
}

#endif
