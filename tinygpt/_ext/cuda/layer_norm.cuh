// LayerNorm of one row by one block: what layer_norm.cu and residual_layer_norm.cu have in common.

#ifndef TINYGPT_LAYER_NORM_CUH
#define TINYGPT_LAYER_NORM_CUH

#include "common.cuh"

// (x - mean) * rstd, for a mean in two parts, near + rest (tinygpt/ops/_two_parts.py): x - near is exact wherever the mean
// is large beside it. Deviations are taken in quarters, which are exact too, and stay in range for the largest numbers.
template <typename accum>
struct Norm {
    accum quarter, scale, rest;

    __device__ Norm(accum near, accum beside, accum rstd) : quarter(near / 4), scale(4 * rstd), rest(beside * rstd) {}

    __device__ accum operator()(accum x) const { return (x / 4 - quarter) * scale - rest; }
};

// y = (x - mean) * rstd * weight + bias for one row. bias may be null. mean (2,): near and rest.
//
// A row is read three times, the first time from memory, then from the cache next to the processor. A mean far larger
// than the deviations from it would, rounded to a float, shift the row by a part of a deviation. So it is summed in
// double, and taken away in two parts: `near`, the rounded mean, and `rest`, what rounding has cut off. The squares of
// the deviations, which may leave a float's range, are summed in double as well: no GPU has to wait for two additions an
// element.
template <typename real, int width>
__device__ inline void normalize_row(const real *x, const real *weight, const real *bias, real *y,
                                     accumulator<real> *mean, accumulator<real> *rstd, int C, double eps) {
    typedef accumulator<real> accum;
    accum v[width], w[width], b[width];
    double total[1] = {0}, squares[1] = {0};
    for (int j = threadIdx.x * width; j < C; j += blockDim.x * width) {
        load(x + j, v);
        for (int i = 0; i < width; i++) total[0] += v[i];
    }
    block_sum(total);
    const double exact_mean = total[0] / C;
    const accum near = (accum)exact_mean, rest = (accum)(exact_mean - near);
    for (int j = threadIdx.x * width; j < C; j += blockDim.x * width) {
        load(x + j, v);
        for (int i = 0; i < width; i++) {
            const double quarter = v[i] / 4 - near / 4 - rest / 4;
            squares[0] += quarter * quarter;
        }
    }
    block_sum(squares);
    const accum scale = (accum)(1 / sqrt(16 * squares[0] / C + eps));
    const Norm<accum> norm(near, rest, scale);
    for (int j = threadIdx.x * width; j < C; j += blockDim.x * width) {
        load(x + j, v);
        load(weight + j, w);
        for (int i = 0; i < width; i++) v[i] = norm(v[i]) * w[i];
        if (bias) {
            load(bias + j, b);
            for (int i = 0; i < width; i++) v[i] += b[i];
        }
        store(y + j, v);
    }
    if (threadIdx.x == 0) {
        mean[0] = near;
        mean[1] = rest;
        *rstd = scale;
    }
}

// The two means that the gradient of a row takes away: shift = mean(dnorm), stretch = mean(dnorm * norm). On the way
// the row's share is added to the block's sums for dweight and dbias (null: no bias). Those lie in shared memory, (C,)
// each; a thread always has the same columns, so it is alone with them.
template <typename real, int width>
__device__ inline void row_gradient_means(const real *dy, const real *x, const real *weight,
                                          const Norm<accumulator<real>> &norm_of, accumulator<real> *dweight,
                                          accumulator<real> *dbias, int C, accumulator<real> &shift,
                                          accumulator<real> &stretch) {
    typedef accumulator<real> accum;
    accum d[width], v[width], w[width];
    accum sums[2] = {0, 0};
    for (int j = threadIdx.x * width; j < C; j += blockDim.x * width) {
        load(dy + j, d);
        load(x + j, v);
        load(weight + j, w);
        for (int i = 0; i < width; i++) {
            const accum norm = norm_of(v[i]);
            const accum dnorm = rounded_product(d[i], w[i]);
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
