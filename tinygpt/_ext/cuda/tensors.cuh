// One launch over many arrays of any size: which of them a block works on. For adamw.cu and clip.cu.

#ifndef TINYGPT_TENSORS_CUH
#define TINYGPT_TENSORS_CUH

#include "common.cuh"

constexpr int PACKS = 4;  // that each thread takes

// One array (or several of one size that are worked on together): where they are, how many elements, and the number of
// the first block that works on them.
struct Tensor {
    long long address[4];
    long long size;
    long long first_block;
};

// The number of the tensor that this block works on: the last whose first block is not behind it.
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
