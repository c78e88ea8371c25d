/* The processor's limits, which benchmarks compare with: multiply-adds on registers, the block of the matrix product
 * with operands in the caches, and reading memory. __init__.py compiles this with the kernels' flags and times it. */
#include "attention.h"
#include "pool.h"
#include "product.h"

/* Multiply-adds on registers, no memory ----------------------------------------------------------------------- */

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
        volatile float keep = sum[0][0]; /* keeps the compiler from removing the loop */
        (void)keep;
    }
}

/* Floating-point operations of one chunk of `turns` turns. */
double peak_chain_flops(ptrdiff_t turns) { return 2.0 * TG_CHAINS * tg_LANES_float * (double)turns; }

void peak_chains(ptrdiff_t turns, ptrdiff_t chunks) { tg_parallel_for(tg_fma_chains, &turns, chunks, 1); }

/* The block of the matrix product ------------------------------------------------------------------------------
 *
 * Its operands are in the caches: a strip times as many panels as an eighth of the L2 cache holds. A product keeps panels
 * in half of it, which a neighbour on the core's other hardware thread may need too. The processor lowers its clock when it
 * loads and multiplies at the same time, so this is slower than the chains; no product can be faster. The depth is that of
 * `baby`'s products: with AVX2 two pieces of a sum of 384. */
enum { TG_BLOCK_DEPTH = PRODUCT_DEPTH < 384 ? 192 : 384, TG_BLOCK_TURNS = 24 };

struct tg_block_run {
    ptrdiff_t panels;
    float *operands; /* a strip, then the panels */
    float *results;  /* of each chunk: PRODUCT_ROWS x panels * PRODUCT_COLUMNS */
};

static void tg_block_strips(void *task, ptrdiff_t begin, ptrdiff_t end) {
    const struct tg_block_run *run = task;
    const ptrdiff_t columns = run->panels * PRODUCT_COLUMNS;
    const struct tg_coming none = {NULL, 0};
    for (ptrdiff_t chunk = begin; chunk < end; chunk++)
        for (int turn = 0; turn < TG_BLOCK_TURNS; turn++)
            tg_strip(0, PRODUCT_ROWS, TG_BLOCK_DEPTH, run->operands, 0, PRODUCT_STRIDE,
                     run->operands + PRODUCT_ROWS * PRODUCT_STRIDE,
                     run->results + chunk * PRODUCT_ROWS * columns, columns, columns, 0, none);
}

/* Whether products use these blocks; otherwise they use the matrix library. */
int peak_has_blocks(void) { return TG_PRODUCT_PAYS; }

/* Allocate memory for `chunks` blocks, to be freed with peak_block_close; returns 0 if out of memory. */
int peak_block_open(struct tg_block_run *run, ptrdiff_t chunks) {
    const ptrdiff_t fit = tg_half_second_cache() / 4 / (tg_panel_size(TG_BLOCK_DEPTH) * (ptrdiff_t)sizeof(float));
    run->panels = fit > 1 ? fit : 1;
    const ptrdiff_t operands = PRODUCT_ROWS * PRODUCT_STRIDE + run->panels * tg_panel_size(TG_BLOCK_DEPTH);
    run->operands = tg_memory_float(operands + chunks * PRODUCT_ROWS * run->panels * PRODUCT_COLUMNS);
    if (!run->operands) return 0;
    memset(run->operands, 0, (size_t)operands * sizeof(float));
    run->results = run->operands + operands;
    return 1;
}

void peak_block_close(struct tg_block_run *run) { tg_return(run->operands); }

double peak_block_flops(const struct tg_block_run *run) {
    return 2.0 * TG_BLOCK_TURNS * PRODUCT_ROWS * TG_BLOCK_DEPTH * (double)(run->panels * PRODUCT_COLUMNS);
}

void peak_blocks(struct tg_block_run *run, ptrdiff_t chunks) { tg_parallel_for(tg_block_strips, run, chunks, 1); }

/* Reading memory ---------------------------------------------------------------------------------------------- */

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

enum { PARTS = 64 };
struct tg_reading {
    const float *x;
    ptrdiff_t count; /* of each part */
    float sums[PARTS];
};

static void tg_read_parts(void *task, ptrdiff_t begin, ptrdiff_t end) {
    struct tg_reading *reading = task;
    for (ptrdiff_t i = begin; i < end; i++) reading->sums[i] = tg_read(reading->x + i * reading->count, reading->count);
}

/* The sum of n floats (rounded down to a multiple of PARTS), read by all threads. */
float peak_read(const float *x, ptrdiff_t n) {
    struct tg_reading reading = {.x = x, .count = n / PARTS};
    float total = 0;
    tg_parallel_for(tg_read_parts, &reading, PARTS, 1);
    for (int i = 0; i < PARTS; i++) total += reading.sums[i];
    return total;
}
