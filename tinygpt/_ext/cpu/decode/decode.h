/* A whole block of the model, for one new token of each text. Included once, by build/kernels.pyx. The class Block in
 * tinygpt/gpt.py has the mathematics; the time goes into the products of few_rows.h.
 */
#ifndef TINYGPT_DECODE_H
#define TINYGPT_DECODE_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "few_rows.h"
#include "few_rows_transposed.h"
#include "gelu_erf.h"
#include "pool.h"
#include "vmath.h"

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

/* Block b of the MLP's hidden layer: the activation of the first product. */
static void tg_hidden_block(struct tg_block *t, ptrdiff_t b) {
    const ptrdiff_t K = t->proj.rows, k0 = tg_block_begin(&t->proj, b), k1 = tg_block_begin(&t->proj, b + 1);
    for (ptrdiff_t m = 0; m < t->M; m++) {
        tg_sum(&t->last, &t->fc, m, k0, k1 - k0, t->wide + m * K + k0);
        tg_activate(t->wide + m * K + k0, k1 - k0, t->activation);
    }
}

static void tg_hidden_blocks(void *task, ptrdiff_t begin, ptrdiff_t end) {
    for (ptrdiff_t b = begin; b < end; b++) tg_hidden_block(task, b);
}

/* The second product of the MLP: each block first computes its own part of the hidden layer. */
static void tg_mlp_blocks(void *task, ptrdiff_t begin, ptrdiff_t end) {
    struct tg_block *t = task;
    const ptrdiff_t K = t->proj.rows, N = t->proj.columns;
    for (ptrdiff_t b = begin; b < end; b++) {
        tg_hidden_block(t, b);
        tg_columns(&t->proj, t->wide, K, t->M, tg_block_begin(&t->proj, b), tg_block_begin(&t->proj, b + 1),
                   t->parts[1] + b * t->M * tg_pitch(N), tg_pitch(N));
    }
}

/* The MLP after its first product. 4-bit weights are not split along the sum: they need all of the hidden layer. */
static void tg_mlp(struct tg_block *t) {
    if (t->proj.format == TG_INT4) {
        tg_parallel_for(tg_hidden_blocks, t, TG_BLOCKS, 1);
        t->last = tg_product(&t->proj, t->wide, t->proj.rows, t->M, t->parts[1]);
    } else {
        tg_parallel_for(tg_mlp_blocks, t, TG_BLOCKS, 1);
        t->last = (struct tg_parts){t->parts[1], t->M, tg_pitch(t->C), TG_BLOCKS};
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
    tg_mlp(t);
    tg_parallel_for(tg_last_rows, t, t->M, 4);
}

#endif
