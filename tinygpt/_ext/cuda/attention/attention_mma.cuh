// The tensor cores' instructions in 16 bits, tiles in shared memory and products of these: for attention_mma.cu.
//
// Products use mma.sync m16n8k16, with sums in float32. The instruction fixes which lane holds which elements of a
// fragment. With g = lane / 4 and t = lane % 4:
//
//     A (16, 16)   a0: (g, 2t..)   a1: (g + 8, 2t..)   a2: (g, 2t + 8..)   a3: (g + 8, 2t + 8..)    two elements each
//     B (16, 8)    b0: (2t.., g)   b1: (2t + 8.., g)
//     C (16, 8)    c0, c1: (g, 2t..)   c2, c3: (g + 8, 2t..)
//
// Two adjacent C fragments of scores, rounded to 16 bits, form one A fragment of the next product, so the weights never
// leave the registers.
//
// Source: NVIDIA, "PTX ISA", matrix fragments for mma.m16n8k16, ldmatrix, cp.async.

#include "attention.cuh"

constexpr int SIZE = 64, WARPS = 4;  // rows of a tile and of a block's result; warps per block
// Exponentials are computed as powers of two. Each constant comes with its rounding error.
constexpr float LOG2_E = 1.4426950408889634f, LOG2_E_REST = 1.4426950408889634 - LOG2_E;
constexpr float LN_2 = 0.69314718055994531f, LN_2_REST = 0.69314718055994531 - LN_2;

__device__ inline int lane() { return threadIdx.x % WARP; }

__device__ inline int warp() { return threadIdx.x / WARP; }

// Instructions -----------------------------------------------------------------------------------------------------

// Pack two numbers as 16-bit floats, the first in the lower half.
template <typename real>
__device__ inline unsigned pair(float first, float second) {
    real a, b;
    narrow(first, a);
    narrow(second, b);
    return (unsigned)a.bits | (unsigned)b.bits << 16;
}

#if defined(__CUDACC__) && __CUDA_ARCH__ < 800

// These kernels are never launched here (attention.cu is used instead), but they still have to compile.
template <typename real>
__device__ inline void multiply_add(float (&)[4], const unsigned (&)[4], unsigned, unsigned, real) { __trap(); }

template <bool transposed, typename real>
__device__ inline void load_blocks(unsigned (&)[4], const real *) { __trap(); }

template <int bytes>
__device__ inline void copy_async(void *, const void *, bool) { __trap(); }

__device__ inline void end_group() {}

template <int pending>
__device__ inline void wait_for_groups() {}

__device__ inline float power_of_two(float x) { return exp2f(x); }

#elif defined(__CUDACC__)

template <>
__device__ inline unsigned pair<bfloat16>(float first, float second) {
    unsigned made;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(made) : "f"(second), "f"(first));
    return made;
}

template <>
__device__ inline unsigned pair<float16>(float first, float second) {
    unsigned made;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(made) : "f"(second), "f"(first));
    return made;
}

// c += a b.
__device__ inline void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, bfloat16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, float16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline unsigned shared_address(const void *place) { return (unsigned)__cvta_generic_to_shared(place); }

// Load four 8 x 8 blocks of 16-bit numbers from shared memory; lane 8 m + r passes the address of row r of block m.
// Each thread receives the pair (g, 2t..) of every block, or of its transpose.
template <bool transposed, typename real>
__device__ inline void load_blocks(unsigned (&r)[4], const real *row) {
    if (transposed)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(shared_address(row)));
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(shared_address(row)));
}

// Start an asynchronous copy of 16, 8 or 4 bytes into shared memory; writes zeros if not `there`.
template <int bytes>
__device__ inline void copy_async(void *to, const void *from, bool there) {
    if (bytes == 16)  // .cg bypasses the L1 cache
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                     "r"(there ? 16 : 0)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(shared_address(to)), "l"(from),
                     "r"(there ? bytes : 0), "n"(bytes)
                     : "memory");
}

// Commit the copies that this thread started since the last call as one group.
__device__ inline void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait until at most the latest `pending` groups of this thread are unfinished.
template <int pending>
__device__ inline void wait_for_groups() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

__device__ inline float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#else  // on the CPU, for tests

using emulation::copy_async;
using emulation::end_group;
using emulation::load_blocks;
using emulation::multiply_add;
using emulation::power_of_two;
using emulation::wait_for_groups;

#endif

// Tiles ------------------------------------------------------------------------------------------------------------

// A tile (64, PITCH) in shared memory. A row is the head size plus 16 bytes, so that the rows of an 8 x 8 block hit
// different banks.
template <int HEAD>
struct Shape {
    static constexpr int PITCH = HEAD + 8, TILE = SIZE * PITCH;
    static constexpr int STAGES = HEAD <= 64 ? 2 : 1;  // tiles in shared memory per array (two arrays)
};

// Start copying rows first .. first + 63 of a (T, D) matrix into a tile; 0 beyond T and D.
template <int HEAD, typename real>
__device__ inline void copy_rows(const real *from, long long row_stride, int first, int T, int D, real *to) {
    constexpr int PACKS = HEAD / 8;
#pragma unroll
    for (int pack = threadIdx.x; pack < SIZE * PACKS; pack += WARPS * WARP) {
        const int row = pack / PACKS, d = pack % PACKS * 8;
        const bool there = first + row < T && d < D;
        copy_async<16>(to + row * Shape<HEAD>::PITCH + d, there ? from + (first + row) * row_stride + d : from, there);
    }
}

// Load this warp's 16 rows of a tile as A fragments, HEAD / 16 of them.
template <int HEAD, typename real>
__device__ inline void load_rows(unsigned (&a)[HEAD / 16][4], const real *tile) {
    const int eighth = lane() / 8, r8 = lane() % 8;
#pragma unroll
    for (int step = 0; step < HEAD / 16; step++)
        load_blocks<false>(a[step], tile + (16 * warp() + r8 + 8 * (eighth % 2)) * Shape<HEAD>::PITCH + 16 * step +
                                        8 * (eighth / 2));
}

// Load this warp's 16 of the rows first .. first + 63 of a (T, D) matrix through a tile, which is free again on return.
template <int HEAD, typename real>
__device__ inline void read_own_rows(unsigned (&a)[HEAD / 16][4], const real *from, long long row_stride, int first,
                                     int T, int D, real *tile) {
    copy_rows<HEAD>(from, row_stride, first, T, D, tile);
    end_group();
    wait_for_groups<0>();
    __syncthreads();  // the rows are loaded
    load_rows<HEAD>(a, tile);
    __syncthreads();  // they have been read: the tile may be overwritten
}

// result (16, 8) = the warp's 16 rows times the transpose of rows start .. start + 7 of a tile.
template <int HEAD, typename real>
__device__ inline void row_by_row(float (&result)[4], const unsigned (&a)[HEAD / 16][4], const real *tile, int start) {
    const int eighth = lane() / 8, r8 = lane() % 8;
    for (int i = 0; i < 4; i++) result[i] = 0;
#pragma unroll
    for (int step = 0; step < HEAD / 16; step += 2) {
        unsigned b[4];
        load_blocks<false>(b, tile + (start + r8) * Shape<HEAD>::PITCH + 16 * step + 8 * eighth);
        multiply_add(result, a[step], b[0], b[1], real());
        multiply_add(result, a[step + 1], b[2], b[3], real());
    }
}

// sums (16, HEAD) += w (16, 16), rounded to 16 bits, times rows start .. start + 15 of a tile. low, high: the C
// fragments of w's left and right half.
template <int HEAD, typename real>
__device__ inline void add_weighted(float (&sums)[HEAD / 8][4], const float (&low)[4], const float (&high)[4],
                                    const real *tile, int start) {
    const int eighth = lane() / 8, r8 = lane() % 8;
    const unsigned a[4] = {pair<real>(low[0], low[1]), pair<real>(low[2], low[3]), pair<real>(high[0], high[1]),
                           pair<real>(high[2], high[3])};
#pragma unroll
    for (int d = 0; d < HEAD / 8; d += 2) {
        unsigned b[4];
        load_blocks<true>(b, tile + (start + r8 + 8 * (eighth % 2)) * Shape<HEAD>::PITCH + 8 * d + 8 * (eighth / 2));
        multiply_add(sums[d], a, b[0], b[1], real());
        multiply_add(sums[d + 1], a, b[2], b[3], real());
    }
}

// Store this warp's rows of a (T, D) result, where the block's rows begin at `first`. factors: one for each of the two
// rows that a thread holds.
template <int HEAD, typename real>
__device__ inline void store_rows(real *to, long long row_stride, const float (&sums)[HEAD / 8][4],
                                  const float (&factors)[2], int first, int T, int D) {
    const int g = lane() / 4, t = lane() % 4;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int row = first + 16 * warp() + g + 8 * h;
#pragma unroll
        for (int d = 0; d < HEAD / 8; d++)
            if (row < T && 8 * d < D)
                *reinterpret_cast<unsigned *>(to + row * row_stride + 8 * d + 2 * t) =
                    pair<real>(sums[d][2 * h] * factors[h], sums[d][2 * h + 1] * factors[h]);
    }
}

template <int n>
__device__ inline void clear(float (&sums)[n][4]) {
#pragma unroll
    for (int d = 0; d < n; d++)
        for (int i = 0; i < 4; i++) sums[d][i] = 0;
}

// Reductions over the four threads that share a row. fmaxf ignores a NaN score, but the sum does not.
__device__ inline float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ inline float row_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Store ln(2^shift) + log_total as two numbers, near + rest (ops/_two_parts.py).
__device__ inline void store_lse(float shift, float log_total, float *parts) {
    const float top = shift * LN_2, lost = fmaf(shift, LN_2, -top) + shift * LN_2_REST;
    const float near = top + log_total;
    parts[0] = near;
    parts[1] = (top - near) + log_total + lost;
}

// Convert near + rest from natural to base-2 logarithms.
__device__ inline void to_powers_of_two(float &near, float &rest) {
    const float two = near * LOG2_E;
    rest = fmaf(near, LOG2_E, -two) + near * LOG2_E_REST + rest * LOG2_E;
    near = two;
}
