// The maximum of a row and the sum of its exponentials, in one read: for softmax.cu and cross_entropy.cu.

#ifndef TINYGPT_SOFTMAX_CUH
#define TINYGPT_SOFTMAX_CUH

#include "common.cuh"

template <typename T>
__device__ inline T warp_max(T value) {
    for (int offset = WARP / 2; offset > 0; offset /= 2)
        value = larger(value, __shfl_xor_sync(0xffffffffu, value, offset));
    return value;
}

// The maximum over the block, returned to all of its threads.
template <typename T>
__device__ inline T block_max(T value) {
    __shared__ T of_warp[WARP];
    value = warp_max(value);
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = value;
    __syncthreads();
    value = of_warp[0];
    for (int warp = 1; warp < (int)blockDim.x / WARP; warp++) value = larger(value, of_warp[warp]);
    __syncthreads();  // the next call overwrites of_warp: everyone must have read it
    return value;
}

// For a row x of C numbers: top = max(x) and total = sum(exp(x - top)), returned to all threads of the block.
//
// A thread keeps both for the elements it has seen, and rescales the sum when the maximum grows (online softmax:
// Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018), at most once per pack. While the maximum
// is still -infinity, 0 is subtracted instead: exp(-infinity - 0) = 0, but exp(-infinity + infinity) would be NaN.
template <typename real, int width>
__device__ inline void row_exponentials(const real *x, int C, accumulator<real> &top, accumulator<real> &total) {
    typedef accumulator<real> accum;
    const accum lowest = minus_infinity<accum>();
    accum v[width], sum[1] = {0}, most = lowest;
    for (int j = threadIdx.x * width; j < C; j += blockDim.x * width) {
        load(x + j, v);
        accum most_here = v[0];
        for (int i = 1; i < width; i++) most_here = larger(most_here, v[i]);
        if (!(most_here <= most)) {
            sum[0] *= exp(most - most_here);
            most = most_here;
        }
        const accum base = most == lowest ? 0 : most;
        for (int i = 0; i < width; i++) sum[0] += exp(v[i] - base);
    }
    top = block_max(most);
    const accum base = top == lowest ? 0 : top;
    sum[0] *= exp(most - base);
    block_sum(sum);
    total = sum[0];
}

#endif
