// LayerNorm for the GPU. The mathematics is in tinygpt/ops/layer_norm.py.
//
// Forward. One block per row; adjacent threads handle adjacent packs, then move on by one block width. Memory traffic:
// one read of x and one write of y, 8 bytes per element in float32.
//
// Backward. One block handles `rows` rows, one after the other. Memory traffic: one read each of dy and x and one write
// of dx, 12 bytes per element in float32. dweight and dbias are sums over all rows: each block sums its own rows in
// shared memory and writes one row of a table (blocks, C), which column_sum (linear.cu) adds up. No two threads write
// to the same address, so every run gives the same bits.

#include "layer_norm.cuh"

// x, y (N, C); weight, bias (C,), bias may be null; mean (N, 2), rstd (N,). Grid: N blocks.
template <typename real, int width>
__global__ void __launch_bounds__(MAX_THREADS)
    layer_norm_forward(const real *__restrict__ x, const real *__restrict__ weight, const real *__restrict__ bias,
                       real *__restrict__ y, accumulator<real> *__restrict__ mean,
                       accumulator<real> *__restrict__ rstd, int C, double eps) {
    const long long row = blockIdx.x;
    normalize_row<real, width>(x + row * C, weight, bias, y + row * C, mean + 2 * row, rstd + row, C, eps);
}

// dy, x, dx (N, C); weight (C,); mean (N, 2), rstd (N,); dweight, dbias (blocks, C), dbias may be null.
// Grid: ceil(N / rows) blocks. Shared memory: 2 C accumulators, or C without dbias.
template <typename real, int width>
__global__ void __launch_bounds__(MAX_THREADS)
    layer_norm_backward(const real *__restrict__ dy, const real *__restrict__ x, const real *__restrict__ weight,
                        const accumulator<real> *__restrict__ mean, const accumulator<real> *__restrict__ rstd,
                        real *__restrict__ dx,
                        accumulator<real> *__restrict__ dweight, accumulator<real> *__restrict__ dbias, int N, int C,
                        int rows) {
    typedef accumulator<real> accum;
    extern __shared__ __align__(16) unsigned char shared_memory[];
    accum *dweight_here = reinterpret_cast<accum *>(shared_memory);  // (C,) sums over this block's rows
    accum *dbias_here = dbias ? dweight_here + C : nullptr;          // (C,)
    accum d[width], v[width], w[width];
    for (int j = threadIdx.x * width; j < C; j += blockDim.x * width)
        for (int i = 0; i < width; i++) {
            dweight_here[j + i] = 0;
            if (dbias) dbias_here[j + i] = 0;
        }
    const int first = blockIdx.x * rows, last = min(N, first + rows);
    for (int row = first; row < last; row++) {
        const long long at = (long long)row * C;
        const accum scale = rstd[row];
        const Norm<accum> norm(mean[2 * row], mean[2 * row + 1], scale);
        accum shift, stretch;
        row_gradient_means<real, width>(dy + at, x + at, weight, norm, dweight_here, dbias_here, C, shift, stretch);
        for (int j = threadIdx.x * width; j < C; j += blockDim.x * width) {
            load(dy + at + j, d);
            load(x + at + j, v);
            load(weight + j, w);
            for (int i = 0; i < width; i++)
                d[i] = scale * (rounded_product(d[i], w[i]) - shift - norm(v[i]) * stretch);
            store(dx + at + j, d);
        }
    }
    const long long at = (long long)blockIdx.x * C;
    for (int j = threadIdx.x * width; j < C; j += blockDim.x * width)
        for (int i = 0; i < width; i++) {
            dweight[at + j + i] = dweight_here[j + i];
            if (dbias) dbias[at + j + i] = dbias_here[j + i];
        }
}
