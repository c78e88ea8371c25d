// Softmax and log-softmax along rows, for the GPU: tinygpt/ops/softmax.py.
//
// One block per row. Forward reads the row twice: once for the maximum and the sum together (softmax.cuh), once for the
// result. Backward likewise: once for its sum, once for the result. The second read hits the cache unless rows are very
// long, so memory traffic in float32 is 8 bytes per element forward, 12 backward.

#include "softmax.cuh"

// x, y (N, C). Grid: N blocks.
template <typename real, int width>
__global__ void __launch_bounds__(MAX_THREADS)
    softmax_forward(const real *__restrict__ x, real *__restrict__ y, int C) {
    typedef accumulator<real> accum;
    const long long at = (long long)blockIdx.x * C;
    accum v[width], top, total;
    row_exponentials<real, width>(x + at, C, top, total);
    const accum scale = 1 / total;
    for (int j = threadIdx.x * width; j < C; j += blockDim.x * width) {
        load(x + at + j, v);
        for (int i = 0; i < width; i++) v[i] = exp(v[i] - top) * scale;
        store(y + at + j, v);
    }
}

template <typename real, int width>
__global__ void __launch_bounds__(MAX_THREADS)
    softmax_backward(const real *__restrict__ dy, const real *__restrict__ y, real *__restrict__ dx, int C) {
    typedef accumulator<real> accum;
    const long long at = (long long)blockIdx.x * C;
    accum d[width], v[width], dot[1] = {0};
    for (int j = threadIdx.x * width; j < C; j += blockDim.x * width) {
        load(dy + at + j, d);
        load(y + at + j, v);
        for (int i = 0; i < width; i++) dot[0] += d[i] * v[i];
    }
    block_sum(dot);
    for (int j = threadIdx.x * width; j < C; j += blockDim.x * width) {
        load(dy + at + j, d);
        load(y + at + j, v);
        for (int i = 0; i < width; i++) v[i] *= d[i] - dot[0];
        store(dx + at + j, v);
    }
}

template <typename real, int width>
__global__ void __launch_bounds__(MAX_THREADS)
    log_softmax_forward(const real *__restrict__ x, real *__restrict__ z, int C) {
    typedef accumulator<real> accum;
    const long long at = (long long)blockIdx.x * C;
    accum v[width], top, total;
    row_exponentials<real, width>(x + at, C, top, total);
    const accum log_total = log(total);
    for (int j = threadIdx.x * width; j < C; j += blockDim.x * width) {
        load(x + at + j, v);
        for (int i = 0; i < width; i++) v[i] = v[i] - top - log_total;
        store(z + at + j, v);
    }
}

template <typename real, int width>
__global__ void __launch_bounds__(MAX_THREADS)
    log_softmax_backward(const real *__restrict__ dz, const real *__restrict__ z, real *__restrict__ dx, int C) {
    typedef accumulator<real> accum;
    const long long at = (long long)blockIdx.x * C;
    accum d[width], v[width], total[1] = {0};
    for (int j = threadIdx.x * width; j < C; j += blockDim.x * width) {
        load(dz + at + j, d);
        for (int i = 0; i < width; i++) total[0] += d[i];
    }
    block_sum(total);
    for (int j = threadIdx.x * width; j < C; j += blockDim.x * width) {
        load(dz + at + j, d);
        load(z + at + j, v);
        for (int i = 0; i < width; i++) d[i] -= exp(v[i]) * total[0];
        store(dx + at + j, d);
    }
}
