/* Attention for one head, in tiles. Included twice by attention.h, for float and for double:
 * REAL is the type, INTEGER the integer of its size, NAME(x) gives a function of that type its name, EXP is its
 * exponential.
 *
 * Scores are held transposed: a row of a tile is one key, its columns are queries, one to a vector lane. Then the softmax
 * needs no sum or maximum across lanes, a query's statistics are one lane of a vector, and in the products with the
 * probabilities either factor is read as it lies in memory: only q (and backward dy) is transposed, a panel at a time.
 *
 * Everything here works on copies of one head's q, k, v: contiguous, padded with zeros to whole vectors and whole row
 * blocks, so that the product below needs no code for edges. That costs O(T D) memory and copying, against O(T^2 D)
 * arithmetic.
 */

/* A vector of as many numbers as one register of this level holds. */
typedef REAL NAME(vec) __attribute__((vector_size(TG_VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));
typedef INTEGER NAME(integers) __attribute__((vector_size(TG_VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));

enum { NAME(LANES) = TG_VECTOR_BYTES / sizeof(REAL), NAME(PANEL) = 2 * NAME(LANES) };

/* C[ROWS x PANEL] (+)= A . B over `depth`. A(i, k) stands at a[i*ai + k*ak], so a transposed A costs nothing;
 * row k of B at b + k*ldb. The ROWS x 2 accumulators stay in registers: per step of k, 2 loads of B, ROWS
 * broadcasts of A, and 2*ROWS multiply-adds. */
static inline __attribute__((always_inline)) void NAME(block)(ptrdiff_t depth, const REAL *a, ptrdiff_t ai, ptrdiff_t ak,
                                                              const REAL *b, ptrdiff_t ldb, REAL *c, ptrdiff_t ldc,
                                                              int accumulate) {
    NAME(vec) sum0[TG_ROWS], sum1[TG_ROWS];
    const REAL *row[TG_ROWS];
#pragma GCC unroll 8
    for (int i = 0; i < TG_ROWS; i++) {
        sum0[i] = (NAME(vec)){0};
        sum1[i] = (NAME(vec)){0};
        row[i] = a + i * ai;
    }
#pragma GCC unroll 2
    for (ptrdiff_t k = 0; k < depth; k++) {
        const NAME(vec) b0 = *(const NAME(vec) *)(b + k * ldb);
        const NAME(vec) b1 = *(const NAME(vec) *)(b + k * ldb + NAME(LANES));
#pragma GCC unroll 8
        for (int i = 0; i < TG_ROWS; i++) {
            const REAL factor = row[i][k * ak];
            sum0[i] += factor * b0;
            sum1[i] += factor * b1;
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < TG_ROWS; i++) {
        NAME(vec) *c0 = (NAME(vec) *)(c + i * ldc), *c1 = (NAME(vec) *)(c + i * ldc + NAME(LANES));
        if (accumulate) {
            sum0[i] += *c0;
            sum1[i] += *c1;
        }
        *c0 = sum0[i];
        *c1 = sum1[i];
    }
}

/* The block for an A whose rows are contiguous, and for one whose columns are. Not inlined: the loop needs all registers. */
static __attribute__((noinline)) void NAME(block_of_rows)(ptrdiff_t depth, const REAL *a, ptrdiff_t ai, const REAL *b,
                                                          ptrdiff_t ldb, REAL *c, ptrdiff_t ldc, int accumulate) {
    NAME(block)(depth, a, ai, 1, b, ldb, c, ldc, accumulate);
}
static __attribute__((noinline)) void NAME(block_of_columns)(ptrdiff_t depth, const REAL *a, ptrdiff_t ak, const REAL *b,
                                                             ptrdiff_t ldb, REAL *c, ptrdiff_t ldc, int accumulate) {
    NAME(block)(depth, a, 1, ak, b, ldb, c, ldc, accumulate);
}

/* n rounded up to a whole number of units. */
static inline ptrdiff_t NAME(padded)(ptrdiff_t n, ptrdiff_t unit) { return (n + unit - 1) / unit * unit; }

/* rows x D values at x (row stride in elements) -> out, times factor: row-major, `width` columns and `padded_rows` rows,
 * zero beyond D and beyond rows. */
static void NAME(pack)(REAL *out, ptrdiff_t width, ptrdiff_t padded_rows, const REAL *x, ptrdiff_t stride,
                       ptrdiff_t rows, ptrdiff_t D, REAL factor) {
    for (ptrdiff_t i = 0; i < rows; i++) {
        for (ptrdiff_t d = 0; d < D; d++) out[i * width + d] = factor * x[i * stride + d];
        for (ptrdiff_t d = D; d < width; d++) out[i * width + d] = 0;
    }
    memset(out + rows * width, 0, (size_t)((padded_rows - rows) * width) * sizeof(REAL));
}

/* LANES x LANES numbers, transposed: out(j, i) = x(i, j), by swapping the off-diagonal halves of ever smaller squares. */
static inline void NAME(transpose_square)(REAL *out, ptrdiff_t out_stride, const REAL *x, ptrdiff_t x_stride) {
#if defined(__GNUC__) && !defined(__clang__)
    NAME(vec) row[NAME(LANES)];
#pragma GCC unroll 16
    for (int i = 0; i < NAME(LANES); i++) row[i] = *(const NAME(vec) *)(x + i * x_stride);
#pragma GCC unroll 4
    for (int half = 1; half < NAME(LANES); half *= 2) {
        NAME(integers) upper, lower; /* of which lanes the new rows i and i + half consist */
#pragma GCC unroll 16
        for (int j = 0; j < NAME(LANES); j++) {
            upper[j] = j & half ? NAME(LANES) + j - half : j;
            lower[j] = j & half ? NAME(LANES) + j : j + half;
        }
#pragma GCC unroll 16
        for (int i = 0; i < NAME(LANES); i++)
            if (!(i & half)) {
                const NAME(vec) a = row[i], b = row[i + half];
                row[i] = __builtin_shuffle(a, b, upper);
                row[i + half] = __builtin_shuffle(a, b, lower);
            }
    }
#pragma GCC unroll 16
    for (int i = 0; i < NAME(LANES); i++) *(NAME(vec) *)(out + i * out_stride) = row[i];
#else
    for (int j = 0; j < NAME(LANES); j++)
        for (int i = 0; i < NAME(LANES); i++) out[j * out_stride + i] = x[i * x_stride + j];
#endif
}

/* PANEL rows of x (row length `width`) -> out (width, PANEL). */
static void NAME(transpose_panel)(REAL *out, const REAL *x, ptrdiff_t width) {
    for (ptrdiff_t d = 0; d < width; d += NAME(LANES))
        for (ptrdiff_t i = 0; i < NAME(PANEL); i += NAME(LANES))
            NAME(transpose_square)(out + d * NAME(PANEL) + i, NAME(PANEL), x + i * width + d, width);
}

/* Memory for `count` numbers, aligned for vectors, of undefined contents; NULL when there is none. */
static REAL *NAME(memory)(ptrdiff_t count) {
    void *memory = NULL;
    return posix_memalign(&memory, 64, (size_t)count * sizeof(REAL)) == 0 ? memory : NULL;
}

/* a where the mask is set, b elsewhere. */
static inline NAME(vec) NAME(select)(NAME(integers) mask, NAME(vec) a, NAME(vec) b) {
    return (NAME(vec))(((NAME(integers))a & mask) | ((NAME(integers))b & ~mask));
}

/* The largest of `top` and x[0 .. n-1]. The last vector overlaps the one before it, which does a maximum no harm. A NaN
 * never wins: it shows itself later, in the sum. */
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

/* How many of the keys from key_begin up to key_end somebody sees who comes before query_end. */
static inline ptrdiff_t NAME(visible)(ptrdiff_t query_end, ptrdiff_t key_begin, ptrdiff_t key_end, int causal) {
    ptrdiff_t end = causal && query_end < key_end ? query_end : key_end;
    return end > key_begin ? end - key_begin : 0;
}

/* scores[keys x PANEL] = K Q^T for `keys` keys, in whole row blocks, and one panel of queries, transposed. Rows of scores
 * are `width` apart. */
static void NAME(scores)(REAL *scores, ptrdiff_t width, const REAL *k, ptrdiff_t depth, ptrdiff_t k_width, const REAL *qt,
                         ptrdiff_t keys) {
    for (ptrdiff_t j = 0; j < keys; j += TG_ROWS)
        NAME(block_of_rows)(depth, k + j * k_width, k_width, qt, NAME(PANEL), scores + j * width, width, 0);
}

/* value where query first + i comes before the key, for a panel of queries. */
static inline void NAME(hide)(REAL *row, ptrdiff_t first, ptrdiff_t key, REAL value) {
    const INTEGER unseen = (INTEGER)(key - first);
    for (INTEGER i = 0; i < NAME(PANEL); i++) row[i] = i < unseen ? value : row[i];
}

/* The dropout factors of four neighbouring keys for a panel of queries, the first of mask row `row`. A counter of the random
 * numbers has four words, for four neighbouring columns of the (T, T) matrix: `key` is a multiple of 4. */
static void NAME(dropout_factors)(REAL factors[4][NAME(PANEL)], const struct tg_attention *p, ptrdiff_t key,
                                  uint64_t row) {
    enum { VECTORS = NAME(PANEL) / TG_COUNTERS };
    tg_counters c[VECTORS][4];
    uint64_t words[4][NAME(PANEL)];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) {
        c[v][0] = (tg_counters){0} + (uint32_t)(key / 4);
        for (int i = 0; i < TG_COUNTERS; i++) c[v][1][i] = (uint32_t)(row + (uint64_t)(v * TG_COUNTERS + i));
        c[v][2] = (tg_counters){0} + (uint32_t)p->stream;
        c[v][3] = (tg_counters){0} + (p->stream >> 32);
    }
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) {
        tg_philox(c[v], p->seed);
        for (int word = 0; word < 4; word++) memcpy(words[word] + v * TG_COUNTERS, &c[v][word], TG_VECTOR_BYTES);
    }
    const uint32_t threshold = p->threshold;
    const REAL kept = (REAL)p->kept;
    for (int word = 0; word < 4; word++)
        for (int i = 0; i < NAME(PANEL); i++) factors[word][i] = (uint32_t)words[word][i] >= threshold ? kept : 0;
}

/* A tile of scores of `keys` keys and one panel of queries becomes exp(score - m). m and l, the largest score and the sum of
 * exponentials of each query so far, are brought up to date; `rescale` is what the results so far must be multiplied
 * by. */
static void NAME(softmax)(REAL *scores, ptrdiff_t keys, REAL *m, REAL *l, REAL *rescale) {
    REAL top[NAME(PANEL)], base[NAME(PANEL)], sum[NAME(PANEL)];
    memcpy(top, m, sizeof top);
    for (ptrdiff_t j = 0; j < keys; j++) /* a NaN never is the largest: it shows itself in the sum */
        for (int i = 0; i < NAME(PANEL); i++) {
            const REAL s = scores[j * NAME(PANEL) + i];
            top[i] = s > top[i] ? s : top[i];
        }
    for (int i = 0; i < NAME(PANEL); i++) {
        base[i] = top[i] == -(REAL)INFINITY ? 0 : top[i]; /* nothing but -inf so far: exp(-inf - 0) = 0 */
        rescale[i] = EXP(m[i] - base[i]);
        m[i] = top[i];
        sum[i] = 0;
    }
    for (ptrdiff_t j = 0; j < keys; j++)
        for (int i = 0; i < NAME(PANEL); i++) {
            const REAL e = EXP(scores[j * NAME(PANEL) + i] - base[i]);
            scores[j * NAME(PANEL) + i] = e;
            sum[i] += e;
        }
    for (int i = 0; i < NAME(PANEL); i++) l[i] = l[i] * rescale[i] + sum[i];
}

/* One head forward: y = softmax(scale q k^T) v and lse, the logarithm of each row's sum of exponentials.
 * Online softmax (Milakov and Gimelshein 2018): over tiles of keys, keep the largest score m and the sum l of
 * exp(score - m) so far, and rescale what was summed whenever m grows. Returns 0, or -1 without memory. */
static int NAME(head_forward)(const struct tg_attention *p, const REAL *q, const REAL *k, const REAL *v, REAL *y,
                              REAL *lse, uint64_t first_mask_row) {
    const ptrdiff_t D = p->D, Tq = p->Tq, Tk = p->Tk, P = NAME(PANEL);
    const ptrdiff_t width = NAME(padded)(D, P), keys = NAME(padded)(Tk, TG_ROWS), O_rows = NAME(padded)(P, TG_ROWS);
    REAL *memory = NAME(memory)(2 * keys * width + (2 * P + O_rows) * width + TG_KEYS * P + TG_ROWS);
    if (!memory) return -1;
    REAL *K = memory, *V = K + keys * width, *Q = V + keys * width, *Qt = Q + P * width, *O = Qt + P * width;
    REAL *S = O + O_rows * width, m[NAME(PANEL)], l[NAME(PANEL)], rescale[NAME(PANEL)], factors[4][NAME(PANEL)];
    NAME(pack)(K, width, keys, k, p->k_stride[2], Tk, D, 1);
    NAME(pack)(V, width, keys, v, p->v_stride[2], Tk, D, 1);

    for (ptrdiff_t q0 = 0; q0 < Tq; q0 += P) {
        const ptrdiff_t rows = Tq - q0 < P ? Tq - q0 : P;
        NAME(pack)(Q, width, P, q + q0 * p->q_stride[2], p->q_stride[2], rows, D, (REAL)p->scale);
        NAME(transpose_panel)(Qt, Q, width);
        for (ptrdiff_t i = 0; i < P; i++) {
            m[i] = -INFINITY;
            l[i] = 0;
        }
        for (ptrdiff_t k0 = 0; k0 < Tk && NAME(visible)(q0 + rows, k0, Tk, p->is_causal); k0 += TG_KEYS) {
            const ptrdiff_t k1 = k0 + TG_KEYS < Tk ? k0 + TG_KEYS : Tk;
            const ptrdiff_t seen = NAME(visible)(q0 + rows, k0, k1, p->is_causal);
            NAME(scores)(S, P, K + k0 * width, D, width, Qt, seen);
            for (ptrdiff_t j = NAME(visible)(q0 + 1, k0, k1, p->is_causal); j < seen; j++)
                NAME(hide)(S + j * P, q0, k0 + j, -(REAL)INFINITY);
            NAME(softmax)(S, seen, m, l, rescale);
            for (ptrdiff_t j = 0; p->dropout_p > 0 && j < seen; j++) {
                if (j % 4 == 0) NAME(dropout_factors)(factors, p, k0 + j, first_mask_row + (uint64_t)q0);
                for (int i = 0; i < NAME(PANEL); i++) S[j * P + i] *= factors[j % 4][i];
            }
            for (ptrdiff_t i = 0; k0 > 0 && i < rows; i++)
                for (ptrdiff_t d = 0; d < width; d++) O[i * width + d] *= rescale[i];
            for (ptrdiff_t i = 0; i < rows; i += TG_ROWS) {
                const ptrdiff_t depth = NAME(visible)(q0 + i + TG_ROWS, k0, seen + k0, p->is_causal);
                for (ptrdiff_t d = 0; d < width; d += P)
                    NAME(block_of_columns)(depth, S + i, P, V + k0 * width + d, width, O + i * width + d, width, k0 > 0);
            }
        }
        for (ptrdiff_t i = 0; i < rows; i++) {
            const REAL inverse = 1 / l[i];
            REAL *row = y + (q0 + i) * p->y_stride[2];
            for (ptrdiff_t d = 0; d < D; d++) row[d] = O[i * width + d] * inverse;
            lse[q0 + i] = m[i] + LOG(l[i]);
        }
    }
    free(memory);
    return 0;
}

/* One head backward, by recomputing the probabilities from lse (Dao et al. 2022, algorithm 4):
 *
 *     P  = exp(S - lse)          dV = (P mask)^T dY         dP = (dY V^T) mask
 *     dS = P (dP - delta)        dQ = scale dS K            dK = dS^T (scale Q)       delta = rowsum(dY Y)
 */
static int NAME(head_backward)(const struct tg_attention *p, const REAL *dy, const REAL *q, const REAL *k,
                               const REAL *v, const REAL *y, const REAL *lse, REAL *dq, REAL *dk, REAL *dv,
                               uint64_t first_mask_row) {
    const ptrdiff_t D = p->D, Tq = p->Tq, Tk = p->Tk, P = NAME(PANEL), W = TG_PANELS * P;
    const ptrdiff_t width = NAME(padded)(D, P), keys = NAME(padded)(Tk, TG_ROWS), queries = NAME(padded)(Tq, W);
    const ptrdiff_t tile = TG_KEYS_BACKWARD;
    REAL *memory = NAME(memory)(3 * queries * width + 4 * keys * width + 2 * W * width + 2 * queries + 2 * tile * W);
    if (!memory) return -1;
    REAL *Q = memory, *dY = Q + queries * width, *dQ = dY + queries * width;
    REAL *K = dQ + queries * width, *V = K + keys * width, *dK = V + keys * width, *dV = dK + keys * width;
    REAL *Qt = dV + keys * width, *dYt = Qt + W * width, *shift = dYt + W * width, *delta = shift + queries;
    REAL *S = delta + queries, *dS = S + tile * W, factors[4][NAME(PANEL)];
    NAME(pack)(Q, width, queries, q, p->q_stride[2], Tq, D, (REAL)p->scale);
    NAME(pack)(dY, width, queries, dy, p->dy_stride[2], Tq, D, 1);
    NAME(pack)(K, width, keys, k, p->k_stride[2], Tk, D, 1);
    NAME(pack)(V, width, keys, v, p->v_stride[2], Tk, D, 1);
    memset(dK, 0, (size_t)(2 * keys * width) * sizeof(REAL)); /* dV lies behind it */
    memset(dQ, 0, (size_t)(queries * width) * sizeof(REAL));
    for (ptrdiff_t i = 0; i < queries; i++) {
        REAL sum = 0;
        for (ptrdiff_t d = 0; i < Tq && d < D; d++) sum += dY[i * width + d] * y[i * p->y_stride[2] + d];
        delta[i] = sum;
        shift[i] = i < Tq && lse[i] != -(REAL)INFINITY ? lse[i] : 0;
    }

    for (ptrdiff_t q0 = 0; q0 < Tq; q0 += W) {
        const ptrdiff_t rows = Tq - q0 < W ? Tq - q0 : W;
        for (ptrdiff_t u = 0; u < W; u += P) {
            NAME(transpose_panel)(Qt + u * width, Q + (q0 + u) * width, width);
            NAME(transpose_panel)(dYt + u * width, dY + (q0 + u) * width, width);
        }
        for (ptrdiff_t k0 = 0; k0 < Tk && NAME(visible)(q0 + rows, k0, Tk, p->is_causal); k0 += tile) {
            const ptrdiff_t k1 = k0 + tile < Tk ? k0 + tile : Tk;
            const ptrdiff_t all_seen = NAME(visible)(q0 + rows, k0, k1, p->is_causal);
            for (ptrdiff_t u = 0; u < rows; u += P) {
                const ptrdiff_t seen = NAME(visible)(q0 + u + P, k0, k0 + all_seen, p->is_causal);
                const ptrdiff_t seen_by_all = NAME(visible)(q0 + u + 1, k0, k1, p->is_causal);
                NAME(scores)(S + u, W, K + k0 * width, D, width, Qt + u * width, seen);
                NAME(scores)(dS + u, W, V + k0 * width, D, width, dYt + u * width, seen);
                for (ptrdiff_t j = 0; j < seen; j++) {
                    REAL *probability = S + j * W + u, *ds = dS + j * W + u;
                    const REAL *row_shift = shift + q0 + u, *row_delta = delta + q0 + u, *f = factors[j % 4];
                    if (j >= seen_by_all) NAME(hide)(probability, q0 + u, k0 + j, -(REAL)INFINITY);
                    if (p->dropout_p > 0) {
                        if (j % 4 == 0) NAME(dropout_factors)(factors, p, k0 + j, first_mask_row + (uint64_t)(q0 + u));
                        for (int i = 0; i < NAME(PANEL); i++) {
                            const REAL e = EXP(probability[i] - row_shift[i]);
                            ds[i] = e * (ds[i] * f[i] - row_delta[i]);
                            probability[i] = e * f[i];
                        }
                    } else {
                        for (int i = 0; i < NAME(PANEL); i++) {
                            const REAL e = EXP(probability[i] - row_shift[i]);
                            ds[i] = e * (ds[i] - row_delta[i]);
                            probability[i] = e;
                        }
                    }
                }
                for (ptrdiff_t j = seen; j < NAME(padded)(seen, TG_ROWS); j++)
                    for (int i = 0; i < NAME(PANEL); i++) S[j * W + u + i] = dS[j * W + u + i] = 0;
            }
            /* dV += P^T dY and dK += dS^T Q: the sum runs over queries, from the first that sees the row block. */
            for (ptrdiff_t j = 0; j < all_seen; j += TG_ROWS) {
                const ptrdiff_t from = p->is_causal && k0 + j > q0 ? k0 + j - q0 : 0;
                for (ptrdiff_t d = 0; d < width; d += P) {
                    NAME(block_of_rows)(rows - from, S + j * W + from, W, dY + (q0 + from) * width + d, width,
                                dV + (k0 + j) * width + d, width, 1);
                    NAME(block_of_rows)(rows - from, dS + j * W + from, W, Q + (q0 + from) * width + d, width,
                                dK + (k0 + j) * width + d, width, 1);
                }
            }
            for (ptrdiff_t i = 0; i < rows; i += TG_ROWS) {
                const ptrdiff_t depth = NAME(visible)(q0 + i + TG_ROWS, k0, k0 + all_seen, p->is_causal);
                for (ptrdiff_t d = 0; d < width; d += P)
                    NAME(block_of_columns)(depth, dS + i, W, K + k0 * width + d, width, dQ + (q0 + i) * width + d, width, 1);
            }
        }
    }
    for (ptrdiff_t i = 0; i < Tq; i++)
        for (ptrdiff_t d = 0; d < D; d++) dq[i * p->dq_stride[2] + d] = (REAL)p->scale * dQ[i * width + d];
    for (ptrdiff_t i = 0; i < Tk; i++)
        for (ptrdiff_t d = 0; d < D; d++) dk[i * p->dk_stride[2] + d] = dK[i * width + d];
    for (ptrdiff_t i = 0; i < Tk; i++)
        for (ptrdiff_t d = 0; d < D; d++) dv[i * p->dv_stride[2] + d] = dV[i * width + d];
    free(memory);
    return 0;
}
