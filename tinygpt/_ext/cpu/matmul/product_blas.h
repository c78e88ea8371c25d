/* Float32 matrix products C (M x N) = A (M x K) . B (K x N), or C += A . B, by NumPy's OpenBLAS, with the same bits on
 * any number of threads: one product, or a batch of them.
 *
 * OpenBLAS splits a product according to the number of threads, and the bits of an element can depend on the split: its
 * Haswell kernels round differently depending on the block of rows that the element is in, and one thread splits long
 * sums differently from several. So the product is split here, depending only on its size, and each block is a separate
 * product that one thread computes from start to end.
 *
 * Smaller blocks mean more copying inside OpenBLAS (each block copies its rows of A and its columns of B), larger ones
 * leave threads idle: benchmarks/LOG.md has the measurements.
 */
#ifndef TINYGPT_PRODUCT_BLAS_H
#define TINYGPT_PRODUCT_BLAS_H

#include <math.h>

#include "pool.h"
#include "product_block.h"

enum { BLAS_BLOCKS = 8, BLAS_LEAST = 80, BLAS_MOST = 384, BLAS_STEP = 16 };

/* A batch of `count` products, whose operands are a_next, b_next and c_next apart, and how each product is split. */
struct tg_blocks {
    struct tg_gemm g;
    ptrdiff_t count, a_next, b_next, c_next;
    ptrdiff_t rows, columns;  /* of a block */
    ptrdiff_t each, across;   /* blocks per product, and per row of blocks */
};

static void tg_multiply_blocks(void *task, ptrdiff_t begin, ptrdiff_t end) {
    const struct tg_blocks *p = task;
    const struct tg_gemm *g = &p->g;
    for (ptrdiff_t i = begin; i < end; i++) {
        const ptrdiff_t number = i / p->each, block = i % p->each;
        const ptrdiff_t row = block / p->across * p->rows, column = block % p->across * p->columns;
        const struct tg_strided a = {g->a + number * p->a_next + row * g->a_row, g->a_row, g->a_k};
        const struct tg_strided b = {g->b + number * p->b_next + column * g->b_column, g->b_k, g->b_column};
        tg_blas_multiply(tg_least(p->rows, g->M - row), tg_least(p->columns, g->N - column), g->K, a, b,
                         g->c + number * p->c_next + row * g->c_row + column, g->c_row, g->add);
    }
}

/* The block length that splits n into equal pieces of about `edge`, rounded up to a multiple of BLAS_STEP. */
static ptrdiff_t tg_about(ptrdiff_t n, double edge) {
    const ptrdiff_t pieces = (ptrdiff_t)((double)n / edge + 0.5);
    return tg_ceil_div(tg_ceil_div(n, pieces > 1 ? pieces : 1), BLAS_STEP) * BLAS_STEP;
}

/* Returns 0 if the BLAS in use cannot be told to compute a block on one thread. No axis may be empty. */
static int tg_gemm_by_blas(struct tg_blocks *p) {
    const ptrdiff_t a_step = p->g.a_row + p->g.a_k, b_step = p->g.b_k + p->g.b_column;
    if (!tg_blas_enter(p->g.K | a_step | b_step | p->g.c_row)) return 0;
    const double square = sqrt((double)p->g.M * (double)p->g.N / BLAS_BLOCKS);
    const double edge = square < BLAS_LEAST ? BLAS_LEAST : square > BLAS_MOST ? BLAS_MOST : square;
    p->rows = tg_about(p->g.M, edge);
    p->columns = tg_about(p->g.N, edge);
    p->across = tg_ceil_div(p->g.N, p->columns);
    p->each = tg_ceil_div(p->g.M, p->rows) * p->across;
    tg_parallel_for(tg_multiply_blocks, p, p->count * p->each, 1);
    tg_blas_leave();
    return 1;
}

#endif
