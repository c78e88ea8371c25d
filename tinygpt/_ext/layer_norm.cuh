// LayerNorm of one row by one block: what layer_norm.cu and residual_layer_norm.cu have in common.

#ifndef TINYGPT_LAYER_NORM_CUH
#define TINYGPT_LAYER_NORM_CUH

#include "common.cuh"

// y = (x - mean) * rstd * weight + bias for one row. bias may be null.
//
// A row is read three times, the first time from memory, then from the cache next to the processor. A mean far larger
// than the deviations from it would, rounded to a float, shift the row by a part of a deviation. So it is summed in
// double (one addition an element, at which no GPU has to wait), and taken away in two parts: `near`, the rounded mean,
// and `rest`, what rounding has cut off.
template <typename real, int width>
__device__ inline void normalize_row(const real *x, const real *weight, const real *bias, real *y,
                                     accumulator<real> *mean, accumulator<real> *rstd, int C, double eps) {
    typedef accumulator<real> accum;
    accum v[width], w[width], b[width], squares[1] = {0};
    double total[1] = {0};
    for (int j = threadIdx.x * width; j < C; j += blockDim.x * width) {
        load(x + j, v);
        for (int i = 0; i < width; i++) total[0] += v[i];
    }
    block_sum(total);
    const double exact_mean = total[0] / C;
    const accum near = (accum)exact_mean, rest = (accum)(exact_mean - near);
    for (int j = threadIdx.x * width; j < C; j += blockDim.x * width) {
        load(x + j, v);
        for (int i = 0; i < width; i++) squares[0] += (v[i] - near - rest) * (v[i] - near - rest);
    }
    block_sum(squares);
    const accum scale = 1 / sqrt(squares[0] / C + (accum)eps);
    for (int j = threadIdx.x * width; j < C; j += blockDim.x * width) {
        load(x + j, v);
        load(weight + j, w);
        for (int i = 0; i < width; i++) v[i] = (v[i] - near - rest) * scale * w[i];
        if (bias) {
            load(bias + j, b);
            for (int i = 0; i < width; i++) v[i] += b[i];
        }
        store(y + j, v);
    }
    if (threadIdx.x == 0) {
        *mean = near;
        *rstd = scale;
    }
}

// The two means that the gradient of a row takes away: shift = mean(dnorm), stretch = mean(dnorm * norm). On the way
// the row's share is added to the block's sums for dweight and dbias (null: no bias). Those lie in shared memory, (C,)
// each; a thread always has the same columns, so it is alone with them.
template <typename real, int width>
__device__ inline void row_gradient_means(const real *dy, const real *x, const real *weight, accumulator<real> mean,
                                          accumulator<real> rstd, accumulator<real> *dweight, accumulator<real> *dbias,
                                          int C, accumulator<real> &shift, accumulator<real> &stretch) {
    typedef accumulator<real> accum;
    accum d[width], v[width], w[width];
    accum sums[2] = {0, 0};
    for (int j = threadIdx.x * width; j < C; j += blockDim.x * width) {
        load(dy + j, d);
        load(x + j, v);
        load(weight + j, w);
        for (int i = 0; i < width; i++) {
            const accum norm = (v[i] - mean) * rstd;
            const accum dnorm = d[i] * w[i];
            sums[0] += dnorm;
            sums[1] += dnorm * norm;
            dweight[j + i] += d[i] * norm;
            if (dbias) dbias[j + i] += d[i];
        }
    }
    block_sum(sums);
    shift = sums[0] / C;
    stretch = sums[1] / C;
}

#endif
