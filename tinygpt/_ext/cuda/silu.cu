// SiLU for the GPU: tinygpt/ops/silu.py.
//
// A thread processes one pack, ignoring row boundaries; the last thread processes the remainder one by one. Memory
// traffic in float32: 8 bytes per element forward, 12 backward.

#include "common.cuh"

// Beyond +-750, even in double, y is exactly 0 or x and the derivative exactly 0 or 1. Clipping avoids infinity * 0.
template <typename T>
__device__ inline T clipped(T x) {
    return x > 750 ? (T)750 : x < -750 ? (T)-750 : x;
}

template <int width, typename real>
__device__ inline void forward_pack(const real *x, real *y) {
    accumulator<real> v[width];
    load(x, v);
    for (int i = 0; i < width; i++) {
        if (v[i] < -750) v[i] = -750;
        v[i] /= 1 + exp(-v[i]);
    }
    store(y, v);
}

// s + x s (1 - s) with t = exp(-|x|), r = 1 / (1 + t): s is r or t r, and s (1 - s) is t r**2.
template <int width, typename real>
__device__ inline void backward_pack(const real *dy, const real *x, real *dx) {
    accumulator<real> d[width], v[width];
    load(dy, d);
    load(x, v);
    for (int i = 0; i < width; i++) {
        const accumulator<real> at = clipped(v[i]), t = exp(-fabs(at)), r = 1 / (1 + t);
        d[i] *= (at < 0 ? t * r : r) + at * (t * r * r);
    }
    store(dx, d);
}

// x, y (size,). Grid: enough blocks for ceil(size / width) threads.
template <typename real, int width>
__global__ void __launch_bounds__(MAX_THREADS)
    silu_forward(const real *__restrict__ x, real *__restrict__ y, long long size) {
    const long long at = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * width;
    if (at + width <= size)
        forward_pack<width>(x + at, y + at);
    else
        for (long long i = at; i < size; i++) forward_pack<1>(x + i, y + i);
}

// dy, x, dx (size,). Grid: as for silu_forward.
template <typename real, int width>
__global__ void __launch_bounds__(MAX_THREADS)
    silu_backward(const real *__restrict__ dy, const real *__restrict__ x, real *__restrict__ dx, long long size) {
    const long long at = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * width;
    if (at + width <= size)
        backward_pack<width>(dy + at, x + at, dx + at);
    else
        for (long long i = at; i < size; i++) backward_pack<1>(dy + i, x + i, dx + i);
}
