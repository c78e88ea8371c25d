/* The processor's own limit: multiply-adds on registers, no memory. Benchmarks compare with it. */
#ifndef TINYGPT_PEAK_H
#define TINYGPT_PEAK_H

#include "attention.h"
#include "product.h"

enum { TG_CHAINS = 12 }; /* independent sums, enough to hide the latency of a multiply-add */

static void tg_fma_chains(void *task, ptrdiff_t begin, ptrdiff_t end) {
    const ptrdiff_t turns = *(const ptrdiff_t *)task;
    for (ptrdiff_t chunk = begin; chunk < end; chunk++) {
        tg_vec_float sum[TG_CHAINS], a, b;
        for (int i = 0; i < tg_LANES_float; i++) {
            a[i] = 0.999f;
            b[i] = 1e-3f * (float)(chunk + 1);
        }
#pragma GCC unroll 12
        for (int i = 0; i < TG_CHAINS; i++) sum[i] = b * (float)i;
        for (ptrdiff_t turn = 0; turn < turns; turn++) {
#pragma GCC unroll 12
            for (int i = 0; i < TG_CHAINS; i++) sum[i] = sum[i] * a + b;
        }
        for (int i = 1; i < TG_CHAINS; i++) sum[0] += sum[i];
        volatile float keep = sum[0][0]; /* so that nothing is optimised away */
        (void)keep;
    }
}

/* Floating-point operations of one chunk of `turns`. */
static inline double tg_fma_flops(ptrdiff_t turns) { return 2.0 * TG_CHAINS * tg_LANES_float * (double)turns; }

/* The block of the matrix product, its operands in the caches: a strip times as many panels as half the second cache holds. The
 * processor's clock falls while it loads and multiplies at once, so this is less than the chains reach, and the most that a
 * product can. */
enum { TG_BLOCK_DEPTH = 384, TG_BLOCK_TURNS = 24 };

struct tg_block_run {
    ptrdiff_t panels;
    const float *operands; /* a strip, then the panels */
    float *results;        /* of each chunk: PRODUCT_ROWS x panels * PRODUCT_COLUMNS */
};

static ptrdiff_t tg_block_panels(void) {
    const ptrdiff_t fit = tg_half_second_cache() / (tg_panel_size(TG_BLOCK_DEPTH) * (ptrdiff_t)sizeof(float));
    return fit > 1 ? fit : 1;
}

static double tg_block_flops(ptrdiff_t panels) {
    return 2.0 * TG_BLOCK_TURNS * PRODUCT_ROWS * TG_BLOCK_DEPTH * (double)(panels * PRODUCT_COLUMNS);
}

static void tg_block_strips(void *task, ptrdiff_t begin, ptrdiff_t end) {
    const struct tg_block_run *run = task;
    const ptrdiff_t columns = run->panels * PRODUCT_COLUMNS;
    const struct tg_coming none = {NULL, 0};
    for (ptrdiff_t chunk = begin; chunk < end; chunk++)
        for (int turn = 0; turn < TG_BLOCK_TURNS; turn++)
            tg_strip(PRODUCT_ROWS, TG_BLOCK_DEPTH, run->operands, 0, run->operands + PRODUCT_ROWS * PRODUCT_STRIDE,
                     run->results + chunk * PRODUCT_ROWS * columns, columns, columns, 0, none);
}

/* The sum of count floats from x, read as eight streams. */
static float tg_read(const float *x, ptrdiff_t count) {
    enum { LANES = 16, STREAMS = 8 };
    typedef float floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
    floats sum[STREAMS] = {{0}};
    const ptrdiff_t apart = count / STREAMS;
    for (ptrdiff_t i = 0; i + LANES <= apart; i += LANES)
        for (int s = 0; s < STREAMS; s++) sum[s] += *(const floats *)(x + s * apart + i);
    float total = 0;
    for (int s = 0; s < STREAMS; s++)
        for (int i = 0; i < LANES; i++) total += sum[s][i];
    return total;
}

#endif
