// The bias of a linear layer, and its gradient, for the GPU: tinygpt/ops/linear.py. column_sum also adds up the tables
// of partial sums that other kernels write.
//
// Both split an (N, C) array into tiles: a warp handles 32 adjacent packs of a row, which it reads in one coalesced
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

// x (N, C) -> y (chunks, C): the column sums of each chunk of `rows` rows, accumulated in type `sum`.
// A thread adds up every ROWS-th row, then the block's first warp adds the ROWS sums of each column, in order.
// Grid: (ceil(C / (32 width)), chunks); block: (32, ROWS).
template <typename in, typename sum, typename out, int width>
__global__ void __launch_bounds__(WARP *ROWS) column_sum(const in *__restrict__ x, out *__restrict__ y, int N, int C,
                                                         int rows) {
    __shared__ sum of_warp[ROWS * WARP * width];
    const int j = (blockIdx.x * WARP + threadIdx.x) * width;
    sum total[width];
    for (int i = 0; i < width; i++) total[i] = 0;
    if (j < C) {
        accumulator<in> v[width];
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
        narrow(total[i], y[(long long)blockIdx.y * C + j + i]);
    }
}
