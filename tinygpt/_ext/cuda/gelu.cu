// GELU, in its tanh and its erf form, with or without the addition of a bias, for the GPU: tinygpt/ops/gelu.py and
// bias_gelu.py.
//
// gelu: a thread processes one pack, ignoring row boundaries; the last thread processes the remainder one by one.
// Memory traffic in float32: 8 bytes per element forward, 12 backward.
// bias_gelu: tiles as in linear.cu: a warp handles 32 adjacent packs of a row, the ROWS warps of a block every ROWS-th
// row of a chunk. A thread stays in its columns, so it reads its part of the bias once and accumulates its part of
// dbias in registers. The ROWS warps' sums become one row of a table (chunks, C), which column_sum (linear.cu) adds up.

#include "common.cuh"

constexpr int ROWS = 8;  // warps per block in bias_gelu

// Beyond +-40 the derivatives are exactly 0 or 1, and below -40 the values are 0. Clipping keeps x * 0 from becoming
// infinity * 0. A NaN stays NaN.
template <typename T>
__device__ inline T clipped(T x) {
    return x > 40 ? (T)40 : x < -40 ? (T)-40 : x;
}

template <typename T>
__device__ inline T not_below(T x) {
    return x < -40 ? (T)-40 : x;
}

struct Tanh {
    template <typename T>
    __device__ static T value(T x) {
        x = not_below(x);
        const T u = (T)0.79788456080286535588 * x * (1 + (T)0.044715 * x * x);
        return x / (1 + exp(-2 * u));
    }

    template <typename T>
    __device__ static T derivative(T x) {
        x = clipped(x);
        const T square = x * x;
        const T u = (T)0.79788456080286535588 * x * (1 + (T)0.044715 * square);
        const T t = exp(-2 * fabs(u)), r = 1 / (1 + t), s = x > 0 ? r : t * r;
        const T du_dx = (T)0.79788456080286535588 * (1 + (T)(3 * 0.044715) * square);
        return s + x * (2 * t * r * r * du_dx);  // t r r = s (1 - s), without the cancellation in 1 - s
    }
};

struct Erf {
    // Phi(x) = erfc(-x / sqrt(2)) / 2, which loses no digits for negative x.
    template <typename T>
    __device__ static T normal_cdf(T x) {
        return (T)0.5 * erfc((T)-0.70710678118654752440 * x);
    }

    template <typename T>
    __device__ static T value(T x) {
        x = not_below(x);
        return x * normal_cdf(x);
    }

    template <typename T>
    __device__ static T derivative(T x) {
        x = clipped(x);
        return normal_cdf(x) + x * (exp((T)-0.5 * x * x) * (T)0.39894228040143267794);
    }
};

template <typename Form, int width, typename real>
__device__ inline void forward_pack(const real *x, real *y) {
    accumulator<real> v[width];
    load(x, v);
    for (int i = 0; i < width; i++) v[i] = Form::value(v[i]);
    store(y, v);
}

template <typename Form, int width, typename real>
__device__ inline void backward_pack(const real *dy, const real *x, real *dx) {
    accumulator<real> d[width], v[width];
    load(dy, d);
    load(x, v);
    for (int i = 0; i < width; i++) v[i] = d[i] * Form::derivative(v[i]);
    store(dx, v);
}

// x, y (size,). Grid: enough blocks for ceil(size / width) threads.
template <typename Form, typename real, int width>
__global__ void __launch_bounds__(MAX_THREADS)
    gelu_forward(const real *__restrict__ x, real *__restrict__ y, long long size) {
    const long long at = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * width;
    if (at + width <= size)
        forward_pack<Form, width>(x + at, y + at);
    else
        for (long long i = at; i < size; i++) forward_pack<Form, 1>(x + i, y + i);
}

// dy, x, dx (size,). Grid: as for gelu_forward.
template <typename Form, typename real, int width>
__global__ void __launch_bounds__(MAX_THREADS)
    gelu_backward(const real *__restrict__ dy, const real *__restrict__ x, real *__restrict__ dx, long long size) {
    const long long at = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * width;
    if (at + width <= size)
        backward_pack<Form, width>(dy + at, x + at, dx + at);
    else
        for (long long i = at; i < size; i++) backward_pack<Form, 1>(dy + i, x + i, dx + i);
}

// x, y (N, C), bias (C,). Grid: (ceil(C / (32 width)), chunks of `rows` rows); block: (32, ROWS).
template <typename real, int width>
__global__ void __launch_bounds__(WARP *ROWS)
    bias_gelu_forward(const real *__restrict__ x, const real *__restrict__ bias, real *__restrict__ y, int N, int C,
                      int rows) {
    const int j = (blockIdx.x * WARP + threadIdx.x) * width;
    if (j >= C) return;
    accumulator<real> b[width], v[width];
    load(bias + j, b);
    const int first = blockIdx.y * rows, last = min(N, first + rows);
    for (int row = first + (int)threadIdx.y; row < last; row += ROWS) {
        const long long at = (long long)row * C + j;
        load(x + at, v);
        for (int i = 0; i < width; i++) v[i] = Tanh::value(v[i] + b[i]);
        store(y + at, v);
    }
}

// dy, x, dx (N, C), bias (C,), dbias (chunks, C). Grid and block: as for bias_gelu_forward.
template <typename real, int width>
__global__ void __launch_bounds__(WARP *ROWS)
    bias_gelu_backward(const real *__restrict__ dy, const real *__restrict__ x, const real *__restrict__ bias,
                       real *__restrict__ dx, accumulator<real> *__restrict__ dbias, int N, int C, int rows) {
    typedef accumulator<real> accum;
    __shared__ accum of_warp[ROWS * WARP * width];
    const int j = (blockIdx.x * WARP + threadIdx.x) * width;
    accum total[width];
    for (int i = 0; i < width; i++) total[i] = 0;
    if (j < C) {
        accum b[width], d[width], v[width];
        load(bias + j, b);
        const int first = blockIdx.y * rows, last = min(N, first + rows);
        for (int row = first + (int)threadIdx.y; row < last; row += ROWS) {
            const long long at = (long long)row * C + j;
            load(dy + at, d);
            load(x + at, v);
            for (int i = 0; i < width; i++) {
                v[i] = d[i] * Tanh::derivative(v[i] + b[i]);
                total[i] += v[i];
            }
            store(dx + at, v);
        }
    }
    for (int i = 0; i < width; i++) of_warp[(threadIdx.y * width + i) * WARP + threadIdx.x] = total[i];
    __syncthreads();
    if (threadIdx.y != 0 || j >= C) return;
    for (int i = 0; i < width; i++) {
        for (int warp = 1; warp < ROWS; warp++) total[i] += of_warp[(warp * width + i) * WARP + threadIdx.x];
        dbias[(long long)blockIdx.y * C + j + i] = total[i];
    }
}
