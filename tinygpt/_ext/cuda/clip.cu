// The sums of squares of many arrays in two launches, for the GPU: tinygpt/optim/clip.py.
//
// As in adamw.cu, each block looks up its array in a table, and each of its threads processes PACKS packs. The block
// writes one partial sum; a second kernel, with one block per array, adds these up. Memory traffic: one read, 4 bytes
// per element in float32. All sums are in double, because the square of a float may overflow a float.

#include "tensors.cuh"

template <int width, typename real>
__device__ inline double squares_of_pack(const real *x) {
    accumulator<real> v[width];
    double sum = 0;
    load(x, v);
    for (int i = 0; i < width; i++) sum += (double)v[i] * (double)v[i];
    return sum;
}

// tensors (count,): the addresses of the arrays; parts (blocks,): the partial sum of each block.
template <typename real, int width>
__global__ void __launch_bounds__(MAX_THREADS)
    squares_of_blocks(const Tensor *__restrict__ tensors, double *__restrict__ parts, int count) {
    const Tensor tensor = tensors[tensor_of_block(tensors, count)];
    const real *x = reinterpret_cast<const real *>(tensor.address[0]);
    const long long first = (blockIdx.x - tensor.first_block) * blockDim.x * PACKS + threadIdx.x;
    double sum[1] = {0};
    for (int pack = 0; pack < PACKS; pack++) {
        const long long at = (first + (long long)pack * blockDim.x) * width;
        if (at + width <= tensor.size)
            sum[0] += squares_of_pack<width>(x + at);
        else
            for (long long i = at; i < tensor.size; i++) sum[0] += squares_of_pack<1>(x + i);
    }
    block_sum(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum[0];
}

// sums (count,) of squares -> state (3,): the factor for the gradients, which clips them; the norm of their mean; whether
// steps are still taken. A norm that is not finite ends this: the factor is then NaN, so adamw.cu changes nothing, and
// it stays NaN until the host, which reads the state one step late, says otherwise. Grid: one block of one warp, in
// which one thread works: there are few sums, and it adds them in the same order as the host would.
template <typename real>
__global__ void clip_scale(const real *__restrict__ sums, real *state, int count, double divisor, double max_norm) {
    if (threadIdx.x != 0) return;
    double total = 0;
    for (int i = 0; i < count; i++) total += widen(sums[i]);
    const double norm = sqrt(total) / divisor;
    const bool goes_on = norm - norm == 0 && widen(state[2]) != 0;
    double scale = 1 / divisor;
    if (max_norm > 0 && norm > max_norm) scale *= max_norm / norm;
    narrow(goes_on ? scale : (double)__uint_as_float(0x7fc00000u), state[0]);
    narrow(norm, state[1]);
    narrow(goes_on ? 1.0 : 0.0, state[2]);
}

// parts (blocks,) -> sums (count,). Grid: count blocks.
template <typename real>
__global__ void __launch_bounds__(MAX_THREADS)
    squares_of_tensors(const Tensor *__restrict__ tensors, const double *__restrict__ parts, double *__restrict__ sums,
                       int count, int blocks) {
    const long long begin = tensors[blockIdx.x].first_block;
    const long long end = (int)blockIdx.x + 1 < count ? tensors[blockIdx.x + 1].first_block : blocks;
    double sum[1] = {0};
    for (long long i = begin + threadIdx.x; i < end; i += blockDim.x) sum[0] += parts[i];
    block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum[0];
}
