// The next token of each row of logits, for the GPU: tinygpt/ops/sample_tokens.py.
//
// A block takes a row. What is dropped is found without sorting: a float's place in the order of all floats is a 32-bit
// integer, and the border is found two bits at a time, by 16 passes that count (top_k) or add up (top_p) what lies at
// or below three candidates. The draw is by contiguous chunks, one for each thread: the sums of chunks tell
// which thread has the token, and it walks through its chunk. Sums are in double, in a fixed order: the same input gives
// the same token. Traffic: the logits once, 8 bytes a token for the weights, and both again from the cache in each pass.

#include "../common.cuh"

constexpr int THREADS = MAX_THREADS;

// A number's place in the order of floats. Both zeros have the same one.
template <typename real>
__device__ inline unsigned place_of(real x) {
    const unsigned bits = __float_as_uint(widen(x) + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The largest place over the block, and the first index at which it occurs.
__device__ inline void first_best(unsigned &place, int &index) {
    __shared__ unsigned places[WARP];
    __shared__ int indices[WARP];
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        const unsigned other = __shfl_xor_sync(0xffffffffu, place, offset);
        const int at = __shfl_xor_sync(0xffffffffu, index, offset);
        if (other > place || (other == place && at < index)) {
            place = other;
            index = at;
        }
    }
    if (threadIdx.x % WARP == 0) {
        places[threadIdx.x / WARP] = place;
        indices[threadIdx.x / WARP] = index;
    }
    __syncthreads();
    for (int warp = 0; warp < (int)blockDim.x / WARP; warp++)
        if (places[warp] > place || (places[warp] == place && indices[warp] < index)) {
            place = places[warp];
            index = indices[warp];
        }
}

// The sum of the threads' values below this one's, and of all, added in the order of the threads. Once for each T: a
// second call would overwrite values that somebody may still have to read.
template <typename T>
__device__ inline T sum_before(T own, T &total) {
    __shared__ T values[THREADS];
    values[threadIdx.x] = own;
    __syncthreads();
    T before = 0;
    total = 0;
    for (int thread = 0; thread < (int)blockDim.x; thread++) {
        if (thread == (int)threadIdx.x) before = total;
        total += values[thread];
    }
    return before;
}

// logits (R, V), of which the first `size` of each row are candidates; number (R,): the random number times 2**53;
// weights (R, V): room for the unnormalised probabilities; ids (R,): -1 if a logit is not finite. Grid: R blocks.
template <typename real>
__global__ void __launch_bounds__(MAX_THREADS)
    sample_tokens(const real *__restrict__ logits, const long long *__restrict__ number, double *weights,
                  long long *__restrict__ ids, int V, int size, double temperature, int top_k, double top_p) {
    const real *x = logits + (long long)blockIdx.x * V;
    double *w = weights + (long long)blockIdx.x * V;
    unsigned best = 0;
    int first = size, bad[1] = {0};
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        const float value = widen(x[i]);
        if (value - value != 0) bad[0]++;
        const unsigned place = place_of(x[i]);
        if (place > best) {
            best = place;
            first = i;
        }
    }
    block_sum(bad);
    first_best(best, first);
    if (bad[0] > 0 || temperature == 0) {
        if (threadIdx.x == 0) ids[blockIdx.x] = bad[0] > 0 ? -1 : first;
        return;
    }

    // The largest place that at least top_k tokens reach: tokens below it are dropped.
    unsigned lowest = 0;
    if (top_k > 0)
        for (int bit = 30; bit >= 0; bit -= 2) {
            int reached[3] = {0, 0, 0};
            for (int i = threadIdx.x; i < size; i += blockDim.x)
                for (unsigned step = 1; step < 4; step++) reached[step - 1] += place_of(x[i]) >= lowest + (step << bit);
            block_sum(reached);
            unsigned steps = 0;
            for (unsigned step = 1; step < 4; step++)
                if (reached[step - 1] >= top_k) steps = step;
            lowest += steps << bit;
        }

    // A small temperature must not make infinities: then the largest logit is subtracted first.
    double top = widen(x[first]);
    const double shift = fabs(top / temperature) > 1.7976931348623157e308 ? top : 0;
    top = (top - shift) / temperature;
    for (int i = threadIdx.x; i < size; i += blockDim.x)
        w[i] = place_of(x[i]) >= lowest ? exp(((double)widen(x[i]) - shift) / temperature - top) : 0;
    __syncthreads();

    // The largest place below which there is at most (1 - p) of the total; of the tokens at that place, the first ones
    // may be dropped too.
    long long dropped_there = 0;
    if (top_p < 1) {
        double total[1] = {0}, below = 0;
        for (int i = threadIdx.x; i < size; i += blockDim.x) total[0] += w[i];
        block_sum(total);
        const double rest = (1 - top_p) * total[0];
        unsigned border = 0;
        for (int bit = 30; bit >= 0; bit -= 2) {
            double under[3] = {0, 0, 0};
            for (int i = threadIdx.x; i < size; i += blockDim.x)
                for (unsigned step = 1; step < 4; step++)
                    if (place_of(x[i]) < border + (step << bit)) under[step - 1] += w[i];
            block_sum(under);
            unsigned steps = 0;
            for (unsigned step = 1; step < 4; step++)
                if (under[step - 1] <= rest) steps = step;
            if (steps > 0) below = under[steps - 1];
            border += steps << bit;
        }
        lowest = border < best ? border : best;  // p may be so small that 1 - p is 1: then all but one are dropped
        const float there = __uint_as_float(lowest & 0x80000000u ? lowest & 0x7fffffffu : ~lowest);
        const double each = exp(((double)there - shift) / temperature - top);
        dropped_there = border > best ? size : each > 0 ? (long long)((rest - below) / each) : 0;
    }

    const int chunk = (size + (int)blockDim.x - 1) / (int)blockDim.x;
    const int begin = (int)threadIdx.x * chunk, end = begin + chunk < size ? begin + chunk : size;
    if (dropped_there > 0) {  // the same for all threads
        int there = 0, all;
        for (int i = begin; i < end; i++) there += place_of(x[i]) == lowest;
        int rank = sum_before(there, all);
        if (lowest == best && dropped_there >= all) dropped_there = all - 1;
        for (int i = begin; i < end; i++)
            if (place_of(x[i]) == lowest && rank++ < dropped_there) w[i] = 0;
    }
    double own = 0, total;
    for (int i = begin; i < end; i++)
        if (place_of(x[i]) >= lowest) own += w[i];
    double sum = sum_before(own, total);
    const double target = (double)number[blockIdx.x] * 0x1p-53 * total;
    if (!(sum <= target && target < sum + own)) return;
    int chosen = begin;
    for (int i = begin; i < end; i++)
        if (place_of(x[i]) >= lowest && w[i] > 0) {
            chosen = i;
            sum += w[i];
            if (sum > target) break;
        }
    ids[blockIdx.x] = chosen;
}
