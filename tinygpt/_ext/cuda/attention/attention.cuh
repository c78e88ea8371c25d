// Attention tiles in shared memory, and the two kinds of products between them: for attention.cu.
//
// A block is 16 x 16 threads; thread (down, across) owns the rows down, down + 16, ... of a result, and its columns
// across, across + 16, ... (of scores) or its packs across, across + 16, ... (of vectors of head size).
// The PITCH of a tile, its row length in memory, is the head size plus 16 bytes, so that 16-byte reads of adjacent rows
// hit different banks of shared memory.

#ifndef TINYGPT_ATTENTION_CUH
#define TINYGPT_ATTENTION_CUH

#include "../philox.cuh"

constexpr int SIDE = 16;
constexpr int THREADS = SIDE * SIDE;

// Strides of a (B, H, T, D) array, in elements; the stride of D is 1.
struct Layout {
    long long batch, head, row;
};

// Parameters shared by all the attention kernels.
struct Problem {
    int H, Tq, Tk, D, is_causal;
    unsigned threshold;  // dropout threshold; 0: no dropout
    double scale, keep;
    unsigned long long seed, stream, first_row;  // first_row: of the random words, for the mask's first row
};

__device__ inline bool is_allowed(const Problem &problem, int query, int key) {
    return query < problem.Tq && key < problem.Tk && (!problem.is_causal || key <= query);
}

// The row of the random words of a query of this block's head.
__device__ inline unsigned mask_row(const Problem &problem, int query) {
    return (unsigned)problem.first_row + blockIdx.x * problem.Tq + query;
}

template <typename real>
__device__ inline real *head_of(real *array, const Layout &layout, const Problem &problem) {
    return array + blockIdx.x / problem.H * layout.batch + blockIdx.x % problem.H * layout.head;
}

template <typename accum>
struct Tile {
    static constexpr int PACK = 16 / sizeof(accum);
};

__device__ inline int down() { return threadIdx.x / SIDE; }

__device__ inline int across() { return threadIdx.x % SIDE; }

// Load rows first .. first + rows - 1 of a (T, D) matrix into a tile (rows, PITCH) with HEAD columns; 0 beyond T and D.
template <int width, int HEAD, int rows, typename real>
__device__ inline void load_tile(const real *from, long long row_stride, int first, int T, int D,
                                 accumulator<real> *tile) {
    typedef accumulator<real> accum;
    constexpr int PITCH = HEAD + Tile<accum>::PACK, PACKS = HEAD / width;
    for (int pack = threadIdx.x; pack < rows * PACKS; pack += THREADS) {
        const int row = pack / PACKS, d = pack % PACKS * width;
        accum v[width];
        for (int i = 0; i < width; i++) v[i] = 0;
        if (first + row < T && d < D) load(from + (first + row) * row_stride + d, v);
        for (int i = 0; i < width; i++) tile[row * PITCH + d + i] = v[i];
    }
}

// result[i][j] = the dot product of row down + 16 i of `a` and row across + 16 j of `b`; both tiles have HEAD columns.
template <int HEAD, int rows, int columns, typename accum>
__device__ inline void row_products(const accum *a, const accum *b, accum (&result)[rows][columns]) {
    constexpr int PACK = Tile<accum>::PACK, PITCH = HEAD + PACK;
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++) result[i][j] = 0;
    for (int d = 0; d < HEAD; d += PACK) {
        accum p[rows][PACK], q[columns][PACK];
        for (int i = 0; i < rows; i++) load(a + (down() + SIDE * i) * PITCH + d, p[i]);
        for (int j = 0; j < columns; j++) load(b + (across() + SIDE * j) * PITCH + d, q[j]);
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < columns; j++)
                for (int c = 0; c < PACK; c++) result[i][j] += p[i][c] * q[j][c];
    }
}

// The columns of a head that a thread owns: `groups` packs of `pack` adjacent columns.
template <int HEAD, typename accum>
struct Columns {
    static constexpr int count = HEAD / SIDE;
    static constexpr int pack = count < Tile<accum>::PACK ? count : Tile<accum>::PACK;
    static constexpr int groups = count / pack;
    __device__ static int start(int group) { return (group * SIDE + across()) * pack; }
};

// result[i] += weights[down + 16 i] @ vectors, for weights (16 rows, keys) with pitch keys + PACK and vectors (keys,
// HEAD).
template <int HEAD, int rows, int keys, typename accum>
__device__ inline void add_weighted_rows(const accum *weights, const accum *vectors,
                                         accum (&result)[rows][HEAD / SIDE]) {
    typedef Columns<HEAD, accum> Own;
    constexpr int PACK = Tile<accum>::PACK, PITCH = HEAD + PACK, WEIGHTS_PITCH = keys + PACK;
    for (int key = 0; key < keys; key += PACK) {
        accum w[rows][PACK], v[Own::pack];
        for (int i = 0; i < rows; i++) load(weights + (down() + SIDE * i) * WEIGHTS_PITCH + key, w[i]);
        for (int c = 0; c < PACK; c++)
            for (int group = 0; group < Own::groups; group++) {
                load(vectors + (key + c) * PITCH + Own::start(group), v);
                for (int i = 0; i < rows; i++)
                    for (int d = 0; d < Own::pack; d++) result[i][group * Own::pack + d] += w[i][c] * v[d];
            }
    }
}

// Store a thread's columns of one row of a (T, D) matrix, multiplied by `factor`.
template <int width, int HEAD, typename real>
__device__ inline void store_row(real *to, const accumulator<real> (&from)[HEAD / SIDE], int D,
                                 accumulator<real> factor) {
    typedef accumulator<real> accum;
    typedef Columns<HEAD, accum> Own;
    for (int group = 0; group < Own::groups; group++) {
        const int start = Own::start(group);
        accum v[Own::pack];
        for (int d = 0; d < Own::pack; d++) v[d] = from[group * Own::pack + d] * factor;
        if (width > 1) {  // D is then a multiple of a pack
            if (start < D) store(to + start, v);
        } else {
            for (int d = 0; d < Own::pack; d++)
                if (start + d < D) narrow(v[d], to[start + d]);
        }
    }
}

// The dropout mask of a tile of scores: rows (queries) of `keys` / 4 bytes, each with the four bits of four adjacent
// keys. Row r of the tile uses row `first_row` + r of the random words.
template <int rows, int keys>
__device__ inline void draw_mask(unsigned char *kept, unsigned first_row, int first_key, unsigned threshold,
                                 unsigned long long seed, unsigned long long stream) {
    for (int quad = threadIdx.x; quad < rows * (keys / 4); quad += blockDim.x) {
        const Words words = philox(first_key / 4 + quad % (keys / 4), first_row + quad / (keys / 4), stream, seed);
        unsigned bits = 0;
        for (int i = 0; i < 4; i++) bits |= (word_of(words, i) >= threshold ? 1u : 0u) << i;
        kept[quad] = (unsigned char)bits;
    }
}

template <int keys>
__device__ inline bool is_kept(const unsigned char *kept, int row, int key) {
    return kept[row * (keys / 4) + key / 4] >> (key % 4) & 1;
}

// Reductions over the 16 threads of a row of the block, which are half a warp.
template <typename T>
__device__ inline T side_sum(T value) {
    for (int offset = SIDE / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

template <typename T>
__device__ inline T side_max(T value) {
    for (int offset = SIDE / 2; offset > 0; offset /= 2)
        value = larger(value, __shfl_xor_sync(0xffffffffu, value, offset));
    return value;
}

#endif
