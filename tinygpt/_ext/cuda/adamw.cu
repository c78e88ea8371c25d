// AdamW over all parameters in one launch, for the GPU: tinygpt/optim/adamw.py.
//
// A model has many small parameters and a few large ones; for the small ones a launch each would cost more than the
// work itself. Instead, each block looks up its parameter in a table, and each of its threads processes PACKS packs;
// the elements after the last whole pack are processed one by one. Where the next pass reads the parameter in 16 bits, it
// is rounded here, while it is at hand. Memory traffic: p, g, m, v are read, p, m, v written: 28 bytes per parameter in
// float32, and 2 if it is rounded.

#include "tensors.cuh"

struct Rates {
    double decay;         // 1 - lr weight_decay, multiplies the parameter
    double step_size;     // lr / (1 - beta1**t)
    double v_correction;  // 1 / (1 - beta2**t)
};

template <int width, typename real, typename small>
__device__ inline void update_pack(real *p, const real *g, real *m, real *v, small *rounded, accumulator<real> beta1,
                                   accumulator<real> rest1, accumulator<real> beta2, accumulator<real> rest2,
                                   accumulator<real> eps, accumulator<real> grad_scale, const Rates &rates) {
    typedef accumulator<real> accum;
    accum p_[width], g_[width], m_[width], v_[width];
    load(p, p_);
    load(g, g_);
    load(m, m_);
    load(v, v_);
    for (int i = 0; i < width; i++) {
        const accum grad = g_[i] * grad_scale;
        m_[i] = beta1 * m_[i] + rest1 * grad;
        v_[i] = beta2 * v_[i] + rest2 * grad * grad;
        const accum denominator = sqrt(v_[i] * (accum)rates.v_correction) + eps;
        p_[i] = p_[i] * (accum)rates.decay - (accum)rates.step_size * m_[i] / denominator;
    }
    store(p, p_);
    store(m, m_);
    store(v, v_);
    if (rounded) store(rounded, p_);
}

// tensors (count,): the addresses of p, g, m, v and of p in `small`, or null; rates (count,). scale_on_device: null, or
// the factor for the gradients instead of grad_scale; if that is NaN, nothing is changed (clip.cu).
template <typename real, typename small, int width>
__global__ void __launch_bounds__(MAX_THREADS)
    adamw_update(const Tensor *__restrict__ tensors, const Rates *__restrict__ rates, int count, double beta1,
                 double beta2, double eps, double grad_scale, const double *__restrict__ scale_on_device) {
    typedef accumulator<real> accum;
    if (scale_on_device) grad_scale = *scale_on_device;
    if (grad_scale != grad_scale) return;
    const int number = tensor_of_block(tensors, count);
    const Tensor tensor = tensors[number];
    const Rates rate = rates[number];
    real *p = reinterpret_cast<real *>(tensor.address[0]);
    const real *g = reinterpret_cast<const real *>(tensor.address[1]);
    real *m = reinterpret_cast<real *>(tensor.address[2]);
    real *v = reinterpret_cast<real *>(tensor.address[3]);
    small *rounded = reinterpret_cast<small *>(tensor.address[4]);
    const accum beta1_ = (accum)beta1, rest1 = (accum)(1 - beta1), beta2_ = (accum)beta2, rest2 = (accum)(1 - beta2);
    const accum eps_ = (accum)eps, scale = (accum)grad_scale;
    const long long first = (blockIdx.x - tensor.first_block) * blockDim.x * PACKS + threadIdx.x;
    for (int pack = 0; pack < PACKS; pack++) {
        const long long at = (first + (long long)pack * blockDim.x) * width;
        if (at + width <= tensor.size)
            update_pack<width>(p + at, g + at, m + at, v + at, rounded ? rounded + at : rounded, beta1_, rest1, beta2_,
                               rest2, eps_, scale, rate);
        else
            for (long long i = at; i < tensor.size; i++)
                update_pack<1>(p + i, g + i, m + i, v + i, rounded ? rounded + i : rounded, beta1_, rest1, beta2_, rest2,
                               eps_, scale, rate);
    }
}
