/* Sizes and types of the attention kernels. attention_block.h has register blocks, attention_tile.h the algorithm. */
#ifndef TINYGPT_ATTENTION_H
#define TINYGPT_ATTENTION_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "vmath.h"

/* The number of vector registers determines the register block: TG_ROWS rows of TG_COLUMNS vectors of sums, a row of
 * B and a broadcast must fit. Blocks of 6 and of 4 rows add up to any multiple of 4 rows. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define TG_REGISTERS 32
#else
#define TG_REGISTERS 16
#endif
enum { TG_ROWS = 6, TG_FEW_ROWS = 4, TG_COLUMNS = TG_REGISTERS == 32 ? 4 : 2 };

/* The size of a tile of scores: queries, and keys in the forward and backward pass. The L1 cache holds a tile and
 * the matrix that it is multiplied with. In the backward pass tiles are square, so that under the causal mask the
 * tile on the diagonal is the first to contribute to its keys' gradients. */
enum { TG_QUERIES = 64, TG_KEYS = 128, TG_KEYS_BACKWARD = TG_QUERIES };

/* Strides in elements of the axes (B, H, T); the last axis, D, is contiguous. */
struct tg_attention {
    ptrdiff_t B, H, Tq, Tk, D;
    ptrdiff_t q_stride[3], k_stride[3], v_stride[3], y_stride[3], dy_stride[3], dq_stride[3], dk_stride[3],
        dv_stride[3];
    int is_causal;
    double scale, dropout_p, kept;
    uint32_t threshold;
    uint64_t seed, stream, first_row; /* first_row: of the random words, for the mask's first row */
    void *q, *k, *v, *y, *lse, *dy, *dq, *dk, *dv;
    int failed; /* a thread ran out of memory */
};

/* Queries q0 .. q0 + queries - 1 and keys k0 .. k0 + keys - 1. The last query sees all of the keys. */
struct tg_tile {
    ptrdiff_t q0, queries, k0, keys;
    int is_causal;
};

static inline ptrdiff_t tg_between(ptrdiff_t low, ptrdiff_t n, ptrdiff_t high) {
    return n < low ? low : n > high ? high : n;
}

static inline struct tg_tile tg_tile_at(const struct tg_attention *p, ptrdiff_t q0, ptrdiff_t k0, ptrdiff_t most_keys) {
    struct tg_tile t = {q0, p->Tq - q0, k0, p->Tk - k0, p->is_causal};
    if (t.queries > TG_QUERIES) t.queries = TG_QUERIES;
    if (t.is_causal) t.keys = tg_between(0, q0 + t.queries - k0, t.keys);
    if (t.keys > most_keys) t.keys = most_keys;
    return t;
}

/* How many of the tile's keys its query i sees: the first ones. How many of its queries do not see key j: the first
 * ones. */
static inline ptrdiff_t tg_seen(const struct tg_tile *t, ptrdiff_t i) {
    return t->is_causal ? tg_between(0, t->q0 + i + 1 - t->k0, t->keys) : t->keys;
}
static inline ptrdiff_t tg_blind(const struct tg_tile *t, ptrdiff_t j) {
    return t->is_causal ? tg_between(0, t->k0 + j - t->q0, t->queries) : 0;
}

/* Prefetching of memory that will be needed soon: this head's results, the next head's operands. A head's rows lie
 * far apart, so the hardware prefetchers cannot predict them. Each block of a product prefetches a few rows, and its
 * arithmetic hides the latency. The arrays of a list take turns, row by row; of a long array only the first TG_AHEAD
 * bytes are prefetched, because the L2 cache would not hold more. */
struct tg_rows {
    struct {
        const char *row;
        ptrdiff_t stride; /* bytes */
    } array[8];
    int count, at;
    ptrdiff_t left; /* rows of each array */
};
struct tg_ahead {
    struct tg_rows now, next;
    ptrdiff_t row_bytes;
    int pace; /* rows per block */
};
/* For T = 256 and D = 64, a head has 1024 rows to prefetch in 176 blocks forward, and 2048 in 550 blocks backward. */
enum { TG_PACE_FORWARD = 6, TG_PACE_BACKWARD = 4, TG_LINE = 64, TG_AHEAD = 1 << 17 };

static struct tg_ahead tg_ahead_of(const struct tg_attention *p, size_t size, int pace) {
    const ptrdiff_t row_bytes = p->D * (ptrdiff_t)size, rows = p->Tq < p->Tk ? p->Tq : p->Tk;
    const ptrdiff_t left = tg_between(0, rows, TG_AHEAD / row_bytes);
    return (struct tg_ahead){{.left = left}, {.left = left}, row_bytes, pace};
}

static void tg_will_need(struct tg_rows *list, const void *row, ptrdiff_t stride) {
    list->array[list->count].row = row;
    list->array[list->count++].stride = stride;
}

static inline void tg_fetch(struct tg_ahead *ahead) {
    for (int i = 0; i < ahead->pace; i++) {
        struct tg_rows *list = ahead->now.left > 0 ? &ahead->now : &ahead->next;
        if (list->left <= 0 || list->count == 0) return;
        const char *row = list->array[list->at].row;
        for (ptrdiff_t byte = 0; byte < ahead->row_bytes; byte += TG_LINE) __builtin_prefetch(row + byte, 0, 2);
        list->array[list->at].row = row + list->array[list->at].stride;
        if (++list->at == list->count) {
            list->at = 0;
            list->left--;
        }
    }
}

/* Uninitialised memory that begins at a cache line, to be returned with tg_return; NULL if there is not enough. Not from
 * posix_memalign: glibc asks for more than it keeps, so freed memory is too small for the next request of the same size,
 * and a training step's heap grew by 40 MB. */
static void *tg_aligned(size_t bytes) {
    char *memory = malloc(bytes + TG_LINE), *aligned = memory + (TG_LINE - (uintptr_t)memory % TG_LINE);
    if (!memory) return NULL;
    ((void **)aligned)[-1] = memory; /* there is room: malloc's alignment is at least two pointers */
    return aligned;
}
static void tg_return(void *aligned) {
    if (aligned) free(((void **)aligned)[-1]);
}

/* Constants of exp in attention_tile.h: the argument below which it is 0, the bias and the position of the exponent
 * bits, and the coefficients, highest first. float: the best polynomial of degree 6 that begins with 1 + r
 * (relative error 3e-9); double: the Taylor series to degree 13. */
static const float tg_LOWEST_float = -88.1f;
static const double tg_LOWEST_double = -709.1;
enum { tg_BIAS_float = 127, tg_EXPONENT_float = 23, tg_BIAS_double = 1023, tg_EXPONENT_double = 52 };
static const float tg_SERIES_float[] = {0.00138146131f, 0.00836870996f, 0.0416683874f, 0.166665207f, 0.499999935f, 1, 1};
static const double tg_SERIES_double[] = {
    1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
    1.0 / 720,        1.0 / 120,       1.0 / 24,       1.0 / 6,       0.5,          1.0,         1.0};

#define REAL float
#define INTEGER int32_t
#define NAME(x) tg_##x##_float
#ifdef __AVX512F__ /* compilers turn a comparison and a select into code three times as slow */
#define LARGER(a, b) _mm512_max_ps(a, b)
#define SMALLER(a, b) _mm512_min_ps(a, b)
#else
#define LARGER(a, b) NAME(select)((a) > (b), a, b)
#define SMALLER(a, b) NAME(select)((a) < (b), a, b)
#endif
#include "attention_block.h"
#include "attention_tile.h"
#undef REAL
#undef INTEGER
#undef NAME
#undef LARGER
#undef SMALLER

#define REAL double
#define INTEGER int64_t
#define NAME(x) tg_##x##_double
#ifdef __AVX512F__
#define LARGER(a, b) _mm512_max_pd(a, b)
#define SMALLER(a, b) _mm512_min_pd(a, b)
#else
#define LARGER(a, b) NAME(select)((a) > (b), a, b)
#define SMALLER(a, b) NAME(select)((a) < (b), a, b)
#endif
#include "attention_block.h"
#include "attention_tile.h"
#undef REAL
#undef INTEGER
#undef NAME
#undef LARGER
#undef SMALLER

#endif
