// The bias of a linear layer, and its gradient, for the GPU: tinygpt/ops/linear.py. sum_of_parts adds up the tables of
// partial sums that column_sum and other kernels write.
//
// The first two split an (N, C) array into tiles: a warp handles 32 adjacent packs of a row, which it reads in one coalesced
// access, and the ROWS warps of a block handle every ROWS-th row of its chunk of rows.
// Memory traffic in float32: add_bias reads and writes y once, 8 bytes per element, and each thread reads its part of
// the bias once; column_sum reads x once, 4 bytes per element.

#include "common.cuh"

constexpr int ROWS = 8;  // warps per block

// y (N, C) += bias (C,). Grid: (ceil(C / (32 width)), chunks); block: (32, ROWS).
template <typename real, int width>
__global__ void __launch_bounds__(WARP *ROWS) add_bias(real *__restrict__ y, const real *__restrict__ bias, int N,
                                                       int C, int rows) {
    const int j = (blockIdx.x * WARP + threadIdx.x) * width;
    if (j >= C) return;
    accumulator<real> b[width], v[width];
    load(bias + j, b);
    const int first = blockIdx.y * rows, last = min(N, first + rows);
    for (int row = first + (int)threadIdx.y; row < last; row += ROWS) {
        real *at = y + (long long)row * C + j;
        load(at, v);
        for (int i = 0; i < width; i++) v[i] += b[i];
        store(at, v);
    }
}

// x (N, C) -> y (chunks, C): the column sums of each chunk of `rows` rows.
// A thread adds up every ROWS-th row, then the block's first warp adds the ROWS sums of each column, in order.
// Grid: (ceil(C / (32 width)), chunks); block: (32, ROWS).
template <typename real, int width>
__global__ void __launch_bounds__(WARP *ROWS)
    column_sum(const real *__restrict__ x, accumulator<real> *__restrict__ y, int N, int C, int rows) {
    typedef accumulator<real> accum;
    __shared__ accum of_warp[ROWS * WARP * width];
    const int j = (blockIdx.x * WARP + threadIdx.x) * width;
    accum total[width];
    for (int i = 0; i < width; i++) total[i] = 0;
    if (j < C) {
        accum v[width];
        const int first = blockIdx.y * rows, last = min(N, first + rows);
        for (int row = first + (int)threadIdx.y; row < last; row += ROWS) {
            load(x + (long long)row * C + j, v);
            for (int i = 0; i < width; i++) total[i] += v[i];
        }
    }
    for (int i = 0; i < width; i++) of_warp[(threadIdx.y * width + i) * WARP + threadIdx.x] = total[i];
    __syncthreads();
    if (threadIdx.y != 0 || j >= C) return;
    for (int i = 0; i < width; i++) {
        for (int warp = 1; warp < ROWS; warp++) total[i] += of_warp[(warp * width + i) * WARP + threadIdx.x];
        y[(long long)blockIdx.y * C + j + i] = total[i];
    }
}

// Up to three tables (parts, C), one behind the other -> the sum of each over its parts, (C,) each, in double. A launch
// for each table would leave most of a GPU idle. Grid: (ceil(C / 32), tables); block: (32, WARPS): a warp reads 32
// columns of every WARPS-th part, and the block's first warp adds the WARPS sums of each column, in order.
constexpr int WARPS = 16;

template <typename accum>
__global__ void __launch_bounds__(WARP *WARPS)
    sum_of_parts(const accum *__restrict__ tables, accum *__restrict__ first, accum *__restrict__ second,
                 accum *__restrict__ third, int parts, int C) {
    __shared__ double of_warp[WARPS * WARP];
    const int j = blockIdx.x * WARP + threadIdx.x;
    const accum *table = tables + (long long)blockIdx.y * parts * C;
    double total = 0;
    if (j < C)
        for (int part = threadIdx.y; part < parts; part += WARPS) total += table[(long long)part * C + j];
    of_warp[threadIdx.y * WARP + threadIdx.x] = total;
    __syncthreads();
    if (threadIdx.y != 0 || j >= C) return;
    for (int warp = 1; warp < WARPS; warp++) total += of_warp[warp * WARP + threadIdx.x];
    accum *y = blockIdx.y == 0 ? first : blockIdx.y == 1 ? second : third;
    y[j] = (accum)total;
}
