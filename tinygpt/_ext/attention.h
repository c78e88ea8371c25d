/* Sizes and types of the attention kernels; attention_tile.h has the work. */
#ifndef TINYGPT_ATTENTION_H
#define TINYGPT_ATTENTION_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "vmath.h"

/* Registers decide the block: ROWS x 2 accumulators, 2 vectors of B and a broadcast must fit in 32 registers
 * (AVX-512, NEON) or 16 (AVX2, SSE). */
#if defined(__AVX512F__) || defined(__aarch64__)
enum { TG_ROWS = 8 };
#else
enum { TG_ROWS = 4 };
#endif

/* Tiles of scores, of one panel of queries forward and of TG_PANELS backward. With AVX-512 they are 128 keys x 32 queries, and
 * two of 64 x 64, which the first cache holds beside the panels that they are multiplied with. */
enum { TG_KEYS = 128, TG_KEYS_BACKWARD = 64, TG_PANELS = 2 };

/* Strides in elements of the axes (B, H, T); the last axis, D, is contiguous. */
struct tg_attention {
    ptrdiff_t B, H, Tq, Tk, D;
    ptrdiff_t q_stride[3], k_stride[3], v_stride[3], y_stride[3], dy_stride[3], dq_stride[3], dk_stride[3],
        dv_stride[3];
    int is_causal;
    double scale, dropout_p, kept;
    uint32_t threshold;
    uint64_t seed, stream;
    void *q, *k, *v, *y, *lse, *dy, *dq, *dk, *dv;
    int failed; /* a thread found no memory */
};

#define REAL float
#define INTEGER int32_t
#define NAME(x) tg_##x##_float
#define EXP tg_expf
#define LOG logf
#include "attention_tile.h"
#undef REAL
#undef INTEGER
#undef NAME
#undef EXP
#undef LOG

#define REAL double
#define INTEGER int64_t
#define NAME(x) tg_##x##_double
#define EXP tg_exp
#define LOG log
#include "attention_tile.h"
#undef REAL
#undef INTEGER
#undef NAME
#undef EXP
#undef LOG

#define TG_AT(type, name, b, h) ((type *)p->name + (b) * p->name##_stride[0] + (h) * p->name##_stride[1])

/* Heads begin .. end - 1 of the B * H. */
#define TG_HEADS(type)                                                                                              \
    static void tg_heads_forward_##type(void *task, ptrdiff_t begin, ptrdiff_t end) {                              \
        struct tg_attention *p = task;                                                                             \
        for (ptrdiff_t head = begin; head < end; head++) {                                                         \
            const ptrdiff_t b = head / p->H, h = head % p->H;                                                      \
            if (tg_head_forward_##type(p, TG_AT(type, q, b, h), TG_AT(type, k, b, h), TG_AT(type, v, b, h),         \
                                       TG_AT(type, y, b, h), (type *)p->lse + head * p->Tq,                         \
                                       (uint64_t)(head * p->Tq)) != 0)                                             \
                p->failed = 1;                                                                                     \
        }                                                                                                          \
    }                                                                                                              \
    static void tg_heads_backward_##type(void *task, ptrdiff_t begin, ptrdiff_t end) {                             \
        struct tg_attention *p = task;                                                                             \
        for (ptrdiff_t head = begin; head < end; head++) {                                                         \
            const ptrdiff_t b = head / p->H, h = head % p->H;                                                      \
            if (tg_head_backward_##type(p, TG_AT(type, dy, b, h), TG_AT(type, q, b, h), TG_AT(type, k, b, h),       \
                                        TG_AT(type, v, b, h), TG_AT(type, y, b, h),                                 \
                                        (type *)p->lse + head * p->Tq, TG_AT(type, dq, b, h),                       \
                                        TG_AT(type, dk, b, h), TG_AT(type, dv, b, h), (uint64_t)(head * p->Tq)) !=  \
                0)                                                                                                 \
                p->failed = 1;                                                                                     \
        }                                                                                                          \
    }
TG_HEADS(float)
TG_HEADS(double)

#endif
