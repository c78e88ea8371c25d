// RMSNorm for the GPU. The mathematics is in tinygpt/ops/rms_norm.py.
//
// Forward. One block per row; adjacent threads handle adjacent packs, then move on by one block width. Memory traffic:
// one read of x and one write of y, 8 bytes per element in float32.
//
// Backward. One block handles `rows` rows, one after the other. Memory traffic: one read each of dy and x and one write
// of dx, 12 bytes per element in float32. dweight is a sum over all rows: each block sums its own rows in shared memory
// and writes one row of a table (blocks, C), which column_sum (linear.cu) adds up.

#include "common.cuh"

// x, y (N, C); weight (C,); rstd (N,). Grid: N blocks. Squares may overflow a float, so they are summed in double.
template <typename real, int width>
__global__ void __launch_bounds__(MAX_THREADS)
    rms_norm_forward(const real *__restrict__ x, const real *__restrict__ weight, real *__restrict__ y,
                     accumulator<real> *__restrict__ rstd, int C, double eps) {
    typedef accumulator<real> accum;
    const long long at = (long long)blockIdx.x * C;
    accum v[width], w[width];
    double squares[1] = {0};
    for (int j = threadIdx.x * width; j < C; j += blockDim.x * width) {
        load(x + at + j, v);
        for (int i = 0; i < width; i++) squares[0] += (double)v[i] * v[i];
    }
    block_sum(squares);
    const double scale = 1 / sqrt(squares[0] / C + eps);
    for (int j = threadIdx.x * width; j < C; j += blockDim.x * width) {
        load(x + at + j, v);
        load(weight + j, w);
        for (int i = 0; i < width; i++) v[i] = (accum)(v[i] * scale) * w[i];
        store(y + at + j, v);
    }
    if (threadIdx.x == 0) rstd[blockIdx.x] = (accum)scale;
}

// dy, x, dx (N, C); weight (C,); rstd (N,); dweight (blocks, C). Grid: ceil(N / rows) blocks. Shared memory: C
// accumulators; a thread always has the same columns, so no barrier is needed for them.
template <typename real, int width>
__global__ void __launch_bounds__(MAX_THREADS)
    rms_norm_backward(const real *__restrict__ dy, const real *__restrict__ x, const real *__restrict__ weight,
                      const accumulator<real> *__restrict__ rstd, real *__restrict__ dx,
                      accumulator<real> *__restrict__ dweight, int N, int C, int rows) {
    typedef accumulator<real> accum;
    extern __shared__ __align__(16) unsigned char shared_memory[];
    accum *dweight_here = reinterpret_cast<accum *>(shared_memory);  // (C,) sums over this block's rows
    accum d[width], v[width], w[width];
    for (int j = threadIdx.x * width; j < C; j += blockDim.x * width)
        for (int i = 0; i < width; i++) dweight_here[j + i] = 0;
    const int first = blockIdx.x * rows, last = min(N, first + rows);
    for (int row = first; row < last; row++) {
        const long long at = (long long)row * C;
        const accum scale = rstd[row];
        double stretch[1] = {0};
        for (int j = threadIdx.x * width; j < C; j += blockDim.x * width) {
            load(dy + at + j, d);
            load(x + at + j, v);
            load(weight + j, w);
            for (int i = 0; i < width; i++) {
                const accum norm = v[i] * scale;
                stretch[0] += (double)rounded_product(d[i], w[i]) * norm;
                dweight_here[j + i] += d[i] * norm;
            }
        }
        block_sum(stretch);
        const accum pull = (accum)(stretch[0] / C);
        for (int j = threadIdx.x * width; j < C; j += blockDim.x * width) {
            load(dy + at + j, d);
            load(x + at + j, v);
            load(weight + j, w);
            for (int i = 0; i < width; i++) d[i] = scale * (rounded_product(d[i], w[i]) - v[i] * scale * pull);
            store(dx + at + j, d);
        }
    }
    const long long at = (long long)blockIdx.x * C;
    for (int j = threadIdx.x * width; j < C; j += blockDim.x * width)
        for (int i = 0; i < width; i++) dweight[at + j + i] = dweight_here[j + i];
}
