// Binary cross-entropy from logits, for the GPU: tinygpt/ops/binary_cross_entropy.py.
//
// A thread processes one pack, ignoring row boundaries; the last thread processes the remainder one by one. Memory
// traffic in float32: logits and targets read, losses written: 12 bytes per element; backward 16, with dlosses.

#include "common.cuh"

// log(1 + exp(x)) - target * x, rearranged so that nothing cancels and exp cannot overflow.
template <typename T>
__device__ inline T loss_of(T x, T target) {
    return fabs(x) * (x > 0 ? 1 - target : target) + log1p(exp(-fabs(x)));
}

// sigma(x) - target.
template <typename T>
__device__ inline T gradient_of(T x, T target) {
    const T e = exp(-fabs(x));
    return (x >= 0 ? 1 : e) / (1 + e) - target;
}

template <int width, typename real>
__device__ inline void forward_pack(const real *logits, const real *targets, real *losses) {
    accumulator<real> x[width], t[width];
    load(logits, x);
    load(targets, t);
    for (int i = 0; i < width; i++) x[i] = loss_of(x[i], t[i]);
    store(losses, x);
}

template <int width, typename real>
__device__ inline void backward_pack(const real *dlosses, const real *logits, const real *targets, real *dlogits) {
    accumulator<real> d[width], x[width], t[width];
    load(dlosses, d);
    load(logits, x);
    load(targets, t);
    for (int i = 0; i < width; i++) d[i] *= gradient_of(x[i], t[i]);
    store(dlogits, d);
}

// logits, targets, losses (size,). Grid: enough blocks for ceil(size / width) threads.
template <typename real, int width>
__global__ void __launch_bounds__(MAX_THREADS)
    binary_cross_entropy_forward(const real *__restrict__ logits, const real *__restrict__ targets,
                                 real *__restrict__ losses, long long size) {
    const long long at = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * width;
    if (at + width <= size)
        forward_pack<width>(logits + at, targets + at, losses + at);
    else
        for (long long i = at; i < size; i++) forward_pack<1>(logits + i, targets + i, losses + i);
}

// dlosses, logits, targets, dlogits (size,). Grid: as for binary_cross_entropy_forward.
template <typename real, int width>
__global__ void __launch_bounds__(MAX_THREADS)
    binary_cross_entropy_backward(const real *__restrict__ dlosses, const real *__restrict__ logits,
                                  const real *__restrict__ targets, real *__restrict__ dlogits, long long size) {
    const long long at = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * width;
    if (at + width <= size)
        backward_pack<width>(dlosses + at, logits + at, targets + at, dlogits + at);
    else
        for (long long i = at; i < size; i++) backward_pack<1>(dlosses + i, logits + i, targets + i, dlogits + i);
}
