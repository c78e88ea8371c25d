// Dropout for the GPU. The mathematics is in tinygpt/ops/dropout.py. The mask is regenerated when needed, never stored.
//
// A thread processes one pack of a row; x is read once, y written once: 8 bytes per element in float32. Packs are
// numbered across rows, so that adjacent threads have adjacent packs even when rows are short.

#include "philox.cuh"

// x, y (N, C), C a multiple of width. Row 0 has the random words of row `first_row`. Grid: enough blocks for N * C / width threads.
template <typename real, int width>
__global__ void __launch_bounds__(MAX_THREADS)
    dropout_apply(const real *__restrict__ x, real *__restrict__ y, int N, int C, unsigned threshold, double keep,
                  unsigned long long seed, unsigned long long stream, const unsigned long long *base, unsigned first_row) {
    typedef accumulator<real> accum;
    stream = stream_of(stream, base);
    const int packs = C / width;  // in a row
    const long long pack = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (pack >= (long long)N * packs) return;
    const long long row = pack / packs;
    const int j = (int)(pack % packs) * width;
    accum v[width], factors[width];
    dropout_factors<width, accum>(first_row + (unsigned)row, j, threshold, (accum)keep, seed, stream, factors);
    load(x + row * C + j, v);
    for (int i = 0; i < width; i++) v[i] *= factors[i];
    store(y + row * C + j, v);
}
