/* Attention for one head, in tiles. Included twice by attention.h, for float and for double: REAL is the type, INTEGER
 * the integer type of the same size, NAME(x) the name with the type appended.
 *
 * Scores are stored transposed: a row of a tile is one key, its columns are queries, one per vector lane. So the
 * softmax needs no sum or maximum across lanes, a query's statistics are one lane of a vector, and the products with
 * the probabilities read both factors in memory order: only q (and dy, backward) is transposed, a tile's rows at a
 * time.
 *
 * Everything here works on copies of one head's q, k, v: contiguous, padded with zeros to whole vectors and whole row
 * blocks, so that the products need no code for edges. That costs O(T D) memory and copying, against O(T^2 D)
 * arithmetic.
 *
 * A strip is a vector of queries. In a tile on the diagonal, a strip is computed down to the last key that any of its
 * queries sees. Row blocks of the products reach up to TG_ROWS - 1 keys further, where the strip is set to 0.
 */

/* The products of a tile. S(j, i) is at s[j * TG_QUERIES + i]; rows of the other matrices are `width` apart. */

/* S = K X^T, for X^T (D, TG_QUERIES). */
static void NAME(scores)(const struct tg_tile *t, REAL *s, const REAL *k, ptrdiff_t width, ptrdiff_t D, const REAL *xt,
                         struct tg_ahead *ahead) {
    const ptrdiff_t keys = NAME(padded)(t->keys, TG_FEW_ROWS), columns = NAME(padded)(t->queries, NAME(LANES));
    int rows;
    for (ptrdiff_t j = 0; j < keys; j += rows) {
        rows = NAME(next_rows)(keys - j);
        int vectors;
        for (ptrdiff_t i = tg_blind(t, j) / NAME(LANES) * NAME(LANES); i < columns; i += vectors * NAME(LANES)) {
            vectors = NAME(next_vectors)(columns - i);
            tg_fetch(ahead);
            NAME(block_of_rows)(rows, vectors, D, k + j * width, width, xt + i, TG_QUERIES, s + j * TG_QUERIES + i,
                                TG_QUERIES, 0);
        }
    }
}

/* out(j) (+)= sum over the queries i that see key j of S(j, i) x(i). */
static void NAME(over_queries)(const struct tg_tile *t, const REAL *s, const REAL *x, ptrdiff_t width, REAL *out, int add,
                               struct tg_ahead *ahead) {
    const ptrdiff_t keys = NAME(padded)(t->keys, TG_FEW_ROWS);
    int rows, vectors;
    for (ptrdiff_t d = 0; d < width; d += vectors * NAME(LANES)) {
        vectors = NAME(next_vectors)(width - d);
        for (ptrdiff_t j = 0; j < keys; j += rows) {
            rows = NAME(next_rows)(keys - j);
            const ptrdiff_t from = tg_blind(t, j);
            tg_fetch(ahead);
            NAME(block_of_rows)(rows, vectors, t->queries - from, s + j * TG_QUERIES + from, TG_QUERIES,
                                x + from * width + d, width, out + j * width + d, width, add);
        }
    }
}

/* out(i) (+)= sum over the keys j that query i sees of S(j, i) x(j). */
static void NAME(over_keys)(const struct tg_tile *t, const REAL *s, const REAL *x, ptrdiff_t width, REAL *out, int add,
                            struct tg_ahead *ahead) {
    const ptrdiff_t queries = NAME(padded)(t->queries, TG_FEW_ROWS);
    int rows, vectors;
    for (ptrdiff_t d = 0; d < width; d += vectors * NAME(LANES)) {
        vectors = NAME(next_vectors)(width - d);
        for (ptrdiff_t i = 0; i < queries; i += rows) {
            rows = NAME(next_rows)(queries - i);
            tg_fetch(ahead);
            NAME(block_of_columns)(rows, vectors, tg_seen(t, i + rows - 1), s + i, TG_QUERIES, x + d, width,
                                   out + i * width + d, width, add);
        }
    }
}

/* Operations on a strip, whose first query is the tile's query `first`. Its rows are TG_QUERIES apart, starting at
 * s. The functions that loop over its keys are not inlined, so that the constants of exp stay in registers. */

/* The larger and the smaller of a and b; b if either is NaN. */
static inline NAME(vec) NAME(larger)(NAME(vec) a, NAME(vec) b) { return LARGER(a, b); }
static inline NAME(vec) NAME(smaller)(NAME(vec) a, NAME(vec) b) { return SMALLER(a, b); }

/* exp(x) for x <= 0 and for NaN, in two thirds of the instructions of vmath.h's exp: nothing can overflow, and ln 2
 * in one piece is accurate enough, since n times its error is less than the rounding error of the score. Truncation
 * of a negative number minus 0.5 rounds to the nearest n. */
static inline NAME(vec) NAME(exp)(NAME(vec) x) {
    enum { DEGREE = sizeof NAME(SERIES) / sizeof(REAL) - 1 };
    x = NAME(larger)((NAME(vec)){0} + NAME(LOWEST), x); /* at LOWEST the bits of 2^n are those of 0 */
    const NAME(integers) n = __builtin_convertvector(x * (REAL)1.44269504088896340736 - (REAL)0.5, NAME(integers));
    const NAME(vec) r = x - __builtin_convertvector(n, NAME(vec)) * (REAL)0.69314718055994530942;
    NAME(vec) sum = (NAME(vec)){0} + NAME(SERIES)[0];
#pragma GCC unroll 13
    for (int i = 1; i <= DEGREE; i++) sum = sum * r + NAME(SERIES)[i];
    return sum * (NAME(vec))((n + NAME(BIAS)) << NAME(EXPONENT));
}

/* The mask of the strip's lanes that do not see key j. */
static inline NAME(integers) NAME(hidden)(const struct tg_tile *t, ptrdiff_t first, ptrdiff_t j) {
    const ptrdiff_t unseen = t->k0 + j - t->q0 - first;
    NAME(integers) lane;
    for (int i = 0; i < NAME(LANES); i++) lane[i] = i;
    return lane < (INTEGER)unseen;
}

/* Write zeros where row blocks reach beyond the last key that a strip sees. */
static inline void NAME(clear_below)(REAL *s, const struct tg_tile *t, ptrdiff_t seen) {
    const ptrdiff_t end = NAME(padded)(t->keys, TG_FEW_ROWS);
    for (ptrdiff_t j = seen; j < seen + TG_ROWS - 1 && j < end; j++) *(NAME(vec) *)(s + j * TG_QUERIES) = (NAME(vec)){0};
}

/* The dropout factors of MASK adjacent keys for a strip, whose first mask row is `row`. One Philox counter gives
 * four words, for four adjacent columns of the (T, T) matrix, so `key` is a multiple of 4. Four independent vectors
 * of counters hide the latency of the multiplications. */
enum { NAME(COUNTERS) = NAME(LANES) / TG_COUNTERS, NAME(QUADS) = 4 / NAME(COUNTERS), NAME(MASK) = 4 * NAME(QUADS) };

static void NAME(dropout_factors)(REAL factors[NAME(MASK)][NAME(LANES)], const struct tg_attention *p, ptrdiff_t key,
                                  uint64_t row) {
    tg_counters c[4][4];
    uint64_t words[NAME(MASK)][NAME(LANES)];
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) {
        c[v][0] = (tg_counters){0} + (uint32_t)(key / 4 + v / NAME(COUNTERS));
        for (int i = 0; i < TG_COUNTERS; i++)
            c[v][1][i] = (uint32_t)(p->first_row + row + (uint64_t)(v % NAME(COUNTERS) * TG_COUNTERS + i));
        c[v][2] = (tg_counters){0} + (uint32_t)p->stream;
        c[v][3] = (tg_counters){0} + (p->stream >> 32);
    }
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) {
        tg_philox(c[v], p->seed);
        for (int word = 0; word < 4; word++)
            memcpy(&words[v / NAME(COUNTERS) * 4 + word][v % NAME(COUNTERS) * TG_COUNTERS], &c[v][word], TG_VECTOR_BYTES);
    }
    const uint32_t threshold = p->threshold;
    const REAL kept = (REAL)p->kept;
    for (int j = 0; j < NAME(MASK); j++)
        for (int i = 0; i < NAME(LANES); i++) factors[j][i] = (uint32_t)words[j][i] >= threshold ? kept : 0;
}

/* Replace a strip of scores by exp(score - m). Updates m and l, the running maximum and sum of exponentials of each
 * query; `rescale` is the factor by which the results so far must be multiplied. */
static __attribute__((noinline)) void NAME(softmax)(const struct tg_tile *t, ptrdiff_t first, REAL *s, REAL *m, REAL *l,
                                                    REAL *rescale) {
    const ptrdiff_t seen_by_all = tg_seen(t, first), seen = tg_seen(t, first + NAME(LANES) - 1);
    const NAME(vec) before = *(const NAME(vec) *)m, nothing = (NAME(vec)){0} - (REAL)INFINITY;
    NAME(vec) top = before, other = before, sum = {0};
    for (ptrdiff_t j = seen_by_all; j < seen; j++) {
        NAME(vec) *row = (NAME(vec) *)(s + j * TG_QUERIES);
        *row = NAME(select)(NAME(hidden)(t, first, j), nothing, *row);
    }
    for (ptrdiff_t j = 0; j < seen; j += 2) { /* NaNs are ignored here, but reach the sum */
        top = NAME(larger)(*(NAME(vec) *)(s + j * TG_QUERIES), top);
        if (j + 1 < seen) other = NAME(larger)(*(NAME(vec) *)(s + (j + 1) * TG_QUERIES), other);
    }
    top = NAME(larger)(other, top);
    const NAME(vec) base = NAME(select)(top == nothing, sum, top); /* all -inf so far: exp(-inf - 0) = 0 */
    for (ptrdiff_t j = 0; j < seen; j++) {
        NAME(vec) *row = (NAME(vec) *)(s + j * TG_QUERIES);
        *row = NAME(exp)(*row - base);
        sum += *row;
    }
    NAME(clear_below)(s, t, seen);
    const NAME(vec) shrink = NAME(exp)(before - base);
    *(NAME(vec) *)m = top;
    *(NAME(vec) *)rescale = shrink;
    *(NAME(vec) *)l = *(NAME(vec) *)l * shrink + sum;
}

static __attribute__((noinline)) void NAME(drop)(const struct tg_attention *p, const struct tg_tile *t, ptrdiff_t first,
                                                 REAL *s, uint64_t mask_row) {
    const ptrdiff_t seen = tg_seen(t, first + NAME(LANES) - 1);
    REAL factors[NAME(MASK)][NAME(LANES)];
    for (ptrdiff_t j = 0; j < seen; j++) {
        if (j % NAME(MASK) == 0) NAME(dropout_factors)(factors, p, t->k0 + j, mask_row);
        *(NAME(vec) *)(s + j * TG_QUERIES) *= *(const NAME(vec) *)factors[j % NAME(MASK)];
    }
}

/* Copy k and v of the keys packed .. seen - 1, padded with zeros to whole row blocks; returns how many are packed
 * now. */
static ptrdiff_t NAME(pack_keys)(const struct tg_attention *p, ptrdiff_t packed, ptrdiff_t seen, REAL *K, const REAL *k,
                                 REAL *V, const REAL *v, ptrdiff_t width) {
    if (seen <= packed) return packed;
    const ptrdiff_t rows = NAME(padded)(seen, TG_FEW_ROWS) - packed;
    NAME(pack)(K + packed * width, width, rows, k + packed * p->k_stride[2], p->k_stride[2], seen - packed, p->D, 1);
    NAME(pack)(V + packed * width, width, rows, v + packed * p->v_stride[2], p->v_stride[2], seen - packed, p->D, 1);
    return seen;
}

/* One head forward: y = softmax(scale q k^T) v, and lse, the logarithm of each row's sum of exponentials in two
 * parts, near and rest (tinygpt/ops/_two_parts.py). Online softmax (Milakov and Gimelshein 2018): over the tiles of
 * keys, keep the running maximum m and the sum l of exp(score - m), and rescale the sums whenever m grows. */
static void NAME(head_forward)(const struct tg_attention *p, REAL *memory, const REAL *q, const REAL *k, const REAL *v,
                               REAL *y, REAL *lse, uint64_t first_mask_row, struct tg_ahead *ahead) {
    const ptrdiff_t D = p->D, W = TG_QUERIES, width = NAME(padded)(D, NAME(LANES));
    const ptrdiff_t keys = NAME(padded)(p->Tk, TG_FEW_ROWS);
    REAL *K = memory, *V = K + keys * width, *Qt = V + keys * width, *O = Qt + W * width, *S = O + W * width;
    REAL m[TG_QUERIES], l[TG_QUERIES], rescale[TG_QUERIES];
    ptrdiff_t packed = 0; /* keys copied so far: each when first needed, to leave time for prefetching the others */
    for (ptrdiff_t q0 = 0; q0 < p->Tq; q0 += W) {
        struct tg_tile t = tg_tile_at(p, q0, 0, TG_KEYS);
        const ptrdiff_t queries = t.queries;
        NAME(transpose)(Qt, width, q + q0 * p->q_stride[2], p->q_stride[2], queries, D, (REAL)p->scale);
        for (ptrdiff_t i = 0; i < W; i++) {
            m[i] = -INFINITY;
            l[i] = 0;
        }
        for (; t.keys > 0; t = tg_tile_at(p, q0, t.k0 + TG_KEYS, TG_KEYS)) {
            packed = NAME(pack_keys)(p, packed, t.k0 + t.keys, K, k, V, v, width);
            NAME(scores)(&t, S, K + t.k0 * width, width, D, Qt, ahead);
            for (ptrdiff_t i = 0; i < queries; i += NAME(LANES)) {
                NAME(softmax)(&t, i, S + i, m + i, l + i, rescale + i);
                if (p->dropout_p > 0) NAME(drop)(p, &t, i, S + i, first_mask_row + (uint64_t)(q0 + i));
            }
            for (ptrdiff_t i = 0; t.k0 > 0 && i < queries; i++)
                for (ptrdiff_t d = 0; d < width; d++) O[i * width + d] *= rescale[i];
            NAME(over_keys)(&t, S, V + t.k0 * width, width, O, t.k0 > 0, ahead);
        }
        for (ptrdiff_t i = 0; i < queries; i++) {
            NAME(scaled_row)(y + (q0 + i) * p->y_stride[2], O + i * width, D, 1 / l[i]);
            const double log_sum = log((double)l[i]);
            REAL *parts = lse + 2 * (q0 + i);
            parts[0] = (REAL)(m[i] + log_sum);
            parts[1] = (REAL)tg_less_then_more(m[i], parts[0], log_sum);
        }
    }
}

/* A strip backward: with P = exp(S - near), replace S by P times the mask, and dP by dS. */
static __attribute__((noinline)) void NAME(softmax_backward)(const struct tg_attention *p, const struct tg_tile *t,
                                                             ptrdiff_t first, REAL *s, REAL *ds, const REAL *shift,
                                                             const REAL *delta, uint64_t mask_row) {
    const ptrdiff_t seen_by_all = tg_seen(t, first), seen = tg_seen(t, first + NAME(LANES) - 1);
    const NAME(vec) near = *(const NAME(vec) *)shift, row_delta = *(const NAME(vec) *)delta;
    REAL factors[NAME(MASK)][NAME(LANES)];
    for (ptrdiff_t j = 0; j < seen; j++) {
        NAME(vec) *row = (NAME(vec) *)(s + j * TG_QUERIES), *d_row = (NAME(vec) *)(ds + j * TG_QUERIES);
        /* S may round differently here than in the forward pass, so clamp the exponent at 0. */
        NAME(vec) e = NAME(exp)(NAME(smaller)((NAME(vec)){0}, *row - near)), d = *d_row;
        *row = e;
        if (p->dropout_p > 0) {
            if (j % NAME(MASK) == 0) NAME(dropout_factors)(factors, p, t->k0 + j, mask_row);
            *row = e * *(const NAME(vec) *)factors[j % NAME(MASK)];
            d *= *(const NAME(vec) *)factors[j % NAME(MASK)];
        }
        *d_row = e * (d - row_delta);
        if (j >= seen_by_all) {
            const NAME(integers) hidden = NAME(hidden)(t, first, j);
            *row = NAME(select)(hidden, (NAME(vec)){0}, *row);
            *d_row = NAME(select)(hidden, (NAME(vec)){0}, *d_row);
        }
    }
    NAME(clear_below)(s, t, seen);
    NAME(clear_below)(ds, t, seen);
}

/* One head backward, by recomputing the probabilities from lse (Dao et al. 2022, algorithm 4):
 *
 *     P  = exp(S - lse)          dV = (P mask)^T dY         dP = (dY V^T) mask
 *     dS = P (dP - delta)        dQ = scale dS K            dK = dS^T (scale Q)       delta = rowsum(dY Y)
 *
 * lse is near + rest. Everything that P is multiplied by is linear in dY, so the factor exp(-rest) goes into the
 * rows of dY, and exp(S - near) remains for P. */
static void NAME(head_backward)(const struct tg_attention *p, REAL *memory, const REAL *dy, const REAL *q, const REAL *k,
                                const REAL *v, const REAL *y, const REAL *lse, REAL *dq, REAL *dk, REAL *dv,
                                uint64_t first_mask_row, struct tg_ahead *ahead) {
    const ptrdiff_t D = p->D, W = TG_QUERIES, width = NAME(padded)(D, NAME(LANES)), tile = TG_KEYS_BACKWARD;
    const ptrdiff_t keys = NAME(padded)(p->Tk, TG_FEW_ROWS), panel = W * width;
    REAL *K = memory, *V = K + keys * width, *dK = V + keys * width, *dV = dK + keys * width;
    REAL *Q = dV + keys * width, *dY = Q + panel, *dQ = dY + panel, *Qt = dQ + panel, *dYt = Qt + panel;
    REAL *S = dYt + panel, *dS = S + tile * W, shift[TG_QUERIES], delta[TG_QUERIES];
    ptrdiff_t packed = 0;
    if (p->is_causal && p->Tq < p->Tk) { /* keys that no query sees */
        memset(dK + p->Tq * width, 0, (size_t)((keys - p->Tq) * width) * sizeof(REAL));
        memset(dV + p->Tq * width, 0, (size_t)((keys - p->Tq) * width) * sizeof(REAL));
    }
    for (ptrdiff_t q0 = 0; q0 < p->Tq; q0 += W) {
        struct tg_tile t = tg_tile_at(p, q0, 0, tile);
        const ptrdiff_t queries = t.queries;
        NAME(pack)(Q, width, W, q + q0 * p->q_stride[2], p->q_stride[2], queries, D, (REAL)p->scale);
        NAME(pack)(dY, width, W, dy + q0 * p->dy_stride[2], p->dy_stride[2], queries, D, 1);
        for (ptrdiff_t i = 0; i < queries; i++)
            NAME(scaled_row)(dY + i * width, dY + i * width, width, (REAL)tg_exp_minus(lse[2 * (q0 + i) + 1]));
        NAME(transpose)(Qt, width, Q, width, W, width, 1);
        NAME(transpose)(dYt, width, dY, width, W, width, 1);
        for (ptrdiff_t i = 0; i < W; i++) {
            double sum = 0;
            for (ptrdiff_t d = 0; i < queries && d < D; d++)
                sum += (double)dY[i * width + d] * y[(q0 + i) * p->y_stride[2] + d];
            delta[i] = (REAL)sum;
            shift[i] = i < queries ? lse[2 * (q0 + i)] : 0;
        }
        for (; t.keys > 0; t = tg_tile_at(p, q0, t.k0 + tile, tile)) {
            const ptrdiff_t at = t.k0 * width;
            const int add = t.k0 < q0 || (!p->is_causal && q0 > 0);
            packed = NAME(pack_keys)(p, packed, t.k0 + t.keys, K, k, V, v, width);
            NAME(scores)(&t, S, K + at, width, D, Qt, ahead);
            NAME(scores)(&t, dS, V + at, width, D, dYt, ahead);
            for (ptrdiff_t i = 0; i < queries; i += NAME(LANES))
                NAME(softmax_backward)(p, &t, i, S + i, dS + i, shift + i, delta + i, first_mask_row + (uint64_t)(q0 + i));
            NAME(over_queries)(&t, S, dY, width, dV + at, add, ahead);
            NAME(over_queries)(&t, dS, Q, width, dK + at, add, ahead);
            NAME(over_keys)(&t, dS, K + at, width, dQ, t.k0 > 0, ahead);
        }
        for (ptrdiff_t i = 0; i < queries; i++)
            NAME(scaled_row)(dq + (q0 + i) * p->dq_stride[2], dQ + i * width, D, (REAL)p->scale);
    }
    for (ptrdiff_t j = 0; j < p->Tk; j++) {
        NAME(scaled_row)(dk + j * p->dk_stride[2], dK + j * width, D, 1);
        NAME(scaled_row)(dv + j * p->dv_stride[2], dV + j * width, D, 1);
    }
}

#define AT(name, head) ((REAL *)p->name + (head) / p->H * p->name##_stride[0] + (head) % p->H * p->name##_stride[1])
#define NEED(list, name, head) tg_will_need(list, AT(name, head), p->name##_stride[2] * (ptrdiff_t)sizeof(REAL))

/* Schedule a head's operands for prefetching: q, k and v, and in the backward pass dy and y. */
static void NAME(will_need_operands)(struct tg_rows *list, const struct tg_attention *p, ptrdiff_t head, int backward) {
    NEED(list, q, head);
    NEED(list, k, head);
    NEED(list, v, head);
    if (backward) {
        NEED(list, dy, head);
        NEED(list, y, head);
    }
}

/* Heads begin .. end - 1 of the B * H. A thread's next chunk usually begins where this one ends, so the last head
 * prefetches for it as well. */
static void NAME(heads_forward)(void *task, ptrdiff_t begin, ptrdiff_t end) {
    struct tg_attention *p = task;
    const ptrdiff_t width = NAME(padded)(p->D, NAME(LANES)), keys = NAME(padded)(p->Tk, TG_FEW_ROWS);
    REAL *memory = NAME(memory)((2 * keys + 2 * TG_QUERIES) * width + TG_KEYS * TG_QUERIES);
    if (!memory) p->failed = 1;
    for (ptrdiff_t head = begin; memory && head < end; head++) {
        struct tg_ahead ahead = tg_ahead_of(p, sizeof(REAL), TG_PACE_FORWARD);
        if (head == begin) NAME(will_need_operands)(&ahead.now, p, head, 0);
        if (head + 1 < p->B * p->H) NAME(will_need_operands)(&ahead.next, p, head + 1, 0);
        NEED(&ahead.now, y, head);
        NAME(head_forward)(p, memory, AT(q, head), AT(k, head), AT(v, head), AT(y, head),
                           (REAL *)p->lse + 2 * head * p->Tq, (uint64_t)(head * p->Tq), &ahead);
    }
    tg_return(memory);
}

static void NAME(heads_backward)(void *task, ptrdiff_t begin, ptrdiff_t end) {
    struct tg_attention *p = task;
    const ptrdiff_t width = NAME(padded)(p->D, NAME(LANES)), keys = NAME(padded)(p->Tk, TG_FEW_ROWS);
    REAL *memory = NAME(memory)((4 * keys + 5 * TG_QUERIES) * width + 2 * TG_KEYS_BACKWARD * TG_QUERIES);
    if (!memory) p->failed = 1;
    for (ptrdiff_t head = begin; memory && head < end; head++) {
        struct tg_ahead ahead = tg_ahead_of(p, sizeof(REAL), TG_PACE_BACKWARD);
        if (head == begin) NAME(will_need_operands)(&ahead.now, p, head, 1);
        if (head + 1 < p->B * p->H) NAME(will_need_operands)(&ahead.next, p, head + 1, 1);
        NEED(&ahead.now, dq, head);
        NEED(&ahead.now, dk, head);
        NEED(&ahead.now, dv, head);
        NAME(head_backward)(p, memory, AT(dy, head), AT(q, head), AT(k, head), AT(v, head), AT(y, head),
                            (REAL *)p->lse + 2 * head * p->Tq, AT(dq, head), AT(dk, head), AT(dv, head),
                            (uint64_t)(head * p->Tq), &ahead);
    }
    tg_return(memory);
}
#undef AT
#undef NEED
