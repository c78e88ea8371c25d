// One launch over many arrays of any size: finds the array that a block works on. For adamw.cu and clip.cu.

#ifndef TINYGPT_TENSORS_CUH
#define TINYGPT_TENSORS_CUH

#include "common.cuh"

constexpr int PACKS = 4;  // packs per thread

// One array, or several of the same size that are processed together: their addresses, their number of elements, and
// the index of the first block that works on them.
struct Tensor {
    long long address[5];
    long long size;
    long long first_block;
};

// The index of the tensor that this block works on: the last one whose first block is not after this block.
__device__ inline int tensor_of_block(const Tensor *tensors, int count) {
    int low = 0, high = count;  // it is in low .. high - 1
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (tensors[middle].first_block <= blockIdx.x)
            low = middle;
        else
            high = middle;
    }
    return low;
}

#endif
