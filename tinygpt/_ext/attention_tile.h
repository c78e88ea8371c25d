/* Attention for one head, in tiles. Included twice by attention.h, for float and for double:
 * REAL is the type, INTEGER the integer of its size, NAME(x) gives a function of that type its name, EXP is its
 * exponential.
 *
 * Everything here works on copies of one head's q, k, v in `struct scratch`: contiguous, padded with zeros to whole
 * vectors and whole row blocks, so that the product below needs no code for edges. That costs O(T D) memory and
 * copying, against O(T^2 D) arithmetic.
 */

/* A vector of as many numbers as one register of this level holds. */
typedef REAL NAME(vec) __attribute__((vector_size(TG_VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));
typedef INTEGER NAME(integers) __attribute__((vector_size(TG_VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));

enum { NAME(LANES) = TG_VECTOR_BYTES / sizeof(REAL), NAME(PANEL) = 2 * NAME(LANES) };

/* C[ROWS x PANEL] (+)= A . B over `depth`. A(i, k) stands at a[i*ai + k*ak], so a transposed A costs nothing;
 * row k of B at b + k*ldb. The ROWS x 2 accumulators stay in registers: per step of k, 2 loads of B, ROWS
 * broadcasts of A, and 2*ROWS multiply-adds. */
static inline void NAME(block)(ptrdiff_t depth, const REAL *a, ptrdiff_t ai, ptrdiff_t ak, const REAL *b,
                               ptrdiff_t ldb, REAL *c, ptrdiff_t ldc, int accumulate) {
    NAME(vec) sum0[TG_ROWS], sum1[TG_ROWS];
#pragma GCC unroll 8
    for (int i = 0; i < TG_ROWS; i++) {
        sum0[i] = (NAME(vec)){0};
        sum1[i] = (NAME(vec)){0};
    }
    for (ptrdiff_t k = 0; k < depth; k++) {
        const NAME(vec) b0 = *(const NAME(vec) *)(b + k * ldb);
        const NAME(vec) b1 = *(const NAME(vec) *)(b + k * ldb + NAME(LANES));
#pragma GCC unroll 8
        for (int i = 0; i < TG_ROWS; i++) {
            const REAL factor = a[i * ai + k * ak];
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

/* Head size and number of keys, rounded up to whole panels and whole row blocks. */
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

/* The same, transposed: column i of out (D rows of `width`) is row i of x, zero beyond rows. Eight rows of x at a time, so
 * that whole cache lines of out are written. */
static void NAME(pack_transposed)(REAL *out, ptrdiff_t width, const REAL *x, ptrdiff_t stride, ptrdiff_t rows,
                                  ptrdiff_t D) {
    ptrdiff_t i = 0;
    for (; i + 8 <= rows; i += 8)
        for (ptrdiff_t d = 0; d < D; d++)
            for (int u = 0; u < 8; u++) out[d * width + i + u] = x[(i + u) * stride + d];
    for (ptrdiff_t d = 0; d < D; d++) {
        for (ptrdiff_t j = i; j < rows; j++) out[d * width + j] = x[j * stride + d];
        for (ptrdiff_t j = rows; j < width; j++) out[d * width + j] = 0;
    }
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

/* Columns of the score tile that row block `i` may look at: whole panels, none wholly behind the diagonal. */
static inline ptrdiff_t NAME(visible)(ptrdiff_t query_end, ptrdiff_t key_begin, ptrdiff_t key_end, int causal) {
    ptrdiff_t end = causal && query_end < key_end ? query_end : key_end;
    return end > key_begin ? end - key_begin : 0;
}

/* scores[rows x columns] = Q K^T for queries q0.. and keys k0.., panel by panel: a panel of K^T stays in the first
 * cache for all row blocks. Panels behind the diagonal are skipped. */
static void NAME(scores)(REAL *scores, ptrdiff_t width, const REAL *q, ptrdiff_t depth, ptrdiff_t q_width,
                         const REAL *kt, ptrdiff_t kt_width, ptrdiff_t q0, ptrdiff_t rows, ptrdiff_t k0,
                         ptrdiff_t columns, int causal) {
    for (ptrdiff_t j = 0; j < columns; j += NAME(PANEL))
        for (ptrdiff_t i = 0; i < rows; i += TG_ROWS) {
            if (causal && k0 + j >= q0 + i + TG_ROWS) continue;
            NAME(block)(depth, q + (q0 + i) * q_width, q_width, 1, kt + k0 + j, kt_width, scores + i * width + j,
                        width, 0);
        }
}

/* One head forward: y = softmax(scale q k^T) v and lse, the logarithm of each row's sum of exponentials.
 * Online softmax (Milakov and Gimelshein 2018): over tiles of keys, keep the largest score m and the sum l of
 * exp(score - m) so far, and rescale what was summed whenever m grows. Returns 0, or -1 without memory. */
static int NAME(head_forward)(const struct tg_attention *p, const REAL *q, const REAL *k, const REAL *v, REAL *y,
                              REAL *lse, uint64_t first_mask_row) {
    const ptrdiff_t D = p->D, Tq = p->Tq, Tk = p->Tk;
    const ptrdiff_t width = NAME(padded)(D, NAME(PANEL)), keys = NAME(padded)(Tk, TG_QUERIES), queries = Tq + TG_ROWS;
    const ptrdiff_t tile = keys < TG_KEYS ? keys : TG_KEYS;
    const ptrdiff_t sizes = queries * width + D * keys + keys * width + TG_QUERIES * (2 * tile + width + 2);
    REAL *memory = NAME(memory)(sizes);
    if (!memory) return -1;
    REAL *Q = memory, *Kt = Q + queries * width, *V = Kt + D * keys, *S = V + keys * width;
    REAL *mask = S + TG_QUERIES * tile, *O = mask + TG_QUERIES * tile, *m = O + TG_QUERIES * width, *l = m + TG_QUERIES;
    NAME(pack)(Q, width, queries, q, p->q_stride[2], Tq, D, (REAL)p->scale);
    NAME(pack_transposed)(Kt, keys, k, p->k_stride[2], Tk, D);
    NAME(pack)(V, width, keys, v, p->v_stride[2], Tk, D, 1);

    for (ptrdiff_t q0 = 0; q0 < Tq; q0 += TG_QUERIES) {
        const ptrdiff_t rows = Tq - q0 < TG_QUERIES ? Tq - q0 : TG_QUERIES;
        memset(O, 0, (size_t)(TG_QUERIES * width) * sizeof(REAL));
        for (ptrdiff_t i = 0; i < rows; i++) {
            m[i] = -INFINITY;
            l[i] = 0;
        }
        for (ptrdiff_t k0 = 0; k0 < Tk && NAME(visible)(q0 + rows, k0, Tk, p->is_causal); k0 += tile) {
            const ptrdiff_t k1 = k0 + tile < Tk ? k0 + tile : Tk;
            const ptrdiff_t columns = NAME(visible)(q0 + rows, k0, k1, p->is_causal);
            NAME(scores)(S, tile, Q, D, width, Kt, keys, q0, rows, k0, columns, p->is_causal);
            for (ptrdiff_t i = 0; i < rows; i++) {
                REAL *s = S + i * tile;
                const ptrdiff_t n = NAME(visible)(q0 + i + 1, k0, k1, p->is_causal);
                /* The products below read whole row blocks: what this row may not see counts as probability 0. */
                const ptrdiff_t block_end = NAME(visible)(q0 + i / TG_ROWS * TG_ROWS + TG_ROWS, k0, k1, p->is_causal);
                const REAL top = NAME(largest)(s, n, m[i]);
                const REAL base = top == -INFINITY ? 0 : top; /* a row of -inf only: exp(-inf - 0) = 0 */
                REAL sum = 0;
                for (ptrdiff_t j = 0; j < n; j++) {
                    const REAL e = EXP(s[j] - base);
                    s[j] = e;
                    sum += e;
                }
                for (ptrdiff_t j = n; j < block_end; j++) s[j] = 0;
                const REAL rescale = EXP(m[i] - base);
                if (top > m[i])
                    for (ptrdiff_t d = 0; d < width; d++) O[i * width + d] *= rescale;
                l[i] = l[i] * rescale + sum;
                m[i] = top;
                if (p->dropout_p > 0) {
                    REAL *f = mask + i * tile;
                    TG_MASK(f, k0, n, first_mask_row + (uint64_t)(q0 + i), p->threshold, (REAL)p->kept, p->seed,
                            p->stream);
                    for (ptrdiff_t j = 0; j < n; j++) s[j] *= f[j];
                }
            }
            for (ptrdiff_t i = 0; i < rows; i += TG_ROWS) {
                const ptrdiff_t depth = NAME(visible)(q0 + i + TG_ROWS, k0, k1, p->is_causal);
                for (ptrdiff_t d = 0; d < width; d += NAME(PANEL))
                    NAME(block)(depth, S + i * tile, tile, 1, V + k0 * width + d, width, O + i * width + d, width, 1);
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
    const ptrdiff_t D = p->D, Tq = p->Tq, Tk = p->Tk;
    const ptrdiff_t width = NAME(padded)(D, NAME(PANEL)), keys = NAME(padded)(Tk, TG_QUERIES), queries = Tq + TG_QUERIES;
    const ptrdiff_t tile = keys < TG_KEYS / 2 ? keys : TG_KEYS / 2;
    const ptrdiff_t key_rows = keys + TG_ROWS;
    const ptrdiff_t sizes = 3 * queries * width + 2 * D * keys + 3 * key_rows * width + Tq + 2 * TG_QUERIES * tile + tile;
    REAL *memory = NAME(memory)(sizes);
    if (!memory) return -1;
    REAL *Q = memory, *dY = Q + queries * width, *dQ = dY + queries * width;
    REAL *Kt = dQ + queries * width, *Vt = Kt + D * keys;
    REAL *K = Vt + D * keys, *dK = K + key_rows * width, *dV = dK + key_rows * width;
    REAL *P = dV + key_rows * width, *dS = P + TG_QUERIES * tile;
    REAL *mask = dS + TG_QUERIES * tile, *delta = mask + tile;
    NAME(pack)(Q, width, queries, q, p->q_stride[2], Tq, D, (REAL)p->scale);
    NAME(pack)(dY, width, queries, dy, p->dy_stride[2], Tq, D, 1);
    NAME(pack)(K, width, key_rows, k, p->k_stride[2], Tk, D, 1);
    NAME(pack_transposed)(Kt, keys, k, p->k_stride[2], Tk, D);
    NAME(pack_transposed)(Vt, keys, v, p->v_stride[2], Tk, D);
    memset(dQ, 0, (size_t)(queries * width) * sizeof(REAL));
    memset(dK, 0, (size_t)(2 * key_rows * width) * sizeof(REAL)); /* dV lies behind it */
    for (ptrdiff_t i = 0; i < Tq; i++) {
        REAL sum = 0;
        for (ptrdiff_t d = 0; d < D; d++) sum += dY[i * width + d] * y[i * p->y_stride[2] + d];
        delta[i] = sum;
    }

    for (ptrdiff_t k0 = 0; k0 < Tk; k0 += tile) {
        const ptrdiff_t k1 = k0 + tile < Tk ? k0 + tile : Tk;
        const ptrdiff_t first = p->is_causal ? k0 / TG_QUERIES * TG_QUERIES : 0; /* earlier queries see none of these */
        for (ptrdiff_t q0 = first; q0 < Tq; q0 += TG_QUERIES) {
            const ptrdiff_t rows = Tq - q0 < TG_QUERIES ? Tq - q0 : TG_QUERIES;
            const ptrdiff_t columns = NAME(visible)(q0 + rows, k0, k1, p->is_causal);
            NAME(scores)(P, tile, Q, D, width, Kt, keys, q0, rows, k0, columns, p->is_causal);
            NAME(scores)(dS, tile, dY, D, width, Vt, keys, q0, rows, k0, columns, p->is_causal);
            for (ptrdiff_t i = 0; i < rows; i++) {
                REAL *probability = P + i * tile, *ds = dS + i * tile;
                const ptrdiff_t n = NAME(visible)(q0 + i + 1, k0, k1, p->is_causal);
                const REAL shift = lse[q0 + i] == -INFINITY ? 0 : lse[q0 + i], row_delta = delta[q0 + i];
                if (p->dropout_p > 0) {
                    TG_MASK(mask, k0, n, first_mask_row + (uint64_t)(q0 + i), p->threshold, (REAL)p->kept, p->seed,
                            p->stream);
                    for (ptrdiff_t j = 0; j < n; j++) {
                        const REAL e = EXP(probability[j] - shift);
                        ds[j] = e * (ds[j] * mask[j] - row_delta);
                        probability[j] = e * mask[j];
                    }
                } else {
                    for (ptrdiff_t j = 0; j < n; j++) {
                        const REAL e = EXP(probability[j] - shift);
                        ds[j] = e * (ds[j] - row_delta);
                        probability[j] = e;
                    }
                }
                for (ptrdiff_t j = n; j < NAME(padded)(columns, TG_ROWS); j++) probability[j] = ds[j] = 0;
            }
            /* dV += P^T dY and dK += dS^T Q: the sum runs over queries, from the first that sees the row block. */
            for (ptrdiff_t j = 0; j < columns; j += TG_ROWS) {
                ptrdiff_t from = p->is_causal && k0 + j > q0 ? k0 + j - q0 : 0;
                for (ptrdiff_t d = 0; d < width; d += NAME(PANEL)) {
                    NAME(block)(rows - from, P + from * tile + j, 1, tile, dY + (q0 + from) * width + d, width,
                                dV + (k0 + j) * width + d, width, 1);
                    NAME(block)(rows - from, dS + from * tile + j, 1, tile, Q + (q0 + from) * width + d, width,
                                dK + (k0 + j) * width + d, width, 1);
                }
            }
            for (ptrdiff_t i = 0; i < rows; i += TG_ROWS) {
                const ptrdiff_t depth = NAME(visible)(q0 + i + TG_ROWS, k0, k1, p->is_causal);
                for (ptrdiff_t d = 0; d < width; d += NAME(PANEL))
                    NAME(block)(depth, dS + i * tile, tile, 1, K + k0 * width + d, width, dQ + (q0 + i) * width + d,
                                width, 1);
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
