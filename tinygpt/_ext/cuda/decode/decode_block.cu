// Attention of one new token over the cache of keys and values, for the GPU: tinygpt/ops/decode_block.py.
//
// Memory traffic: the keys and values of a row's tokens are read once, 8 D bytes per token and head in float32. One
// text and a small model have few heads, and one block per head would leave most of a GPU idle. So the cache is split
// into pieces of PIECE tokens, and each (row, head, piece) gets a block. A group of HEAD / 4 threads handles one token,
// 4 columns of the head per thread; adjacent threads read adjacent packs. A group processes AT_ONCE tokens at a time,
// GROUPS apart, and keeps the running maximum of the scores, the sum of exponentials and the weighted sum of the values
// (online softmax, as in attention.cu). The groups' results are merged into the piece's, in a table (M H, pieces,
// D + 2), and a second kernel merges the pieces. Every sum has a fixed order, and no block waits for another.
//
// Only the GPU knows how many tokens a row holds, so the grid covers the whole capacity, and the blocks past a row's
// end do nothing. So the host does not have to synchronise, and a step can be captured into a graph.
//
// HEAD: D rounded up to 32, 64 or 128. With a length outside 0 .. capacity - 1 the cache is left alone and y is NaN.

#include "../softmax.cuh"

constexpr int THREADS = 256;
constexpr int PIECE = 128;  // tokens
constexpr int OWN = 4;      // columns per thread
constexpr int AT_ONCE = 4;  // tokens that a group processes together

// Load a thread's columns of a row of D numbers; 0 beyond D.
template <int width, int HEAD, typename real>
__device__ inline void load_own(const real *from, int D, accumulator<real> (&to)[OWN]) {
    const int lane = threadIdx.x % (HEAD / OWN);
    for (int i = 0; i < OWN; i += width) {
        const int d = i * (HEAD / OWN) + lane * width;
        accumulator<real> v[width];
        for (int c = 0; c < width; c++) v[c] = 0;
        if (d < D) load(from + d, v);
        for (int c = 0; c < width; c++) to[i + c] = v[c];
    }
}

template <int width, int HEAD, typename real>
__device__ inline void store_own(real *to, int D, const accumulator<real> (&from)[OWN]) {
    const int lane = threadIdx.x % (HEAD / OWN);
    for (int i = 0; i < OWN; i += width) {
        const int d = i * (HEAD / OWN) + lane * width;
        accumulator<real> v[width];
        for (int c = 0; c < width; c++) v[c] = from[i + c];
        if (d < D) store(to + d, v);
    }
}

// Load a thread's columns of one head of the new token's q, k or v: the product plus its bias, which may be null.
template <int width, int HEAD, typename real>
__device__ inline void load_new(const real *product, const real *bias, int D, accumulator<real> (&to)[OWN]) {
    load_own<width, HEAD>(product, D, to);
    if (!bias) return;
    accumulator<real> b[OWN];
    load_own<width, HEAD>(bias, D, b);
    for (int i = 0; i < OWN; i++) to[i] += b[i];
}

// Merge the softmaxes over parts of a row into one, for column d. `parts` has a row for each part, `pitch` apart:
// `columns` weighted sums of values, then the maximum score, then the sum of exponentials.
template <typename accum>
__device__ inline void join(const accum *parts, int count, int pitch, int columns, int d, accum &top, accum &total,
                            accum &sum) {
    top = minus_infinity<accum>();
    for (int i = 0; i < count; i++) top = larger(top, parts[i * pitch + columns]);
    const accum base = top == minus_infinity<accum>() ? 0 : top;
    total = sum = 0;
    for (int i = 0; i < count; i++) {
        const accum fade = exp(parts[i * pitch + columns] - base);
        total += parts[i * pitch + columns + 1] * fade;
        sum += parts[i * pitch + d] * fade;
    }
}

// qkv (M, 3, H, D), bias (3, H, D) or null, keys and values (M, H, capacity, D), length (M,). Writes the new token's
// keys and values at position length[m], and table (M H, pieces, D + 2) for the pieces up to that position. Grid:
// (M H, pieces).
template <typename real, int width, int HEAD>
__global__ void __launch_bounds__(THREADS)
    attend_to_cache(const real *__restrict__ qkv, const real *__restrict__ bias, real *keys, real *values,
                    const long long *__restrict__ length, accumulator<real> *__restrict__ table, int H, int D,
                    int capacity, double scale) {
    typedef accumulator<real> accum;
    constexpr int GROUPS = THREADS / (HEAD / OWN), PITCH = HEAD + 4;  // HEAD + 2, rounded up to a whole pack
    __shared__ __align__(16) accum of_group[GROUPS * PITCH];
    const int m = blockIdx.x / H, h = blockIdx.x % H, group = threadIdx.x / (HEAD / OWN);
    const int first = blockIdx.y * PIECE, C = H * D;
    const long long last = length[m];  // the new token's position
    if (last < first || last >= capacity) return;
    qkv += 3LL * m * C + h * D;
    keys += (long long)blockIdx.x * capacity * D;
    values += (long long)blockIdx.x * capacity * D;
    accum q[OWN], k[OWN], v[AT_ONCE][OWN], s[AT_ONCE], sums[OWN];
    if (group == 0 && last < first + PIECE) {
        load_new<width, HEAD>(qkv + C, bias ? bias + C + h * D : nullptr, D, k);
        load_new<width, HEAD>(qkv + 2 * C, bias ? bias + 2 * C + h * D : nullptr, D, v[0]);
        store_own<width, HEAD>(keys + last * D, D, k);
        store_own<width, HEAD>(values + last * D, D, v[0]);
    }
    __syncthreads();  // the new token is in the cache
    load_new<width, HEAD>(qkv, bias ? bias + h * D : nullptr, D, q);
    const accum lowest = minus_infinity<accum>();
    accum top = lowest, total = 0;
    for (int i = 0; i < OWN; i++) sums[i] = 0;
    for (int start = first; start < first + PIECE && start <= last; start += AT_ONCE * GROUPS) {
        accum most = top;
        for (int a = 0; a < AT_ONCE; a++) {
            const int token = start + a * GROUPS + group;
            for (int i = 0; i < OWN; i++) k[i] = v[a][i] = 0;
            if (token <= last) {
                load_own<width, HEAD>(keys + (long long)token * D, D, k);
                load_own<width, HEAD>(values + (long long)token * D, D, v[a]);
            }
            accum product = 0;
            for (int i = 0; i < OWN; i++) product += q[i] * k[i];
            for (int offset = HEAD / OWN / 2; offset > 0; offset /= 2)
                product += __shfl_xor_sync(0xffffffffu, product, offset);
            s[a] = token <= last ? product * (accum)scale : lowest;
            most = larger(most, s[a]);
        }
        const accum base = most == lowest ? 0 : most;  // no token so far: exp(-inf - 0) = 0
        const accum fade = exp(top - base);            // rescales the sums from the old maximum to the new
        total *= fade;
        for (int i = 0; i < OWN; i++) sums[i] *= fade;
        for (int a = 0; a < AT_ONCE; a++) {
            const accum weight = exp(s[a] - base);
            total += weight;
            for (int i = 0; i < OWN; i++) sums[i] += weight * v[a][i];
        }
        top = most;
    }
    store_own<width, HEAD>(of_group + group * PITCH, HEAD, sums);
    of_group[group * PITCH + HEAD] = top;  // all threads of a group write the same value
    of_group[group * PITCH + HEAD + 1] = total;
    __syncthreads();
    const int d = threadIdx.x;
    if (d >= D) return;
    accum sum;
    join(of_group, GROUPS, PITCH, HEAD, d, top, total, sum);
    table += ((long long)blockIdx.x * gridDim.y + blockIdx.y) * (D + 2);
    table[d] = sum;
    if (d != 0) return;
    table[D] = top;
    table[D + 1] = total;
}

// table (M H, pieces, D + 2), length (M,) -> y (M, H, D). Grid: M H blocks of HEAD threads.
template <typename real>
__global__ void __launch_bounds__(MAX_THREADS)
    join_pieces(const accumulator<real> *__restrict__ table, const long long *__restrict__ length, real *__restrict__ y,
                int H, int D, int capacity, int pieces) {
    const int d = threadIdx.x;
    if (d >= D) return;
    const long long last = length[blockIdx.x / H];
    accumulator<real> top, total, sum;
    const bool inside = last >= 0 && last < capacity;
    const int count = inside ? (int)(last / PIECE) + 1 : 0;
    join(table + (long long)blockIdx.x * pieces * (D + 2), count, D + 2, D, d, top, total, sum);
    narrow(sum / total, y[(long long)blockIdx.x * D + d]);  // 0 / 0 = NaN if the length is out of range
}
