// Cross-entropy over a vocabulary, for the GPU: tinygpt/ops/cross_entropy.py and linear_cross_entropy.py.
//
// One block per row of V logits. The maximum and the sum of exponentials come from one read (softmax.cuh), and
// probabilities are never stored. Memory traffic per logit in float32: forward 4 bytes; backward a read and a write, 8;
// in place a read for the sums, then a read and a write for the gradient, 8 to 12 depending on how much of the row is
// still in the cache.
// For a target that is neither ignore_index nor a class, nothing is read and the row's loss and gradient are NaN.

#include "softmax.cuh"

enum Target { IGNORED, CLASS, OUTSIDE };

__device__ inline Target kind_of(long long target, int V, long long ignore_index) {
    return target == ignore_index ? IGNORED : target >= 0 && target < V ? CLASS : OUTSIDE;
}

template <typename accum>
__device__ inline accum not_a_number() {
    return (accum)__uint_as_float(0x7fc00000u);
}

// logits (N, V); targets, losses (N,); lse (N, 2): near and rest (tinygpt/ops/_two_parts.py). Grid: N blocks.
template <typename real, int width>
__global__ void __launch_bounds__(MAX_THREADS)
    cross_entropy_forward(const real *__restrict__ logits, const long long *__restrict__ targets,
                          accumulator<real> *__restrict__ losses, accumulator<real> *__restrict__ lse, int V,
                          long long ignore_index) {
    typedef accumulator<real> accum;
    const long long row = blockIdx.x;
    accum top, total;
    row_exponentials<real, width>(logits + row * V, V, top, total);
    if (threadIdx.x != 0) return;
    const accum log_total = log(total);
    const Target kind = kind_of(targets[row], V, ignore_index);
    accum loss = 0;
    if (kind == CLASS) loss = log_total - (widen(logits[row * V + targets[row]]) - top);
    if (kind == OUTSIDE) loss = not_a_number<accum>();
    losses[row] = loss;
    const accum near = top + log_total;
    lse[2 * row] = near;
    lse[2 * row + 1] = (top - near) + log_total;
}

// Write one row of scale * (softmax(x) - onehot(target)) to dx, which may be x. softmax(x) = exp(x - shift) * factor:
// the single number lse = shift - log(factor) would be rounded more coarsely the larger an offset all logits share.
template <typename real, int width>
__device__ inline void write_gradient(const real *x, real *dx, int V, long long target, Target kind,
                                      accumulator<real> shift, accumulator<real> factor, accumulator<real> scale) {
    typedef accumulator<real> accum;
    accum v[width];
    if (kind == OUTSIDE) scale = not_a_number<accum>();
    for (int j = threadIdx.x * width; j < V; j += blockDim.x * width) {
        if (kind != IGNORED) load(x + j, v);
        for (int i = 0; i < width; i++) {
            const accum onehot = j + i == target ? 1 : 0;
            v[i] = kind == IGNORED ? 0 : (exp(v[i] - shift) * factor - onehot) * scale;
        }
        store(dx + j, v);
    }
}

// dlosses, targets (N,); lse (N, 2); logits, dlogits (N, V). Grid: N blocks.
template <typename real, int width>
__global__ void __launch_bounds__(MAX_THREADS)
    cross_entropy_backward(const accumulator<real> *__restrict__ dlosses, const real *__restrict__ logits,
                           const long long *__restrict__ targets, const accumulator<real> *__restrict__ lse,
                           real *__restrict__ dlogits, int V, long long ignore_index) {
    const long long row = blockIdx.x, target = targets[row];
    write_gradient<real, width>(logits + row * V, dlogits + row * V, V, target, kind_of(target, V, ignore_index),
                                lse[2 * row], exp(-lse[2 * row + 1]), dlosses[row]);
}

// logits (N, V) become scale * d loss / d logits; targets, losses (N,). Grid: N blocks.
template <typename real, int width>
__global__ void __launch_bounds__(MAX_THREADS)
    cross_entropy_inplace(real *logits, const long long *__restrict__ targets,
                          accumulator<real> *__restrict__ losses, int V, long long ignore_index, double scale) {
    typedef accumulator<real> accum;
    const long long row = blockIdx.x, target = targets[row];
    const Target kind = kind_of(target, V, ignore_index);
    real *x = logits + row * V;
    accum top, total;
    row_exponentials<real, width>(x, V, top, total);
    if (threadIdx.x == 0) {
        accum loss = 0;
        if (kind == CLASS) loss = log(total) - (widen(x[target]) - top);
        if (kind == OUTSIDE) loss = not_a_number<accum>();
        losses[row] = loss;
    }
    __syncthreads();  // the target's logit has been read and may be overwritten
    write_gradient<real, width>(x, x, V, target, kind, top, 1 / total, (accum)scale);
}
