// LayerNorm of one row by one block, shared by layer_norm.cu and residual_layer_norm.cu.

#ifndef TINYGPT_LAYER_NORM_CUH
#define TINYGPT_LAYER_NORM_CUH

#include "common.cuh"

// (x - mean) * rstd, for a mean in two parts, near + rest (tinygpt/ops/_two_parts.py): x - near is exact whenever the
// mean is large compared with the deviation. x / 4 and near / 4 are exact too, and their difference cannot overflow.
template <typename accum>
struct Norm {
    accum quarter, scale, rest;

    __device__ Norm(accum near, accum beside, accum rstd) : quarter(near / 4), scale(4 * rstd), rest(beside * rstd) {}

    __device__ accum operator()(accum x) const { return (x / 4 - quarter) * scale - rest; }
};

// y = (x - mean) * rstd * weight + bias for one row. bias may be null. mean (2,): near and rest.
//
// A row is read three times, first from memory, then from the L1 cache. If the mean is much larger than the deviations,
// rounding it to a float would shift the row noticeably. So it is summed in double and subtracted in two parts: `near`,
// the rounded mean, and `rest`, the rounding error. The squares of the deviations, which may overflow a float, are
// summed in double as well: two double additions per element slow down no GPU.
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

// The two means that the gradient of a row subtracts: shift = mean(dnorm), stretch = mean(dnorm * norm). Also adds the
// row's contribution to the block's sums for dweight and dbias (null: no bias), (C,) each, in shared memory; a thread
// always has the same columns, so no barrier is needed for them.
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
