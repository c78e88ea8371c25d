// Embedding for the GPU: rows of a table by id, and the sum of gradients back into them: tinygpt/ops/embedding.py.
//
// Forward. One block per position; memory traffic: one read and one write, 8 bytes per element of y in float32.
//
// Backward. The launcher has sorted the positions by id, so that those with the same id form a run. A block handles a
// piece of PIECE sorted positions; adjacent threads handle adjacent packs of columns. A run inside one piece is summed
// and added to its row of dweight. If a run crosses pieces, each piece stores its partial sum in a table (pieces, 2,
// C): at index 0 for a run that began in an earlier piece, at index 1 for one that begins here and continues. A second
// kernel adds up the partial sums. Memory traffic: one read of dy, one read and one write of each row of dweight that
// occurs among the ids: less than 12 bytes per element of dy in float32. There are no atomics and every sum has a fixed
// order, so every run of the program gives the same bits, however often an id occurs.
//
// An id outside 0 .. V - 1 gives NaN without reading the table; the backward pass ignores it.

#include "common.cuh"

constexpr int PIECE = 32;  // sorted positions

// weight (V, C), ids (N,), y (N, C). Grid: N blocks.
template <typename real, int width>
__global__ void __launch_bounds__(MAX_THREADS)
    embedding_forward(const real *__restrict__ weight, const long long *__restrict__ ids, real *__restrict__ y,
                      long long V, int C) {
    typedef accumulator<real> accum;
    const long long n = blockIdx.x, id = ids[n];
    accum v[width];
    for (int i = 0; i < width; i++) v[i] = (accum)__uint_as_float(0x7fc00000u);  // NaN
    for (int j = threadIdx.x * width; j < C; j += blockDim.x * width) {
        if (id >= 0 && id < V) load(weight + id * C + j, v);
        store(y + n * C + j, v);
    }
}

// dy (N, C); order (N,): the positions, sorted by id; sorted_ids (N,): their ids; dweight (V, C); parts (pieces, 2, C).
// Grid: (pieces, ceil(C / (width threads))).
template <typename real, int width>
__global__ void __launch_bounds__(MAX_THREADS)
    embedding_backward(const real *__restrict__ dy, const long long *__restrict__ order,
                       const long long *__restrict__ sorted_ids, real *__restrict__ dweight,
                       accumulator<real> *__restrict__ parts, int N, long long V, int C) {
    typedef accumulator<real> accum;
    const int j = (blockIdx.y * blockDim.x + threadIdx.x) * width;
    if (j >= C) return;
    const int first = blockIdx.x * PIECE, last = min(N, first + PIECE);
    bool came_in = first > 0 && sorted_ids[first - 1] == sorted_ids[first];
    accum v[width], sum[width];
    for (int i = 0; i < width; i++) sum[i] = 0;
    for (int n = first; n < last; n++) {
        const long long id = sorted_ids[n];
        load(dy + order[n] * C + j, v);
        for (int i = 0; i < width; i++) sum[i] += v[i];
        const bool goes_on = n + 1 < N && sorted_ids[n + 1] == id;
        if (goes_on && n + 1 < last) continue;
        if (came_in || goes_on)
            for (int i = 0; i < width; i++) parts[((long long)blockIdx.x * 2 + (came_in ? 0 : 1)) * C + j + i] = sum[i];
        else if (id >= 0 && id < V) {
            load(dweight + id * C + j, v);
            for (int i = 0; i < width; i++) sum[i] += v[i];
            store(dweight + id * C + j, sum);
        }
        came_in = false;
        for (int i = 0; i < width; i++) sum[i] = 0;
    }
}

// Runs that cross pieces: the block of the piece in which a run begins adds up its partial sums, in double. Grid: as
// for embedding_backward.
template <typename real, int width>
__global__ void __launch_bounds__(MAX_THREADS)
    embedding_add_parts(const long long *__restrict__ sorted_ids, const accumulator<real> *__restrict__ parts,
                        real *__restrict__ dweight, int N, long long V, int C) {
    const int j = (blockIdx.y * blockDim.x + threadIdx.x) * width;
    const int begin = blockIdx.x * PIECE, end = begin + PIECE;
    if (j >= C || end >= N || sorted_ids[end - 1] != sorted_ids[end]) return;  // no run crosses here
    const long long id = sorted_ids[end];
    if (begin > 0 && sorted_ids[begin - 1] == id) return;  // it began in an earlier piece
    if (id < 0 || id >= V) return;
    double sum[width];
    for (int i = 0; i < width; i++) sum[i] = parts[((long long)blockIdx.x * 2 + 1) * C + j + i];
    for (long long piece = blockIdx.x + 1; piece * PIECE < N && sorted_ids[piece * PIECE] == id; piece++)
        for (int i = 0; i < width; i++) sum[i] += parts[piece * 2 * C + j + i];
    for (int i = 0; i < width; i++) {
        real &to = dweight[id * C + j + i];
        narrow(sum[i] + widen(to), to);
    }
}
