// Scaled dot-product attention for the GPU, forward and backward, in tiles: tinygpt/ops/attention.py.
//
// Forward. A block of 256 threads handles a tile of queries of one head and loops over the tiles of keys; under the
// causal mask it skips the tiles after its last query. For every tile it computes the scores, updates each row's
// maximum, sum of exponentials and weighted sum of values, and rescales the sums when the maximum grows (online
// softmax). No (Tq, Tk) matrix is ever stored: q and y move through memory once, k and v once per tile of queries.
//
// Backward, three kernels. attention_delta: delta_i = dy_i y_i. attention_backward_keys: a block
// handles a tile of keys, loops over the tiles of queries and accumulates dk and dv in registers.
// attention_backward_queries: a block handles a tile of queries, loops over the keys and accumulates dq. Both recompute
// the probabilities, which makes seven tile products instead of five. In return each output element belongs to one
// thread, which sums in a fixed order: no atomics, and every run gives the same bits.
//
// The dropout mask is regenerated for each tile (philox.cuh), one call of Philox per four scores.
//
// HEAD: D rounded up to 32, 64 or 128; the columns beyond D are 0. A and B: a tile has 16 A queries and 16 B keys. The
// launcher chooses A and B so that all tiles fit into 48 KB of shared memory.

#include "attention.cuh"

// q (B, H, Tq, D), k, v (B, H, Tk, D), y like q, lse (B, H, Tq, 2). Grid: (B H, ceil(Tq / (16 A))).
template <typename real, int width, int HEAD, int A, int B>
__global__ void __launch_bounds__(THREADS)
    attention_forward(const real *__restrict__ q, const real *__restrict__ k, const real *__restrict__ v,
                      real *__restrict__ y, accumulator<real> *__restrict__ lse, Layout q_layout, Layout k_layout,
                      Layout y_layout, Problem problem, const unsigned long long *base) {
    typedef accumulator<real> accum;
    problem.stream = stream_of(problem.stream, base);
    constexpr int QUERIES = SIDE * A, KEYS = SIDE * B, PACK = Tile<accum>::PACK, PITCH = HEAD + PACK;
    __shared__ __align__(16) accum q_tile[QUERIES * PITCH];
    __shared__ __align__(16) accum k_tile[KEYS * PITCH];
    __shared__ __align__(16) accum v_tile[KEYS * PITCH];
    __shared__ __align__(16) accum weights[QUERIES * (KEYS + PACK)];
    __shared__ unsigned char kept[QUERIES * (KEYS / 4)];
    const accum scale = (accum)problem.scale, keep = (accum)problem.keep, lowest = minus_infinity<accum>();
    const int first = (gridDim.y - 1 - blockIdx.y) * QUERIES;  // last tile first: under the mask it has the most keys
    const int stop = problem.is_causal ? min(problem.Tk, first + QUERIES) : problem.Tk;
    q = head_of(q, q_layout, problem);
    k = head_of(k, k_layout, problem);
    v = head_of(v, k_layout, problem);
    y = head_of(y, y_layout, problem);
    load_tile<width, HEAD, QUERIES>(q, q_layout.row, first, problem.Tq, problem.D, q_tile);
    accum sums[A][HEAD / SIDE], top[A], total[A];
    for (int i = 0; i < A; i++) {
        top[i] = lowest;
        total[i] = 0;
        for (int d = 0; d < HEAD / SIDE; d++) sums[i][d] = 0;
    }
    for (int first_key = 0; first_key < stop; first_key += KEYS) {
        load_tile<width, HEAD, KEYS>(k, k_layout.row, first_key, problem.Tk, problem.D, k_tile);
        load_tile<width, HEAD, KEYS>(v, k_layout.row, first_key, problem.Tk, problem.D, v_tile);
        if (problem.threshold)
            draw_mask<QUERIES, KEYS>(kept, mask_row(problem, first), first_key, problem.threshold, problem.seed,
                                     problem.stream);
        __syncthreads();  // the tiles are loaded
        accum s[A][B];
        row_products<HEAD>(q_tile, k_tile, s);
        for (int i = 0; i < A; i++) {
            const int row = down() + SIDE * i;
            accum most = lowest, sum = 0;
            for (int j = 0; j < B; j++) {
                const bool allowed = is_allowed(problem, first + row, first_key + across() + SIDE * j);
                s[i][j] = allowed ? rounded_product(s[i][j], scale) : lowest;
                most = larger(most, s[i][j]);
            }
            most = larger(top[i], side_max(most));
            const accum base = most == lowest ? 0 : most;  // no key allowed so far: exp(-inf - 0) = 0
            const accum fade = exp(top[i] - base);         // rescales the sums from the old maximum to the new
            for (int j = 0; j < B; j++) {
                s[i][j] = exp(s[i][j] - base);
                sum += s[i][j];
            }
            top[i] = most;
            total[i] = total[i] * fade + side_sum(sum);
            for (int d = 0; d < HEAD / SIDE; d++) sums[i][d] *= fade;
            for (int j = 0; j < B; j++) {
                const int key = across() + SIDE * j;
                const bool dropped = problem.threshold && !is_kept<KEYS>(kept, row, key);
                weights[row * (KEYS + PACK) + key] = dropped ? (accum)0 : s[i][j] * keep;
            }
        }
        __syncwarp();  // a row's weights are written and read by the same half warp
        add_weighted_rows<HEAD, A, KEYS>(weights, v_tile, sums);
        __syncthreads();  // the tiles may be overwritten
    }
    for (int i = 0; i < A; i++) {
        const int query = first + down() + SIDE * i;
        if (query >= problem.Tq) continue;
        store_row<width, HEAD>(y + query * y_layout.row, sums[i], problem.D, 1 / total[i]);
        if (across() != 0) continue;
        const accum log_total = log(total[i]), near = top[i] + log_total;  // lse = near + rest: ops/_two_parts.py
        accum *parts = lse + ((long long)blockIdx.x * problem.Tq + query) * 2;
        parts[0] = near;
        parts[1] = (top[i] - near) + log_total;
    }
}

// delta (B, H, Tq): for each query the dot product of dy and y, which share a layout. A query has LANES threads, each of
// which reads a pack, or several numbers if there are no packs. Grid: blocks for B H Tq LANES threads.
template <typename real, int width, int HEAD>
__global__ void __launch_bounds__(THREADS)
    attention_delta(const real *__restrict__ dy, const real *__restrict__ y, accumulator<real> *__restrict__ delta,
                    Layout layout, int H, int Tq, int D, long long rows) {
    constexpr int LANES = HEAD / width < WARP ? HEAD / width : WARP;
    const long long row = ((long long)blockIdx.x * THREADS + threadIdx.x) / LANES;
    const int lane = threadIdx.x % LANES;
    accumulator<real> sum = 0, a[width], b[width];
    if (row < rows) {
        const long long head = row / Tq;
        const long long at = head / H * layout.batch + head % H * layout.head + row % Tq * layout.row;
        for (int d = lane * width; d < D; d += LANES * width) {
            load(dy + at + d, a);
            load(y + at + d, b);
            for (int i = 0; i < width; i++) sum += a[i] * b[i];
        }
    }
    for (int offset = LANES / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (row < rows && lane == 0) delta[row] = sum;
}

// The backward pass of one score s: a = p m, the weight of the value, and ds, the gradient by the unscaled score s.
template <typename accum>
__device__ inline void score_gradient(accum s, accum da, accum near, accum rest, accum delta, bool allowed, bool kept,
                                      accum scale, accum keep, accum &a, accum &ds) {
    const accum p = allowed ? exp(rounded_product(s, scale) - near - rest) : (accum)0;
    const accum m = kept ? keep : (accum)0;
    a = p * m;
    ds = allowed ? p * (da * m - delta) * scale : (accum)0;
}

// dy, q (B, H, Tq, D), k, v, dk, dv (B, H, Tk, D), lse (B, H, Tq, 2), delta (B, H, Tq). Tiles are square: 16 A queries
// by 16 A keys. Grid: (B H, ceil(Tk / (16 A))).
template <typename real, int width, int HEAD, int A>
__global__ void __launch_bounds__(THREADS)
    attention_backward_keys(const real *__restrict__ dy, const real *__restrict__ q, const real *__restrict__ k,
                            const real *__restrict__ v, const accumulator<real> *__restrict__ lse,
                            const accumulator<real> *__restrict__ delta, real *__restrict__ dk, real *__restrict__ dv,
                            Layout y_layout, Layout q_layout, Layout k_layout, Layout dk_layout, Problem problem,
                            const unsigned long long *base) {
    typedef accumulator<real> accum;
    problem.stream = stream_of(problem.stream, base);
    constexpr int SIZE = SIDE * A, PACK = Tile<accum>::PACK, PITCH = HEAD + PACK;
    __shared__ __align__(16) accum k_tile[SIZE * PITCH];
    __shared__ __align__(16) accum v_tile[SIZE * PITCH];
    __shared__ __align__(16) accum q_tile[SIZE * PITCH];
    __shared__ __align__(16) accum dy_tile[SIZE * PITCH];
    __shared__ __align__(16) accum a_tile[SIZE * (SIZE + PACK)];   // (keys, queries)
    __shared__ __align__(16) accum ds_tile[SIZE * (SIZE + PACK)];  // (keys, queries)
    __shared__ unsigned char kept[SIZE * (SIZE / 4)];
    const accum scale = (accum)problem.scale, keep = (accum)problem.keep;
    const int first_key = blockIdx.y * SIZE;
    q = head_of(q, q_layout, problem);
    dy = head_of(dy, y_layout, problem);
    lse += (long long)blockIdx.x * problem.Tq * 2;
    delta += (long long)blockIdx.x * problem.Tq;
    load_tile<width, HEAD, SIZE>(head_of(k, k_layout, problem), k_layout.row, first_key, problem.Tk, problem.D, k_tile);
    load_tile<width, HEAD, SIZE>(head_of(v, k_layout, problem), k_layout.row, first_key, problem.Tk, problem.D, v_tile);
    accum dk_sums[A][HEAD / SIDE], dv_sums[A][HEAD / SIDE];
    for (int i = 0; i < A; i++)
        for (int d = 0; d < HEAD / SIDE; d++) dk_sums[i][d] = dv_sums[i][d] = 0;
    for (int first = problem.is_causal ? first_key : 0; first < problem.Tq; first += SIZE) {
        load_tile<width, HEAD, SIZE>(q, q_layout.row, first, problem.Tq, problem.D, q_tile);
        load_tile<width, HEAD, SIZE>(dy, y_layout.row, first, problem.Tq, problem.D, dy_tile);
        if (problem.threshold)
            draw_mask<SIZE, SIZE>(kept, mask_row(problem, first), first_key, problem.threshold, problem.seed,
                                  problem.stream);
        __syncthreads();  // the tiles are loaded
        accum s[A][A], da[A][A];
        row_products<HEAD>(k_tile, q_tile, s);
        row_products<HEAD>(v_tile, dy_tile, da);
        for (int j = 0; j < A; j++) {
            const int column = across() + SIDE * j, query = first + column;
            const accum near = query < problem.Tq ? lse[2 * query] : 0;
            const accum rest = query < problem.Tq ? lse[2 * query + 1] : 0;
            const accum delta_here = query < problem.Tq ? delta[query] : 0;
            for (int i = 0; i < A; i++) {
                const int row = down() + SIDE * i, at = row * (SIZE + PACK) + column;
                score_gradient(s[i][j], da[i][j], near, rest, delta_here, is_allowed(problem, query, first_key + row),
                               !problem.threshold || is_kept<SIZE>(kept, column, row), scale, keep, a_tile[at],
                               ds_tile[at]);
            }
        }
        __syncwarp();  // a key's a and ds are written and read by the same half warp
        add_weighted_rows<HEAD, A, SIZE>(a_tile, dy_tile, dv_sums);
        add_weighted_rows<HEAD, A, SIZE>(ds_tile, q_tile, dk_sums);
        __syncthreads();  // the tiles may be overwritten
    }
    for (int i = 0; i < A; i++) {
        const int key = first_key + down() + SIDE * i;
        if (key >= problem.Tk) continue;
        store_row<width, HEAD>(head_of(dk, dk_layout, problem) + key * dk_layout.row, dk_sums[i], problem.D, (accum)1);
        store_row<width, HEAD>(head_of(dv, dk_layout, problem) + key * dk_layout.row, dv_sums[i], problem.D, (accum)1);
    }
}

// dy, q, dq (B, H, Tq, D), k, v (B, H, Tk, D), lse (B, H, Tq, 2), delta (B, H, Tq). Grid: (B H, ceil(Tq / (16 A))).
template <typename real, int width, int HEAD, int A>
__global__ void __launch_bounds__(THREADS)
    attention_backward_queries(const real *__restrict__ dy, const real *__restrict__ q, const real *__restrict__ k,
                               const real *__restrict__ v, const accumulator<real> *__restrict__ lse,
                               const accumulator<real> *__restrict__ delta, real *__restrict__ dq, Layout y_layout,
                               Layout q_layout, Layout k_layout, Layout dq_layout, Problem problem,
                               const unsigned long long *base) {
    typedef accumulator<real> accum;
    problem.stream = stream_of(problem.stream, base);
    constexpr int SIZE = SIDE * A, PACK = Tile<accum>::PACK, PITCH = HEAD + PACK;
    __shared__ __align__(16) accum q_tile[SIZE * PITCH];
    __shared__ __align__(16) accum dy_tile[SIZE * PITCH];
    __shared__ __align__(16) accum k_tile[SIZE * PITCH];
    __shared__ __align__(16) accum v_tile[SIZE * PITCH];
    __shared__ __align__(16) accum ds_tile[SIZE * (SIZE + PACK)];  // (queries, keys)
    __shared__ unsigned char kept[SIZE * (SIZE / 4)];
    const accum scale = (accum)problem.scale, keep = (accum)problem.keep;
    const int first = (gridDim.y - 1 - blockIdx.y) * SIZE;  // last tile first: under the mask it has the most keys
    const int stop = problem.is_causal ? min(problem.Tk, first + SIZE) : problem.Tk;
    k = head_of(k, k_layout, problem);
    v = head_of(v, k_layout, problem);
    load_tile<width, HEAD, SIZE>(head_of(q, q_layout, problem), q_layout.row, first, problem.Tq, problem.D, q_tile);
    load_tile<width, HEAD, SIZE>(head_of(dy, y_layout, problem), y_layout.row, first, problem.Tq, problem.D, dy_tile);
    accum sums[A][HEAD / SIDE], near[A], rest[A], delta_here[A];
    for (int i = 0; i < A; i++) {
        const int query = first + down() + SIDE * i;
        const long long at = (long long)blockIdx.x * problem.Tq + query;
        near[i] = query < problem.Tq ? lse[2 * at] : 0;
        rest[i] = query < problem.Tq ? lse[2 * at + 1] : 0;
        delta_here[i] = query < problem.Tq ? delta[at] : 0;
        for (int d = 0; d < HEAD / SIDE; d++) sums[i][d] = 0;
    }
    for (int first_key = 0; first_key < stop; first_key += SIZE) {
        load_tile<width, HEAD, SIZE>(k, k_layout.row, first_key, problem.Tk, problem.D, k_tile);
        load_tile<width, HEAD, SIZE>(v, k_layout.row, first_key, problem.Tk, problem.D, v_tile);
        if (problem.threshold)
            draw_mask<SIZE, SIZE>(kept, mask_row(problem, first), first_key, problem.threshold, problem.seed,
                                  problem.stream);
        __syncthreads();  // the tiles are loaded
        accum s[A][A], da[A][A], a;
        row_products<HEAD>(q_tile, k_tile, s);
        row_products<HEAD>(dy_tile, v_tile, da);
        for (int i = 0; i < A; i++)
            for (int j = 0; j < A; j++) {
                const int row = down() + SIDE * i, column = across() + SIDE * j;
                score_gradient(s[i][j], da[i][j], near[i], rest[i], delta_here[i],
                               is_allowed(problem, first + row, first_key + column),
                               !problem.threshold || is_kept<SIZE>(kept, row, column), scale, keep, a,
                               ds_tile[row * (SIZE + PACK) + column]);
            }
        __syncwarp();  // a row's ds are written and read by the same half warp
        add_weighted_rows<HEAD, A, SIZE>(ds_tile, k_tile, sums);
        __syncthreads();  // the tiles may be overwritten
    }
    for (int i = 0; i < A; i++) {
        const int query = first + down() + SIDE * i;
        if (query < problem.Tq)
            store_row<width, HEAD>(head_of(dq, dq_layout, problem) + query * dq_layout.row, sums[i], problem.D,
                                   (accum)1);
    }
}
