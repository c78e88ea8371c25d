// Attention in 16 bits on the tensor cores (compute capability 8.0 and newer): does the same as attention.cu, ten times
// as fast. tinygpt/ops/attention.py has the mathematics; mask, scale and dropout work as in attention.cu.
//
// A block has 4 warps, each of which computes 16 rows of the result: queries in the forward pass and for dq, keys for
// dk and dv. The other operand goes through shared memory in tiles of 64 rows, copied asynchronously: the next tile is
// loaded while the current one is used (two stages, if they fit into 48 KB). attention_mma.cuh has the products, and says
// which lane holds which elements of a fragment.
//
// The backward pass is two kernels, and both recompute the scores: seven tile products instead of five. In return each
// output element is summed by one thread in a fixed order: no atomics, and every run gives the same bits.
//
// Source: Dao, "FlashAttention-2", 2023.

#include "attention_mma.cuh"

// Forward ----------------------------------------------------------------------------------------------------------

// q (B, H, Tq, D), k, v (B, H, Tk, D), y like q, lse (B, H, Tq, 2). D: a multiple of 8, at most HEAD; rows are aligned
// to 16 bytes; the scale is positive. Grid: (B H, ceil(Tq / 64)); block: 128.
template <typename real, int HEAD>
__global__ void __launch_bounds__(WARPS *WARP)
    attention_forward_mma(const real *__restrict__ q, const real *__restrict__ k, const real *__restrict__ v,
                          real *__restrict__ y, float *__restrict__ lse, Layout q_layout, Layout k_layout,
                          Layout y_layout, Problem problem, const unsigned long long *base) {
    problem.stream = stream_of(problem.stream, base);
    constexpr int TILE = Shape<HEAD>::TILE, STAGES = Shape<HEAD>::STAGES;
    __shared__ __align__(16) real tiles[2 * STAGES * TILE];
    const int g = lane() / 4, t = lane() % 4;
    const int first = (gridDim.y - 1 - blockIdx.y) * SIZE;  // last tile first: under the mask it has the most keys
    const int first_row = first + 16 * warp();              // of this warp
    const int stop = problem.is_causal ? min(problem.Tk, first + SIZE) : problem.Tk;
    const float lowest = minus_infinity<float>(), keep = (float)problem.keep;
    const float scale = (float)problem.scale * LOG2_E;
    k = head_of(k, k_layout, problem);
    v = head_of(v, k_layout, problem);
    unsigned q_here[HEAD / 16][4];
    read_own_rows<HEAD>(q_here, head_of(q, q_layout, problem), q_layout.row, first, problem.Tq, problem.D, tiles);
    copy_rows<HEAD>(k, k_layout.row, 0, problem.Tk, problem.D, tiles);
    copy_rows<HEAD>(v, k_layout.row, 0, problem.Tk, problem.D, tiles + TILE);
    end_group();
    float sums[HEAD / 8][4], top[2] = {lowest, lowest}, power[2] = {lowest, lowest}, total[2] = {0, 0};
    clear(sums);
    const real *k_tile = tiles, *v_tile = tiles + TILE;
    for (int first_key = 0; first_key < stop; first_key += SIZE) {
        const int next = first_key + SIZE;
        real *other = tiles + (STAGES == 2 && k_tile == tiles ? 2 * TILE : 0);
        if (STAGES == 2 && next < stop) {
            copy_rows<HEAD>(k, k_layout.row, next, problem.Tk, problem.D, other);
            copy_rows<HEAD>(v, k_layout.row, next, problem.Tk, problem.D, other + TILE);
        }
        end_group();
        wait_for_groups<STAGES - 1>();
        __syncthreads();  // the tiles are loaded
        // The warp's last query sees the tile's first `seen` keys. `whole`: every query of the warp sees every key.
        const int seen = problem.is_causal ? first_row + 16 - first_key : SIZE;
        const bool whole = next <= problem.Tk && (!problem.is_causal || next <= first_row + 1);
        float s[SIZE / 8][4], most[2] = {top[0], top[1]};
#pragma unroll
        for (int n = 0; n < SIZE / 8; n++)
            if (8 * n < seen) row_by_row<HEAD>(s[n], q_here, k_tile, 8 * n);
#pragma unroll
        for (int n = 0; n < SIZE / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int key = first_key + 8 * n + 2 * t + i % 2, query = first_row + g + 8 * (i / 2);
                if (!whole && !is_allowed(problem, query, key)) s[n][i] = lowest;
                most[i / 2] = fmaxf(most[i / 2], s[n][i]);
            }
        // `power`: the greatest score as a power of two, rounded. All sums are relative to it, so the same rounded
        // number must be subtracted everywhere, and a product with it must not be fused into an fma where it is not.
        float shift[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            top[h] = row_max(most[h]);
            const float before = power[h];
            power[h] = top[h] * scale;
            shift[h] = top[h] == lowest ? 0 : power[h];  // no key allowed so far: 2^(-inf - 0) = 0
            const float fade = power_of_two(before - shift[h]);
            total[h] *= fade;
#pragma unroll
            for (int d = 0; d < HEAD / 8; d++) {
                sums[d][2 * h] *= fade;
                sums[d][2 * h + 1] *= fade;
            }
        }
#pragma unroll
        for (int n = 0; n < SIZE / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[n][i] = power_of_two(fmaf(s[n][i], scale, -shift[i / 2]));
                total[i / 2] += s[n][i];
            }
        if (problem.threshold)
#pragma unroll
            for (int n = 0; n < SIZE / 8; n++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const int key = first_key + 8 * n + 2 * t, query = first_row + g + 8 * h;
                    const Words words = philox(key / 4, mask_row(problem, query), problem.stream, problem.seed);
                    s[n][2 * h] *= word_of(words, key % 4) >= problem.threshold ? keep : 0;
                    s[n][2 * h + 1] *= word_of(words, key % 4 + 1) >= problem.threshold ? keep : 0;
                }
#pragma unroll
        for (int n = 0; n < SIZE / 8; n += 2)
            if (8 * n < seen) add_weighted<HEAD>(sums, s[n], s[n + 1], v_tile, 8 * n);
        __syncthreads();  // the tiles may be overwritten
        if (STAGES == 1 && next < stop) {
            copy_rows<HEAD>(k, k_layout.row, next, problem.Tk, problem.D, tiles);
            copy_rows<HEAD>(v, k_layout.row, next, problem.Tk, problem.D, tiles + TILE);
        }
        k_tile = other;
        v_tile = other + TILE;
    }
    float factors[2];
    for (int h = 0; h < 2; h++) {
        const float all = row_sum(total[h]);  // before any branch: all lanes must take part in the shuffle
        const int query = first_row + g + 8 * h;
        factors[h] = 1 / all;
        if (query < problem.Tq && t == 0)
            store_lse(power[h], log(all), lse + ((long long)blockIdx.x * problem.Tq + query) * 2);
    }
    store_rows<HEAD>(head_of(y, y_layout, problem), y_layout.row, sums, factors, first, problem.Tq, problem.D);
}

// Backward ---------------------------------------------------------------------------------------------------------

// From scores s and da = dy v^T, both (16, 8) fragments: a = p m, the weights of the values, and, written over s, the
// gradient by the unscaled scores. The lambdas take the index of an element and say whether the mask allows it, whether
// dropout keeps it, and the two parts of lse (base 2) and delta of its query.
template <typename Allowed, typename Kept, typename Near, typename Rest, typename Delta>
__device__ inline void score_gradients(float (&s)[4], const float (&da)[4], float (&a)[4], float scale, float keep,
                                       const Allowed &allowed, const Kept &kept, const Near &near, const Rest &rest,
                                       const Delta &delta) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float p = allowed(i) ? power_of_two(fmaf(s[i], scale * LOG2_E, -near(i)) - rest(i)) : 0;
        const float m = kept(i) ? keep : 0;
        a[i] = p * m;
        s[i] = p == 0 ? 0 : p * (da[i] * m - delta(i)) * scale;
    }
}

// dy, q (B, H, Tq, D), k, v, dk, dv (B, H, Tk, D), lse (B, H, Tq, 2), delta (B, H, Tq). A warp has 16 keys and computes
// the transposed scores for 16 queries at a time. Grid: (B H, ceil(Tk / 64)); block: 128.
template <typename real, int HEAD>
__global__ void __launch_bounds__(WARPS *WARP)
    attention_backward_keys_mma(const real *__restrict__ dy, const real *__restrict__ q, const real *__restrict__ k,
                                const real *__restrict__ v, const float *__restrict__ lse,
                                const float *__restrict__ delta, real *__restrict__ dk, real *__restrict__ dv,
                                Layout y_layout, Layout q_layout, Layout k_layout, Layout dk_layout, Problem problem,
                                const unsigned long long *base) {
    problem.stream = stream_of(problem.stream, base);
    constexpr int TILE = Shape<HEAD>::TILE, STAGES = Shape<HEAD>::STAGES;
    __shared__ __align__(16) real tiles[2 * STAGES * TILE];
    __shared__ __align__(16) float statistics[3 * STAGES * SIZE];  // of a tile's queries: lse as pairs, then delta
    __shared__ unsigned char drawn[SIZE * (SIZE / 4)];
    const int g = lane() / 4, t = lane() % 4;
    const int first_key = blockIdx.y * SIZE, own_key = first_key + 16 * warp();
    const float scale = (float)problem.scale, keep = (float)problem.keep;
    q = head_of(q, q_layout, problem);
    dy = head_of(dy, y_layout, problem);
    lse += (long long)blockIdx.x * problem.Tq * 2;
    delta += (long long)blockIdx.x * problem.Tq;
    unsigned k_here[HEAD / 16][4], v_here[HEAD / 16][4];
    read_own_rows<HEAD>(k_here, head_of(k, k_layout, problem), k_layout.row, first_key, problem.Tk, problem.D, tiles);
    read_own_rows<HEAD>(v_here, head_of(v, k_layout, problem), k_layout.row, first_key, problem.Tk, problem.D, tiles);
    const auto copy_tile = [&](int first, int stage) {
        copy_rows<HEAD>(q, q_layout.row, first, problem.Tq, problem.D, tiles + 2 * stage * TILE);
        copy_rows<HEAD>(dy, y_layout.row, first, problem.Tq, problem.D, tiles + (2 * stage + 1) * TILE);
        const int i = threadIdx.x % SIZE, query = first + i;
        const bool there = query < problem.Tq;
        float *of_tile = statistics + 3 * stage * SIZE;
        if (threadIdx.x < SIZE)
            copy_async<8>(of_tile + 2 * i, there ? lse + 2 * query : lse, there);
        else
            copy_async<4>(of_tile + 2 * SIZE + i, there ? delta + query : delta, there);
    };
    float dk_sums[HEAD / 8][4], dv_sums[HEAD / 8][4];
    clear(dk_sums);
    clear(dv_sums);
    const int begin = problem.is_causal ? first_key : 0;
    int stage = 0;
    if (begin < problem.Tq) copy_tile(begin, 0);
    end_group();
    for (int first = begin; first < problem.Tq; first += SIZE) {
        const int next = first + SIZE;
        if (STAGES == 2 && next < problem.Tq) copy_tile(next, 1 - stage);
        end_group();
        if (problem.threshold)
            draw_mask<SIZE, SIZE>(drawn, mask_row(problem, first), first_key, problem.threshold, problem.seed,
                                  problem.stream);
        wait_for_groups<STAGES - 1>();
        const real *q_tile = tiles + 2 * stage * TILE, *dy_tile = q_tile + TILE;
        float *lse_here = statistics + 3 * stage * SIZE;
        const float *delta_here = lse_here + 2 * SIZE;
        if (threadIdx.x < SIZE)  // this thread copied the pair itself, so it needs no barrier
            to_powers_of_two(lse_here[2 * threadIdx.x], lse_here[2 * threadIdx.x + 1]);
        __syncthreads();  // the tiles are loaded
        const bool inside = next <= problem.Tq && own_key + 16 <= problem.Tk;
#pragma unroll
        for (int start = 0; start < SIZE; start += 16) {
            if (problem.is_causal && first + start + 15 < own_key) continue;  // none of these queries sees these keys
            const bool whole = inside && (!problem.is_causal || own_key + 16 <= first + start + 1);
            float s[2][4], da[2][4], a[2][4];
#pragma unroll
            for (int n = 0; n < 2; n++) {
                row_by_row<HEAD>(s[n], k_here, q_tile, start + 8 * n);
                row_by_row<HEAD>(da[n], v_here, dy_tile, start + 8 * n);
                const int column = start + 8 * n + 2 * t;
                score_gradients(
                    s[n], da[n], a[n], scale, keep,
                    [&](int i) {
                        return whole || is_allowed(problem, first + column + i % 2, own_key + g + 8 * (i / 2));
                    },
                    [&](int i) {
                        return !problem.threshold ||
                               is_kept<SIZE>(drawn, column + i % 2, 16 * warp() + g + 8 * (i / 2));
                    },
                    [&](int i) { return lse_here[2 * (column + i % 2)]; },
                    [&](int i) { return lse_here[2 * (column + i % 2) + 1]; },
                    [&](int i) { return delta_here[column + i % 2]; });
            }
            add_weighted<HEAD>(dv_sums, a[0], a[1], dy_tile, start);
            add_weighted<HEAD>(dk_sums, s[0], s[1], q_tile, start);
        }
        __syncthreads();  // the tiles may be overwritten
        if (STAGES == 1 && next < problem.Tq) copy_tile(next, 0);
        stage = STAGES - 1 - stage;
    }
    const float ones[2] = {1, 1};
    store_rows<HEAD>(head_of(dk, dk_layout, problem), dk_layout.row, dk_sums, ones, first_key, problem.Tk, problem.D);
    store_rows<HEAD>(head_of(dv, dk_layout, problem), dk_layout.row, dv_sums, ones, first_key, problem.Tk, problem.D);
}

// dy, q, dq (B, H, Tq, D), k, v (B, H, Tk, D), lse (B, H, Tq, 2), delta (B, H, Tq). Grid: (B H, ceil(Tq / 64)); block:
// 128.
template <typename real, int HEAD>
__global__ void __launch_bounds__(WARPS *WARP)
    attention_backward_queries_mma(const real *__restrict__ dy, const real *__restrict__ q, const real *__restrict__ k,
                                   const real *__restrict__ v, const float *__restrict__ lse,
                                   const float *__restrict__ delta, real *__restrict__ dq, Layout y_layout,
                                   Layout q_layout, Layout k_layout, Layout dq_layout, Problem problem,
                                   const unsigned long long *base) {
    problem.stream = stream_of(problem.stream, base);
    constexpr int TILE = Shape<HEAD>::TILE, STAGES = Shape<HEAD>::STAGES;
    __shared__ __align__(16) real tiles[2 * STAGES * TILE];
    __shared__ unsigned char drawn[SIZE * (SIZE / 4)];
    const int g = lane() / 4, t = lane() % 4;
    const int first = (gridDim.y - 1 - blockIdx.y) * SIZE, first_row = first + 16 * warp();
    const int stop = problem.is_causal ? min(problem.Tk, first + SIZE) : problem.Tk;
    const float scale = (float)problem.scale, keep = (float)problem.keep;
    k = head_of(k, k_layout, problem);
    v = head_of(v, k_layout, problem);
    unsigned q_here[HEAD / 16][4], dy_here[HEAD / 16][4];
    read_own_rows<HEAD>(q_here, head_of(q, q_layout, problem), q_layout.row, first, problem.Tq, problem.D, tiles);
    read_own_rows<HEAD>(dy_here, head_of(dy, y_layout, problem), y_layout.row, first, problem.Tq, problem.D, tiles);
    const auto copy_tile = [&](int from, int stage) {
        copy_rows<HEAD>(k, k_layout.row, from, problem.Tk, problem.D, tiles + 2 * stage * TILE);
        copy_rows<HEAD>(v, k_layout.row, from, problem.Tk, problem.D, tiles + (2 * stage + 1) * TILE);
    };
    float near[2], rest[2], delta_here[2], sums[HEAD / 8][4];
    clear(sums);
    for (int h = 0; h < 2; h++) {
        const int query = first_row + g + 8 * h;
        const long long at = (long long)blockIdx.x * problem.Tq + query;
        near[h] = query < problem.Tq ? lse[2 * at] : 0;
        rest[h] = query < problem.Tq ? lse[2 * at + 1] : 0;
        delta_here[h] = query < problem.Tq ? delta[at] : 0;
        to_powers_of_two(near[h], rest[h]);
    }
    int stage = 0;
    copy_tile(0, 0);
    end_group();
    for (int first_key = 0; first_key < stop; first_key += SIZE) {
        const int next = first_key + SIZE;
        if (STAGES == 2 && next < stop) copy_tile(next, 1 - stage);
        end_group();
        if (problem.threshold)
            draw_mask<SIZE, SIZE>(drawn, mask_row(problem, first), first_key, problem.threshold, problem.seed,
                                  problem.stream);
        wait_for_groups<STAGES - 1>();
        __syncthreads();  // the tiles are loaded
        const real *k_tile = tiles + 2 * stage * TILE, *v_tile = k_tile + TILE;
        const bool inside = next <= problem.Tk && first_row + 16 <= problem.Tq;
#pragma unroll
        for (int start = 0; start < SIZE; start += 16) {
            if (problem.is_causal && first_key + start >= first_row + 16) continue;  // no query sees these keys
            const bool whole = inside && (!problem.is_causal || first_key + start + 15 <= first_row);
            float s[2][4], da[2][4], a[4];
#pragma unroll
            for (int n = 0; n < 2; n++) {
                row_by_row<HEAD>(s[n], q_here, k_tile, start + 8 * n);
                row_by_row<HEAD>(da[n], dy_here, v_tile, start + 8 * n);
                const int column = start + 8 * n + 2 * t;
                score_gradients(
                    s[n], da[n], a, scale, keep,
                    [&](int i) {
                        return whole || is_allowed(problem, first_row + g + 8 * (i / 2), first_key + column + i % 2);
                    },
                    [&](int i) {
                        return !problem.threshold ||
                               is_kept<SIZE>(drawn, 16 * warp() + g + 8 * (i / 2), column + i % 2);
                    },
                    [&](int i) { return near[i / 2]; }, [&](int i) { return rest[i / 2]; },
                    [&](int i) { return delta_here[i / 2]; });
            }
            add_weighted<HEAD>(sums, s[0], s[1], k_tile, start);
        }
        __syncthreads();  // the tiles may be overwritten
        if (STAGES == 1 && next < stop) copy_tile(next, 0);
        stage = STAGES - 1 - stage;
    }
    const float ones[2] = {1, 1};
    store_rows<HEAD>(head_of(dq, dq_layout, problem), dq_layout.row, sums, ones, first, problem.Tq, problem.D);
}
