// Many float32 arrays rounded to 16 bits in one launch, for the GPU: tinygpt/ops/cast.py.
//
// A model rounds each of its parameters at the beginning of a pass, most of them too small to be worth a launch. As in
// adamw.cu, each block looks up its array in a table, and each of its threads processes PACKS packs; the elements after
// the last whole pack are processed one by one. Memory traffic: 6 bytes per element.

#include "tensors.cuh"

template <int width, typename real>
__device__ inline void round_pack(const float *x, real *y) {
    float v[width];
    load(x, v);
    store(y, v);
}

// tensors (count,): the addresses of x, float32, and of y. A pack is 4 elements, 16 bytes of x, or 1.
template <typename real, int width>
__global__ void __launch_bounds__(MAX_THREADS) rounded_each(const Tensor *__restrict__ tensors, int count) {
    const Tensor tensor = tensors[tensor_of_block(tensors, count)];
    const float *x = reinterpret_cast<const float *>(tensor.address[0]);
    real *y = reinterpret_cast<real *>(tensor.address[1]);
    const long long first = (blockIdx.x - tensor.first_block) * blockDim.x * PACKS + threadIdx.x;
    for (int pack = 0; pack < PACKS; pack++) {
        const long long at = (first + (long long)pack * blockDim.x) * width;
        if (at + width <= tensor.size)
            round_pack<width>(x + at, y + at);
        else
            for (long long i = at; i < tensor.size; i++) round_pack<1>(x + i, y + i);
    }
}
