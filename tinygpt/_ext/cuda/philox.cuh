// Random numbers and dropout masks: the same words as tinygpt/random.py, the same mask as tinygpt/ops/dropout.py.
//
// Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011, section 3.3 and table 2.

#ifndef TINYGPT_PHILOX_CUH
#define TINYGPT_PHILOX_CUH

#include "common.cuh"

struct Words {
    unsigned x, y, z, w;
};

// Ten rounds of Philox on one counter. Words 4 q .. 4 q + 3 of row r of a stream have the counter (q, r, stream).
__device__ inline Words philox(unsigned quad, unsigned row, unsigned long long stream, unsigned long long seed) {
    unsigned c0 = quad, c1 = row, c2 = (unsigned)stream, c3 = (unsigned)(stream >> 32);
    unsigned k0 = (unsigned)seed, k1 = (unsigned)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        const unsigned high0 = __umulhi(c0, 0xD2511F53u), low0 = c0 * 0xD2511F53u;
        const unsigned high1 = __umulhi(c2, 0xCD9E8D57u), low1 = c2 * 0xCD9E8D57u;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {c0, c1, c2, c3};
}

// The absolute number of an RNG stream. A CUDA graph replays a launch with the arguments it was captured with, so the
// offset that changes from step to step is read from memory at `base` (null: no offset).
__device__ inline unsigned long long stream_of(unsigned long long stream, const unsigned long long *base) {
    return base ? stream + *base : stream;
}

__device__ inline unsigned word_of(const Words &words, int i) {
    return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
}

// The dropout factors of (row, j .. j + width - 1): 0 where the word is below `threshold`, otherwise `keep`, which is
// 1 / (1 - p). j is a multiple of width. One call of philox serves four adjacent elements.
template <int width, typename accum>
__device__ inline void dropout_factors(unsigned row, int j, unsigned threshold, accum keep, unsigned long long seed,
                                       unsigned long long stream, accum (&factors)[width]) {
    Words words;
    for (int i = 0; i < width; i++) {
        if (i % 4 == 0) words = philox((unsigned)(j + i) / 4, row, stream, seed);
        const int place = width % 4 == 0 ? i % 4 : (j + i) % 4;  // i % 4 is a compile-time constant
        factors[i] = word_of(words, place) >= threshold ? keep : (accum)0;
    }
}

#endif
