/* The float32 matrix product C (M x N) = A (M x K) . B (K x N), or C += A . B.
 *
 * A processor does thirty multiply-adds in the time that it takes to load one number from memory, so what matters is
 * where the numbers are when they are needed:
 *
 *   registers   a block of C, 14 rows x 32 columns with AVX-512 (6 x 16 with AVX2): each loaded element of A is used for
 *               32 of B, each of B for 14 of A
 *   L1 cache    a strip of A: 14 rows, PRODUCT_DEPTH long
 *   L2 cache    some panels of B: 32 columns each, PRODUCT_DEPTH long; every strip is multiplied with them
 *
 * Strips and panels are packed: copied in the order in which the block needs them. With AVX-512 rows of A that are
 * contiguous, and spread over the sets of the L1 cache, are used where they lie. A long sum over k is split into pieces
 * of PRODUCT_DEPTH, each of which is added to C. How the work is divided among the threads depends on the shape:
 *
 *   more rows than columns   B is packed once, for all threads; each packs and multiplies a band of strips at a time
 *   more columns than rows,  A is packed once, for all threads (unless its rows are contiguous: copying them is fast);
 *   or a very large B        each packs and multiplies some panels at a time
 *
 * so that the larger operand is packed by the thread that uses it, into its own cache. C is written along its rows,
 * which the hardware prefetcher can predict; writing down its columns, 14 distant lines at a time, took a sixth longer.
 *
 * Every element of C is summed over k in the same order, whatever the number of threads, rows and columns.
 * Source: Goto, van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008, sections 4 and 5.
 */
#ifndef TINYGPT_PRODUCT_H
#define TINYGPT_PRODUCT_H

#include <stdlib.h>
#include <unistd.h>

#include "pool.h"
#include "product_block.h"

/* Whether this is at least as fast as NumPy's OpenBLAS cut into blocks (product_blas.h). Without AVX2 it is much slower. */
#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
enum { TG_PRODUCT_PAYS = 1 };
#else
enum { TG_PRODUCT_PAYS = 0 };
#endif

/* More rows than columns: B is packed once, for all threads --------------------------------------------------- */

/* The address of panel p of the piece that starts at k0. */
static inline float *tg_shared_panel(const struct tg_gemm *g, ptrdiff_t k0, ptrdiff_t p) {
    const ptrdiff_t depth = tg_least(g->depth, g->K - k0);
    return g->packed + k0 / g->depth * g->panels * tg_panel_size(g->depth) + p * tg_panel_size(depth);
}

static void tg_share_panels(void *task, ptrdiff_t begin, ptrdiff_t end) {
    const struct tg_gemm *g = task;
    const ptrdiff_t shares = tg_ceil_div(g->panels, PRODUCT_PART);
    for (ptrdiff_t i = begin; i < end; i++) {
        const ptrdiff_t k0 = i / shares * g->depth, first = i % shares * PRODUCT_PART;
        tg_pack_panels(g, tg_shared_panel(g, k0, first), first, tg_least(first + PRODUCT_PART, g->panels), k0,
                       tg_least(g->depth, g->K - k0));
    }
}

/* How many parts of B a task multiplies: strips that it packs with all of them, unless it has the sums of one part only. */
static ptrdiff_t tg_parts_of_a_task(const struct tg_gemm *g) {
    return g->a_k != 1 && !g->rounded ? tg_ceil_div(g->panels, g->part) : 1;
}

static void tg_bands(void *task, ptrdiff_t begin, ptrdiff_t end) {
    struct tg_gemm *g = task;
    const ptrdiff_t size = tg_strip_size(g->depth);
    float *own = g->a_k != 1 ? tg_memory_float(g->band * size) : NULL;
    float *sums = g->rounded ? tg_memory_float(tg_sums_size(g, g->band)) : NULL;
    if ((g->a_k != 1 && !own) || (g->rounded && !sums)) {
        g->failed = 1;
        begin = end;
    }
    const ptrdiff_t together = tg_parts_of_a_task(g);
    for (ptrdiff_t i = begin; i < end; i++) {
        const ptrdiff_t first = i % g->bands * g->band, last = tg_least(first + g->band, g->strips);
        const ptrdiff_t from = i / g->bands * together;
        for (ptrdiff_t k0 = 0; k0 < g->K; k0 += g->depth) {
            if (own) tg_pack_strips(g, own, size, first, last, k0, tg_least(g->depth, g->K - k0));
            for (ptrdiff_t part = from; part < from + together; part++)
                for (ptrdiff_t s = first; s < last; s++)
                    tg_multiply(g, s, k0, own ? own + (s - first) * size : NULL, tg_shared_panel(g, k0, part * g->part),
                                part, sums, first);
        }
    }
    tg_return(own);
    tg_return(sums);
}

/* More columns than rows: A is packed once, for all threads, unless its rows are contiguous ------------------- */

static void tg_share_strips(void *task, ptrdiff_t begin, ptrdiff_t end) {
    const struct tg_gemm *g = task;
    for (ptrdiff_t k = begin * PRODUCT_SLICE; k < end * PRODUCT_SLICE && k < g->K; k += PRODUCT_SLICE)
        tg_pack_strips(g, g->packed + k * PRODUCT_STEP, tg_strip_size(g->K), 0, g->strips, k,
                       tg_least(PRODUCT_SLICE, g->K - k));
}

static void tg_panel_parts(void *task, ptrdiff_t begin, ptrdiff_t end) {
    struct tg_gemm *g = task;
    float *own = tg_memory_float(g->part * tg_panel_size(g->depth));
    float *sums = g->rounded ? tg_memory_float(tg_sums_size(g, g->strips)) : NULL;
    if (!own || (g->rounded && !sums)) {
        g->failed = 1;
        begin = end;
    }
    for (ptrdiff_t part = begin; part < end; part++)
        for (ptrdiff_t k0 = 0; k0 < g->K; k0 += g->depth) {
            tg_pack_panels(g, own, part * g->part, tg_least((part + 1) * g->part, g->panels), k0,
                           tg_least(g->depth, g->K - k0));
            for (ptrdiff_t s = 0; s < g->strips; s++)
                tg_multiply(g, s, k0, g->packed ? g->packed + s * tg_strip_size(g->K) + k0 * PRODUCT_STEP : NULL, own,
                            part, sums, 0);
        }
    tg_return(own);
    tg_return(sums);
}

/* The whole product ------------------------------------------------------------------------------------------- */

/* Half the size of the L2 cache, in bytes. */
static ptrdiff_t tg_half_second_cache(void) {
#ifdef _SC_LEVEL2_CACHE_SIZE
    static long bytes;
    if (bytes == 0) bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (bytes >= 1 << 18) return tg_least(bytes / 2, 1 << 20);
#endif
    return 1 << 18;
}

/* How many of `count` strips or panels a thread takes at a time, if all of them are processed `times` times: at most
 * `most`, such that all threads get the same number, in at least `least` rounds. */
static ptrdiff_t tg_fair_share(ptrdiff_t count, ptrdiff_t most, ptrdiff_t times, ptrdiff_t threads, ptrdiff_t least) {
    ptrdiff_t rounds = tg_ceil_div(count * times, most * threads);
    if (rounds < least) rounds = least;
    return tg_ceil_div(count, tg_ceil_div(rounds * threads, times));
}

/* The whole product. No axis may be empty; a_k or a_row must be 1, and b_k or b_column. Returns -1 if out of memory. */
static int tg_gemm_run(struct tg_gemm *g) {
    const ptrdiff_t threads = tg_get_num_threads();
    g->depth = tg_ceil_div(g->K, tg_ceil_div(g->K, PRODUCT_DEPTH)); /* pieces of equal length */
    g->rows = tg_ceil_div(g->M, tg_ceil_div(g->M, PRODUCT_ROWS));   /* strips of equal height */
    g->strips = tg_ceil_div(g->M, g->rows);
    g->panels = tg_ceil_div(g->N, PRODUCT_COLUMNS);
    g->packed = NULL;
    g->failed = 0;
    g->as_they_lie = g->a_k == 1 && tg_rows_spread(g->a_row, g->depth);
    const ptrdiff_t pieces = tg_ceil_div(g->K, g->depth), panel = tg_panel_size(g->depth);
    const ptrdiff_t fit = tg_half_second_cache() / (panel * (ptrdiff_t)sizeof(float)); /* panels in half the L2 cache */
    if (g->M >= g->N && g->N * g->K <= PRODUCT_SHARED) {
        g->packed = tg_memory_float(pieces * g->panels * panel);
        if (!g->packed) return -1;
        g->part = tg_ceil_div(g->panels, tg_ceil_div(g->panels, fit > 1 ? fit : 1));
        const ptrdiff_t parts = tg_ceil_div(g->panels, g->part) / tg_parts_of_a_task(g);
        g->band = tg_fair_share(g->strips, PRODUCT_BAND, parts, threads, 2);
        g->bands = tg_ceil_div(g->strips, g->band);
        tg_parallel_for(tg_share_panels, g, pieces * tg_ceil_div(g->panels, PRODUCT_PART), 1);
        tg_parallel_for(tg_bands, g, g->bands * parts, 1);
    } else {
        if (g->a_k != 1) {
            g->packed = tg_memory_float(g->strips * tg_strip_size(g->K));
            if (!g->packed) return -1;
            tg_parallel_for(tg_share_strips, g, tg_ceil_div(g->K, PRODUCT_SLICE), 1);
        }
        /* Rows that are not packed are copied again for every part, so parts are then as wide as the cache allows. */
        const ptrdiff_t most = fit < 1 ? 1 : g->packed ? tg_least(fit, PRODUCT_PART) : fit;
        g->part = tg_fair_share(g->panels, most, 1, threads, g->packed ? 2 : 1);
        tg_parallel_for(tg_panel_parts, g, tg_ceil_div(g->panels, g->part), 1);
    }
    tg_return(g->packed);
    return g->failed ? -1 : 0;
}

#endif
