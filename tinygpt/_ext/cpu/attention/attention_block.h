/* The vectors, register blocks and copies that attention_tile.h is made of. Included twice by attention.h, for float
 * and for double: REAL is the type, INTEGER the integer type of the same size, NAME(x) the name with the type
 * appended. */

/* A vector as wide as a register of this level. */
typedef REAL NAME(vec) __attribute__((vector_size(TG_VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));
typedef INTEGER NAME(integers) __attribute__((vector_size(TG_VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));

enum { NAME(LANES) = TG_VECTOR_BYTES / sizeof(REAL) };

/* C[rows x vectors] (+)= A . B over `depth`. A(i, k) is at a[i*ai + k*ak], so a transposed A costs nothing; row k of
 * B is at b + k*ldb. The sums stay in registers: each step of k does one load per vector of B, one broadcast per row
 * of A and one multiply-add per sum. `rows` and `vectors` are compile-time constants. */
static inline __attribute__((always_inline)) void NAME(block)(const int rows, const int vectors, ptrdiff_t depth,
                                                              const REAL *a, ptrdiff_t ai, ptrdiff_t ak, const REAL *b,
                                                              ptrdiff_t ldb, REAL *c, ptrdiff_t ldc, int add) {
    NAME(vec) sum[TG_ROWS][TG_COLUMNS];
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) sum[i][v] = (NAME(vec)){0};
    for (ptrdiff_t k = 0; k < depth; k++) {
        NAME(vec) right[TG_COLUMNS];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) right[v] = *(const NAME(vec) *)(b + k * ldb + v * NAME(LANES));
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            const REAL factor = a[i * ai + k * ak];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) sum[i][v] += factor * right[v];
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            NAME(vec) *to = (NAME(vec) *)(c + i * ldc + v * NAME(LANES));
            if (add) sum[i][v] += *to;
            *to = sum[i][v];
        }
}

/* The block for an A with contiguous rows, and for one with contiguous columns. Not inlined, so that the loop has all
 * registers. */
#define TG_BLOCK(rows, vectors, ai, ak)                                          \
    case 8 * rows + vectors:                                                     \
        NAME(block)(rows, vectors, depth, a, ai, ak, b, ldb, c, ldc, add);       \
        return;
#if TG_REGISTERS == 32
#define TG_LARGE_BLOCKS(rows, ai, ak) TG_BLOCK(rows, 3, ai, ak) TG_BLOCK(rows, 4, ai, ak)
#else
#define TG_LARGE_BLOCKS(rows, ai, ak)
#endif
#define TG_BLOCKS(rows, ai, ak) TG_BLOCK(rows, 1, ai, ak) TG_BLOCK(rows, 2, ai, ak) TG_LARGE_BLOCKS(rows, ai, ak)

static __attribute__((noinline)) void NAME(block_of_rows)(int rows, int vectors, ptrdiff_t depth, const REAL *a,
                                                          ptrdiff_t ai, const REAL *b, ptrdiff_t ldb, REAL *c,
                                                          ptrdiff_t ldc, int add) {
    switch (8 * rows + vectors) { TG_BLOCKS(6, ai, 1) TG_BLOCKS(4, ai, 1) }
}
static __attribute__((noinline)) void NAME(block_of_columns)(int rows, int vectors, ptrdiff_t depth, const REAL *a,
                                                             ptrdiff_t ak, const REAL *b, ptrdiff_t ldb, REAL *c,
                                                             ptrdiff_t ldc, int add) {
    switch (8 * rows + vectors) { TG_BLOCKS(6, 1, ak) TG_BLOCKS(4, 1, ak) }
}
#undef TG_BLOCK
#undef TG_LARGE_BLOCKS
#undef TG_BLOCKS

/* How many rows and vectors the next register block takes, given the rows left (even, at least 4) and the columns
 * left (a multiple of LANES). */
static inline int NAME(next_rows)(ptrdiff_t left) { return left == 4 || left == 8 ? TG_FEW_ROWS : TG_ROWS; }
static inline int NAME(next_vectors)(ptrdiff_t columns) {
    return columns >= TG_COLUMNS * NAME(LANES) ? TG_COLUMNS : (int)(columns / NAME(LANES));
}

/* n rounded up to a multiple of unit. */
static inline ptrdiff_t NAME(padded)(ptrdiff_t n, ptrdiff_t unit) { return (n + unit - 1) / unit * unit; }

/* out = factor * x, for D elements. */
static inline void NAME(scaled_row)(REAL *out, const REAL *x, ptrdiff_t D, REAL factor) {
    ptrdiff_t d = 0;
    for (; d + NAME(LANES) <= D; d += NAME(LANES)) *(NAME(vec) *)(out + d) = factor * *(const NAME(vec) *)(x + d);
    for (; d < D; d++) out[d] = factor * x[d];
}

/* Copy x (rows, D), row stride in elements, times factor -> out (padded_rows, width), row-major, zero beyond rows
 * and D. */
static void NAME(pack)(REAL *out, ptrdiff_t width, ptrdiff_t padded_rows, const REAL *x, ptrdiff_t stride,
                       ptrdiff_t rows, ptrdiff_t D, REAL factor) {
    for (ptrdiff_t i = 0; i < rows; i++) {
        NAME(scaled_row)(out + i * width, x + i * stride, D, factor);
        for (ptrdiff_t d = D; d < width; d++) out[i * width + d] = 0;
    }
    memset(out + rows * width, 0, (size_t)((padded_rows - rows) * width) * sizeof(REAL));
}

/* Transpose a square of LANES x LANES: out(j, i) = factor * x(i, j). Each turn interleaves rows i and i + LANES / 2,
 * which rotates the bits of (row, column) by one; after log2(LANES) turns row and column are swapped. */
static inline void NAME(transpose_square)(REAL *out, ptrdiff_t out_stride, const REAL *x, ptrdiff_t x_stride,
                                          REAL factor) {
    enum { HALF = NAME(LANES) / 2 };
#if defined(__GNUC__) && !defined(__clang__)
    NAME(vec) row[NAME(LANES)], mixed[NAME(LANES)];
    NAME(integers) low, high; /* which lanes of the two rows the interleaved rows take */
    for (int j = 0; j < NAME(LANES); j++) {
        low[j] = j / 2 + j % 2 * NAME(LANES);
        high[j] = low[j] + HALF;
    }
#pragma GCC unroll 16
    for (int i = 0; i < NAME(LANES); i++) row[i] = factor * *(const NAME(vec) *)(x + i * x_stride);
#pragma GCC unroll 4
    for (int turn = 1; turn < NAME(LANES); turn *= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < HALF; i++) {
            mixed[2 * i] = __builtin_shuffle(row[i], row[i + HALF], low);
            mixed[2 * i + 1] = __builtin_shuffle(row[i], row[i + HALF], high);
        }
#pragma GCC unroll 16
        for (int i = 0; i < NAME(LANES); i++) row[i] = mixed[i];
    }
#pragma GCC unroll 16
    for (int i = 0; i < NAME(LANES); i++) *(NAME(vec) *)(out + i * out_stride) = row[i];
#else
    for (int j = 0; j < NAME(LANES); j++)
        for (int i = 0; i < NAME(LANES); i++) out[j * out_stride + i] = factor * x[i * x_stride + j];
#endif
}

/* Transpose x (rows, D), times factor -> out (width, TG_QUERIES), zero beyond D and rows. */
static void NAME(transpose)(REAL *out, ptrdiff_t width, const REAL *x, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t D,
                            REAL factor) {
    enum { L = NAME(LANES) };
    for (ptrdiff_t i = 0; i < TG_QUERIES; i += L)
        for (ptrdiff_t d = 0; d < width; d += L) {
            REAL edge[L * L];
            const int whole = i + L <= rows && d + L <= D;
            if (!whole)
                NAME(pack)(edge, L, L, x + i * stride + d, stride, tg_between(0, rows - i, L), tg_between(0, D - d, L), 1);
            NAME(transpose_square)(out + d * TG_QUERIES + i, TG_QUERIES, whole ? x + i * stride + d : edge,
                                   whole ? stride : L, factor);
        }
}

/* Uninitialised memory for `count` numbers: see tg_aligned. */
static REAL *NAME(memory)(ptrdiff_t count) { return tg_aligned((size_t)count * sizeof(REAL)); }

/* a where the mask is set, b elsewhere. */
static inline NAME(vec) NAME(select)(NAME(integers) mask, NAME(vec) a, NAME(vec) b) {
    return (NAME(vec))(((NAME(integers))a & mask) | ((NAME(integers))b & ~mask));
}

/* The maximum of `top` and x[0 .. n-1]. The last vector overlaps the one before it, which does not change a maximum.
 * NaNs are ignored here, but reach the result through the sum. */
static inline REAL NAME(largest)(const REAL *x, ptrdiff_t n, REAL top) {
    if (n < NAME(LANES)) {
        for (ptrdiff_t j = 0; j < n; j++) top = x[j] > top ? x[j] : top;
        return top;
    }
    NAME(vec) tops = *(const NAME(vec) *)(x + n - NAME(LANES));
    for (ptrdiff_t j = 0; j + NAME(LANES) <= n; j += NAME(LANES)) {
        const NAME(vec) v = *(const NAME(vec) *)(x + j);
        tops = NAME(select)(v > tops, v, tops);
    }
    for (int half = NAME(LANES) / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) tops[i] = tops[i + half] > tops[i] ? tops[i + half] : tops[i];
    return tops[0] > top ? tops[0] : top;
}
