// Residual addition, dropout and LayerNorm in one pass, for the GPU: tinygpt/ops/residual_layer_norm.py.
//
// Forward. One block per row, as in layer_norm.cu. The sum stays in shared memory while it is normalised. Memory
// traffic: residual and x are read, the sum and y written: 16 bytes per element in float32.
// Backward. One block handles `rows` rows, as in layer_norm.cu. Memory traffic: dy, dsum and the sum are read, and the
// gradient that residual and x share is written: 16 bytes per element in float32, 20 if dropout makes the two differ.

#include "layer_norm.cuh"
#include "philox.cuh"

// residual, x, total, y (N, C); x_bias, weight, bias (C,), the biases may be null; mean (N, 2), rstd (N,).
// total = residual + dropout(x + x_bias). Grid: N blocks. Shared memory: the row of `total`, rounded to `real`.
template <typename real, int width>
__global__ void __launch_bounds__(MAX_THREADS)
    residual_layer_norm_forward(const real *__restrict__ residual, const real *__restrict__ x,
                                const real *__restrict__ x_bias, const real *__restrict__ weight,
                                const real *__restrict__ bias, real *__restrict__ total, real *__restrict__ y,
                                accumulator<real> *__restrict__ mean, accumulator<real> *__restrict__ rstd, int C,
                                double eps, unsigned threshold,
                                double keep, unsigned long long seed, unsigned long long stream,
                                const unsigned long long *base, unsigned first_row) {
    typedef accumulator<real> accum;
    extern __shared__ __align__(16) unsigned char shared_memory[];
    stream = stream_of(stream, base);
    real *total_here = reinterpret_cast<real *>(shared_memory);  // (C,) each thread reads only what it wrote itself
    const long long row = blockIdx.x;
    accum r[width], v[width], b[width], factors[width];
    for (int j = threadIdx.x * width; j < C; j += blockDim.x * width) {
        load(residual + row * C + j, r);
        load(x + row * C + j, v);
        if (x_bias) {
            load(x_bias + j, b);
            for (int i = 0; i < width; i++) v[i] += b[i];
        }
        if (threshold) {
            dropout_factors<width, accum>(first_row + (unsigned)row, j, threshold, (accum)keep, seed, stream, factors);
            for (int i = 0; i < width; i++) v[i] *= factors[i];
        }
        for (int i = 0; i < width; i++) v[i] += r[i];
        store(total_here + j, v);
        store(total + row * C + j, v);
    }
    normalize_row<real, width>(total_here, weight, bias, y + row * C, mean + 2 * row, rstd + row, C, eps);
}

// dy, dsum, total, dresidual, dx (N, C); weight (C,); mean (N, 2), rstd (N,); dweight, dbias, dx_bias (blocks, C), the
// last two may be null. dx is written only if threshold is not 0; otherwise dresidual is the gradient of x as well.
// Grid: ceil(N / rows) blocks. Shared memory: C accumulators for each of dweight, dbias, dx_bias that is not null.
template <typename real, int width>
__global__ void __launch_bounds__(MAX_THREADS)
    residual_layer_norm_backward(const real *__restrict__ dy, const real *__restrict__ dsum,
                                 const real *__restrict__ total, const real *__restrict__ weight,
                                 const accumulator<real> *__restrict__ mean,
                                 const accumulator<real> *__restrict__ rstd, real *dresidual, real *dx,
                                 accumulator<real> *__restrict__ dweight, accumulator<real> *__restrict__ dbias,
                                 accumulator<real> *__restrict__ dx_bias, int N, int C, int rows, unsigned threshold,
                                 double keep, unsigned long long seed, unsigned long long stream,
                                 const unsigned long long *base, unsigned first_row) {
    typedef accumulator<real> accum;
    extern __shared__ __align__(16) unsigned char shared_memory[];
    stream = stream_of(stream, base);
    accum *dweight_here = reinterpret_cast<accum *>(shared_memory);           // (C,) sums over this block's rows
    accum *dbias_here = dbias ? dweight_here + C : nullptr;                   // (C,)
    accum *dx_bias_here = dx_bias ? dweight_here + (dbias ? 2 : 1) * C : nullptr;  // (C,)
    accum d[width], s[width], v[width], w[width], factors[width];
    for (int j = threadIdx.x * width; j < C; j += blockDim.x * width)
        for (int i = 0; i < width; i++) {
            dweight_here[j + i] = 0;
            if (dbias) dbias_here[j + i] = 0;
            if (dx_bias) dx_bias_here[j + i] = 0;
        }
    const int first = blockIdx.x * rows, last = min(N, first + rows);
    for (int row = first; row < last; row++) {
        const long long at = (long long)row * C;
        const accum scale = rstd[row];
        const Norm<accum> norm(mean[2 * row], mean[2 * row + 1], scale);
        accum shift, stretch;
        row_gradient_means<real, width>(dy + at, total + at, weight, norm, dweight_here, dbias_here, C, shift, stretch);
        for (int j = threadIdx.x * width; j < C; j += blockDim.x * width) {
            load(dy + at + j, d);
            load(dsum + at + j, s);
            load(total + at + j, v);
            load(weight + j, w);
            for (int i = 0; i < width; i++)
                d[i] = s[i] + scale * (rounded_product(d[i], w[i]) - shift - norm(v[i]) * stretch);
            store(dresidual + at + j, d);
            if (threshold) {
                dropout_factors<width, accum>(first_row + (unsigned)row, j, threshold, (accum)keep, seed, stream, factors);
                for (int i = 0; i < width; i++) d[i] *= factors[i];
                store(dx + at + j, d);
            }
            if (dx_bias)
                for (int i = 0; i < width; i++) dx_bias_here[j + i] += d[i];
        }
    }
    const long long at = (long long)blockIdx.x * C;
    for (int j = threadIdx.x * width; j < C; j += blockDim.x * width)
        for (int i = 0; i < width; i++) {
            dweight[at + j + i] = dweight_here[j + i];
            if (dbias) dbias[at + j + i] = dbias_here[j + i];
            if (dx_bias) dx_bias[at + j + i] = dx_bias_here[j + i];
        }
}
