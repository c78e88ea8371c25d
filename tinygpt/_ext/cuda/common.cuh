// Shared by all CUDA kernels: number types, 16-byte accesses, reductions over a warp and over a block.
//
// Arrays hold `real`: float, double, or one of two 16-bit types, which are only a storage format. Arithmetic is in
// accumulator<real>: double for double, float for all others.
//
// No header of the CUDA toolkit is included, so the kernels also compile on a machine without the toolkit.

#ifndef TINYGPT_COMMON_CUH
#define TINYGPT_COMMON_CUH

constexpr int WARP = 32;
constexpr int MAX_THREADS = 512;  // per block, which leaves each thread 128 registers

// Numbers ---------------------------------------------------------------------------------------------------------

struct float16 {
    unsigned short bits;  // 1 sign, 5 exponent, 10 fraction
};

struct bfloat16 {
    unsigned short bits;  // 1 sign, 8 exponent, 7 fraction: the upper half of a float
};

template <typename real>
struct AccumulatorOf {
    typedef float type;
};

template <>
struct AccumulatorOf<double> {
    typedef double type;
};

template <typename real>
using accumulator = typename AccumulatorOf<real>::type;

__device__ inline float widen(float x) { return x; }

__device__ inline double widen(double x) { return x; }

__device__ inline float widen(bfloat16 x) { return __uint_as_float((unsigned)x.bits << 16); }

__device__ inline float widen(float16 x) {
#ifdef __CUDACC__
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
#else
    return emulated_widen_float16(x.bits);
#endif
}

__device__ inline void narrow(float x, float &y) { y = x; }

__device__ inline void narrow(double x, float &y) { y = (float)x; }

__device__ inline void narrow(double x, double &y) { y = x; }

// Round to the nearest bfloat16, ties to even: add half a unit in the last place, slightly less if the kept part is
// even, then truncate. A NaN is handled apart, or the carry could turn it into an infinity.
__device__ inline void narrow(float x, bfloat16 &y) {
    const unsigned bits = __float_as_uint(x);
    const unsigned rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    y.bits = (unsigned short)(x != x ? 0x7fc0u : rounded >> 16);
}

__device__ inline void narrow(float x, float16 &y) {
#ifdef __CUDACC__
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
    y.bits = emulated_narrow_float16(x);
#endif
}

__device__ inline void narrow(double x, bfloat16 &y) { narrow((float)x, y); }

__device__ inline void narrow(double x, float16 &y) { narrow((float)x, y); }

// a * b, never contracted into a fused multiply-add, which would skip this rounding. The callers subtract a mean or a
// maximum of the same products: if only one of the two were rounded, equal values would leave a rounding error, not 0.
#ifdef __CUDACC__
__device__ inline float rounded_product(float a, float b) { return __fmul_rn(a, b); }

__device__ inline double rounded_product(double a, double b) { return __dmul_rn(a, b); }
#else
template <typename T>
__device__ inline T rounded_product(T a, T b) {
    return a * b;
}
#endif

// The larger of two; NaN if either is NaN, as in NumPy's maximum.
template <typename T>
__device__ inline T larger(T a, T b) {
    return a > b || a != a ? a : b;
}

template <typename T>
__device__ inline T minus_infinity() {
    return -(T)__uint_as_float(0x7f800000u);
}

// Memory ----------------------------------------------------------------------------------------------------------

// `width` adjacent elements, moved by one instruction: 16 bytes, the maximum, or a single element if an array is not
// aligned to 16 bytes or a row is not a multiple of a pack. The launcher chooses the width.
template <typename real, int width>
struct alignas(sizeof(real) * width) Pack {
    real at[width];
};

template <typename real, int width>
__device__ inline void load(const real *from, accumulator<real> (&to)[width]) {
    typedef Pack<real, width> Packed;
    const Packed pack = *static_cast<const Packed *>(__builtin_assume_aligned(from, sizeof(Packed)));
    for (int i = 0; i < width; i++) to[i] = widen(pack.at[i]);
}

template <typename real, int width>
__device__ inline void store(real *to, const accumulator<real> (&from)[width]) {
    typedef Pack<real, width> Packed;
    Packed pack;
    for (int i = 0; i < width; i++) narrow(from[i], pack.at[i]);
    *static_cast<Packed *>(__builtin_assume_aligned(to, sizeof(Packed))) = pack;
}

// Reductions ------------------------------------------------------------------------------------------------------

// The sum over the 32 threads of a warp, returned to all of them. After the step with offset 16 each thread holds a sum
// of two values, then of four, ...; addition commutes, so all threads get the same bits.
template <typename T>
__device__ inline T warp_sum(T value) {
    for (int offset = WARP / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

// The sums of n values over the block (1-D, whole warps), returned to all of its threads. Every thread adds up the
// warps' sums in the same order, so all threads get the same bits, on every call.
template <int n, typename T>
__device__ inline void block_sum(T (&values)[n]) {
    __shared__ T of_warp[n * WARP];
    for (int i = 0; i < n; i++) {
        const T sum = warp_sum(values[i]);
        if (threadIdx.x % WARP == 0) of_warp[i * WARP + threadIdx.x / WARP] = sum;
    }
    __syncthreads();
    for (int i = 0; i < n; i++) {
        values[i] = 0;
        for (int warp = 0; warp < (int)blockDim.x / WARP; warp++) values[i] += of_warp[i * WARP + warp];
    }
    __syncthreads();  // the next call overwrites of_warp: everyone must have read it
}

#endif
