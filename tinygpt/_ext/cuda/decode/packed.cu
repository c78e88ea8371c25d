// Products of a few rows with packed weights, and unpacking, for the GPU: tinygpt/ops/packed.py.
//
// Such a product uses each weight for only `rows` multiplications, so it is bound by memory bandwidth: it reads 2 bytes
// per weight in bfloat16, or 1 byte plus the scales in int8. Unpacking first would write another 4 bytes per weight and
// read them again. x and y are small and stay in the cache.
//
// few_rows_product, y = x W. A warp handles 32 adjacent packs of a row of W (K, N), the ROWS warps of a block every
// ROWS-th row of a chunk of K; a thread keeps the sums of its columns for `rows` rows of x. The warps' sums are added
// in order and become one row of a table (chunks, M, N), which column_sum (linear.cu) adds up: no atomics.
// few_rows_product_transposed, y = x W^T. A warp handles one row of W (N, K), adjacent threads adjacent packs.
// unpack_rows. A thread handles a pack of four weights; memory traffic: 6 bytes per weight in bfloat16, 5 in int8.
//
// An int8 weight is q * scale, with one scale per `group` terms of a sum: the scales of W (K, N) are
// (ceil(K / group), N), those of W (N, K) are (N, ceil(K / group)). In bfloat16 `scales` is null.

#include "../common.cuh"

constexpr int ROWS = 8;  // warps per block

struct int8 {
    signed char bits;
};

__device__ inline float widen(int8 x) { return (float)x.bits; }

// Load any number of floats, in packs of up to 16 bytes.
template <int width>
__device__ inline void load_floats(const float *from, float (&to)[width]) {
    constexpr int PART = width < 4 ? width : 4;
    for (int start = 0; start < width; start += PART) {
        float v[PART];
        load(from + start, v);
        for (int i = 0; i < PART; i++) to[start + i] = v[i];
    }
}

// x (M, K), weights (K, N) -> table (chunks, M, N): the partial product over each chunk, which has `length` of K terms.
// Grid: (ceil(N / (32 width)), chunks, ceil(M / rows)); block: (32, ROWS).
template <typename packed, int width, int rows>
__global__ void __launch_bounds__(WARP *ROWS)
    few_rows_product(const float *__restrict__ x, const packed *__restrict__ weights, const float *__restrict__ scales,
                     float *__restrict__ table, int M, int K, int N, int group, int length) {
    __shared__ float of_warp[ROWS * WARP * width];
    const long long j = ((long long)blockIdx.x * WARP + threadIdx.x) * width;
    const int row = blockIdx.z * rows, first = blockIdx.y * length, last = min(K, first + length);
    float sums[rows][width], w[width], s[width];
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < width; i++) sums[r][i] = 0;
    int scaled_by = -1;  // the group whose scales s holds
    for (int k = first + (int)threadIdx.y; k < last && j < N; k += ROWS) {
        load(weights + (long long)k * N + j, w);
        if (scales) {
            if (k / group != scaled_by) {
                scaled_by = k / group;
                load_floats(scales + (long long)scaled_by * N + j, s);
            }
            for (int i = 0; i < width; i++) w[i] *= s[i];
        }
        for (int r = 0; r < rows; r++) {
            const float x_rk = x[(long long)min(row + r, M - 1) * K + k];
            for (int i = 0; i < width; i++) sums[r][i] += x_rk * w[i];
        }
    }
#pragma unroll  // keeps the sums in registers
    for (int r = 0; r < rows; r++) {
        for (int i = 0; i < width; i++) of_warp[(threadIdx.y * width + i) * WARP + threadIdx.x] = sums[r][i];
        __syncthreads();
        if (threadIdx.y == 0 && j < N && row + r < M)
            for (int i = 0; i < width; i++) {
                for (int warp = 1; warp < ROWS; warp++)
                    sums[r][i] += of_warp[(warp * width + i) * WARP + threadIdx.x];
                table[((long long)blockIdx.y * M + row + r) * N + j + i] = sums[r][i];
            }
        __syncthreads();  // the next row overwrites of_warp: everyone must have read this one
    }
}

// x (M, K), weights (N, K) -> y (M, N) = x W^T. Grid: (ceil(N / ROWS), ceil(M / rows)); block: (32, ROWS).
template <typename packed, int width, int rows>
__global__ void __launch_bounds__(WARP *ROWS)
    few_rows_product_transposed(const float *__restrict__ x, const packed *__restrict__ weights,
                                const float *__restrict__ scales, float *__restrict__ y, int M, int K, int N,
                                int group) {
    const long long n = (long long)blockIdx.x * ROWS + threadIdx.y;
    if (n >= N) return;  // the whole warp returns
    const int row = blockIdx.y * rows, groups = (K + group - 1) / group;
    float sums[rows], w[width], v[width];
    for (int r = 0; r < rows; r++) sums[r] = 0;
    for (int k = threadIdx.x * width; k < K; k += WARP * width) {
        load(weights + n * K + k, w);
        const float scale = scales ? scales[n * groups + k / group] : 1;  // a pack never crosses groups
        for (int i = 0; i < width; i++) w[i] *= scale;
        for (int r = 0; r < rows; r++) {
            load_floats(x + (long long)min(row + r, M - 1) * K + k, v);
            for (int i = 0; i < width; i++) sums[r] += v[i] * w[i];
        }
    }
    for (int r = 0; r < rows; r++) {
        const float sum = warp_sum(sums[r]);
        if (threadIdx.x == 0 && row + r < M) y[(long long)(row + r) * N + n] = sum;
    }
}

// weights (N, C) -> out (N, C). axis: the axis along which each `group` weights share a scale. Grid: enough blocks for
// N * C / width threads.
template <typename packed, int width>
__global__ void __launch_bounds__(MAX_THREADS)
    unpack_rows(const packed *__restrict__ weights, const float *__restrict__ scales, float *__restrict__ out, int N,
                int C, int group, int axis) {
    const int packs = C / width;  // in a row
    const long long pack = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (pack >= (long long)N * packs) return;
    const long long row = pack / packs;
    const int j = (int)(pack % packs) * width, groups = (C + group - 1) / group;
    float w[width], s[width];
    load(weights + row * C + j, w);
    if (scales) {
        if (axis == 0) load(scales + row / group * C + j, s);
        for (int i = 0; i < width; i++) w[i] *= axis == 0 ? s[i] : scales[row * groups + j / group];
    }
    store(out + row * C + j, w);
}
