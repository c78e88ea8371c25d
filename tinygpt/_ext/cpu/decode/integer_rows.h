/* y = x W and y = x W^T for a few rows of x, with 8-bit weights and activations rounded to 8 bits: integer_tile.h.
 *
 * A span of terms is read as a whole: 32 rows of W, tile by tile of columns, or 32 terms of as many rows of the transposed
 * W. No prefetcher follows this many streams. But one span after the other, or one set of rows, they are a contiguous
 * part of memory, which is prefetched in its own order, by instructions, as many lines per tile as the tile has.
 *
 * If one group is a whole column, its scale multiplies the finished sum (`tg_sum`, tg_outputs_at).
 */
#ifndef TINYGPT_INTEGER_ROWS_H
#define TINYGPT_INTEGER_ROWS_H

#include "integer_single.h"

/* How many terms share a scale of the activations: a group of weights has whole spans. `along`: the terms of a sum. */
static inline ptrdiff_t tg_span_terms(const struct tg_matrix *w, ptrdiff_t along) {
    return w->group >= along || w->group % TG_SPAN_TERMS == 0 ? TG_SPAN_TERMS : w->group % 16 == 0 ? 16 : 8;
}

TG_INLINE void tg_fetch_weights(const int8_t *from, ptrdiff_t bytes) {
    for (ptrdiff_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
}

/* The factors of `terms` rows of W in TG_VECTOR_BYTES columns. */
TG_INLINE void tg_panel_of_rows(const int8_t *row, ptrdiff_t N, int terms, tg_ints *panel, int vnni) {
    const int each = vnni ? 1 : 2;
    for (int k = 0; k < terms; k += 4, row += 4 * N) {
        const int8_t *four[4];
        tg_ints quads[TG_PANEL_VECTORS];
        tg_four_rows(row, N, terms - k, four);
        tg_quads_of_rows(four, quads);
        for (int v = 0; v < TG_PANEL_VECTORS; v++) tg_factors(quads[v], panel + (k / 4 * TG_PANEL_VECTORS + v) * each, vnni);
    }
}

/* y (M, pitch) += a span of x times its rows of W. more: fetch the span after it meanwhile. */
TG_INLINE void tg_span_of_rows(const struct tg_matrix *w, const struct tg_span *x, ptrdiff_t M, ptrdiff_t k, int terms,
                               int more, float *y, ptrdiff_t pitch, int vnni) {
    const ptrdiff_t N = w->columns;
    const int8_t *row = (const int8_t *)w->weight + k * N, *ahead = row + terms * N;
    const float *scale = w->group >= w->rows ? NULL : w->scale + k / w->group * N;
    const int apart = TG_PANEL_VECTORS * (vnni ? 1 : 2);
    tg_ints panel[TG_QUADS * TG_PANEL_VECTORS * 2] = {{0}};
    ptrdiff_t j = 0;
    for (; j + TG_VECTOR_BYTES <= N; j += TG_VECTOR_BYTES, ahead += TG_VECTOR_BYTES * terms) {
        if (more) tg_fetch_weights(ahead, TG_VECTOR_BYTES * terms);
        if (M == 1) {
            tg_ints sum[TG_PANEL_VECTORS];
            if (terms == TG_SPAN_TERMS)
                tg_sums_of_columns(x, row + j, N, TG_SPAN_TERMS, sum, vnni);
            else
                tg_sums_of_columns(x, row + j, N, terms, sum, vnni);
            for (int v = 0; v < TG_PANEL_VECTORS; v++)
                tg_add_span(sum[v], x->scale[0], scale ? scale + j + v * TG_LANE : NULL, y + j + v * TG_LANE);
            continue;
        }
        if (terms == TG_SPAN_TERMS)
            tg_panel_of_rows(row + j, N, TG_SPAN_TERMS, panel, vnni);
        else
            tg_panel_of_rows(row + j, N, terms, panel, vnni);
        for (int v = 0; v < TG_PANEL_VECTORS; v += TG_SUM_VECTORS) {
            const ptrdiff_t at = j + v * TG_LANE;
            tg_panel_rows(x, M, panel + v * (vnni ? 1 : 2), apart, TG_SUM_VECTORS, scale ? scale + at : NULL, y + at,
                          pitch, vnni);
        }
    }
    if (j == N) return;
    /* The last columns, padded with zeros up to a panel, of which as many vectors are multiplied as y has room for. */
    int8_t last[TG_SPAN_TERMS * TG_VECTOR_BYTES] = {0};
    float scales[TG_VECTOR_BYTES] = {0};
    for (int i = 0; i < terms; i++) memcpy(last + i * TG_VECTOR_BYTES, row + i * N + j, (size_t)(N - j));
    if (scale) memcpy(scales, scale + j, (size_t)(N - j) * sizeof(float));
    tg_panel_of_rows(last, TG_VECTOR_BYTES, terms, panel, vnni);
    for (int v = 0; v * TG_LANE < N - j; v++)
        tg_panel_rows(x, M, panel + v * (vnni ? 1 : 2), apart, 1, scale ? scales + v * TG_LANE : NULL,
                      y + j + v * TG_LANE, pitch, vnni);
}

/* y (M, pitch) = x W over the rows k0 .. k1 - 1 of W, whole spans except at the end; M <= TG_ROWS_AT_ONCE. */
static void tg_integer_columns(const struct tg_matrix *w, const float *x, ptrdiff_t ldx, ptrdiff_t M, ptrdiff_t k0,
                               ptrdiff_t k1, float *y, ptrdiff_t pitch) {
    const ptrdiff_t most = tg_span_terms(w, w->rows);
    const int vnni = tg_has_vnni();
    struct tg_span span;
    memset(y, 0, (size_t)(M * pitch) * sizeof(float));
    for (ptrdiff_t k = k0; k < k1; k += most) {
        const int terms = (int)(k1 - k < most ? k1 - k : most);
        for (ptrdiff_t m = 0; m < M; m++) tg_round_row(x + m * ldx + k, terms, &span, m);
        const int more = k + terms < w->rows; /* also those of the next block, which this thread most likely multiplies next */
        if (k == k0) tg_fetch_weights((const int8_t *)w->weight + k * w->columns, terms * w->columns);
        if (vnni)
            tg_span_of_rows(w, &span, M, k, terms, more, y, pitch, 1);
        else
            tg_span_of_rows(w, &span, M, k, terms, more, y, pitch, 0);
    }
}

/* The transposed product ----------------------------------------------------------------------------------------- */

struct tg_integer_dots {
    const struct tg_matrix *matrix;
    const struct tg_span *x; /* the spans of up to TG_ROWS_AT_ONCE rows */
    float *y;
    ptrdiff_t M;
    int vnni;
};

/* The factors of `terms` terms of `count` <= TG_VECTOR_BYTES rows of W, K apart, padded with zeros. */
TG_INLINE void tg_panel_of_outputs(const int8_t *row, ptrdiff_t K, int count, int terms, tg_ints *panel, int vnni) {
    const int each = vnni ? 1 : 2;
    for (int v = 0; v * TG_LANE < count; v++) {
        tg_ints quads[TG_QUADS];
        if (terms == TG_SPAN_TERMS && (v + 1) * TG_LANE <= count) {
            tg_quads_of_outputs(row + v * TG_LANE * K, K, quads);
        } else {
            int8_t padded[TG_LANE * TG_SPAN_TERMS] = {0};
            for (int i = 0; i < TG_LANE && v * TG_LANE + i < count; i++)
                memcpy(padded + i * TG_SPAN_TERMS, row + (v * TG_LANE + i) * K, (size_t)terms);
            tg_quads_of_outputs(padded, TG_SPAN_TERMS, quads);
        }
        for (int q = 0; q < TG_QUADS; q++) tg_factors(quads[q], panel + (q * TG_PANEL_VECTORS + v) * each, vnni);
    }
}

/* y[:, n .. n + count - 1] for count <= TG_VECTOR_BYTES rows of W. */
TG_INLINE void tg_outputs_at(const struct tg_integer_dots *t, ptrdiff_t n, int count, int vnni) {
    const struct tg_matrix *w = t->matrix;
    const ptrdiff_t K = w->columns, N = w->rows, most = tg_span_terms(w, K), groups = (K + w->group - 1) / w->group;
    const int8_t *row = (const int8_t *)w->weight + n * K, *ahead = row + count * K;
    const int each = vnni ? 1 : 2, whole = w->group >= K;
    tg_ints panel[TG_QUADS * TG_PANEL_VECTORS * 2] = {{0}};
    float total[TG_ROWS_AT_ONCE * TG_VECTOR_BYTES], scale[TG_VECTOR_BYTES] = {0};
    memset(total, 0, (size_t)(t->M * TG_VECTOR_BYTES) * sizeof(float));
    for (ptrdiff_t k = 0, s = 0; k < K; k += most, s++) {
        const int terms = (int)(K - k < most ? K - k : most);
        tg_fetch_weights(ahead + k * count, terms * count);
        for (int i = 0; i < count && !whole; i++) scale[i] = w->scale[(n + i) * groups + k / w->group];
        if (t->M == 1 && count == TG_VECTOR_BYTES && terms == TG_SPAN_TERMS) {
            for (int v = 0; v < TG_PANEL_VECTORS; v++)
                tg_add_span(tg_sums_of_outputs(t->x + s, row + k + v * TG_LANE * K, K, vnni), t->x[s].scale[0],
                            whole ? NULL : scale + v * TG_LANE, total + v * TG_LANE);
            continue;
        }
        tg_panel_of_outputs(row + k, K, count, terms, panel, vnni);
        for (int v = 0; v * TG_LANE < count; v += TG_SUM_VECTORS)
            tg_panel_rows(t->x + s, t->M, panel + v * each, TG_PANEL_VECTORS * each, TG_SUM_VECTORS,
                          whole ? NULL : scale + v * TG_LANE, total + v * TG_LANE, TG_VECTOR_BYTES, vnni);
    }
    for (ptrdiff_t m = 0; m < t->M; m++)
        for (int i = 0; i < count; i++)
            t->y[m * N + n + i] = total[m * TG_VECTOR_BYTES + i] * (whole ? w->scale[n + i] : 1);
}

static void tg_outputs_chunk(void *task, ptrdiff_t begin, ptrdiff_t end) {
    const struct tg_integer_dots *t = task;
    for (ptrdiff_t n = begin; n < end; n += TG_VECTOR_BYTES) {
        const int count = (int)(end - n < TG_VECTOR_BYTES ? end - n : TG_VECTOR_BYTES);
        if (t->vnni)
            tg_outputs_at(t, n, count, 1);
        else
            tg_outputs_at(t, n, count, 0);
    }
}

/* How many spans the activations of a transposed product need room for. */
static ptrdiff_t tg_spans(const struct tg_matrix *w) {
    const ptrdiff_t most = tg_span_terms(w, w->columns);
    return (w->columns + most - 1) / most;
}

/* y (M, N) = x (M, K) W^T. spans: room for tg_spans(w). */
static void tg_integer_transposed(const struct tg_matrix *w, const float *x, ptrdiff_t M, float *y, struct tg_span *spans) {
    const ptrdiff_t K = w->columns, most = tg_span_terms(w, K);
    for (ptrdiff_t first = 0; first < M; first += TG_ROWS_AT_ONCE) {
        const ptrdiff_t rows = M - first < TG_ROWS_AT_ONCE ? M - first : TG_ROWS_AT_ONCE;
        for (ptrdiff_t k = 0; k < K; k += most)
            for (ptrdiff_t m = 0; m < rows; m++)
                tg_round_row(x + (first + m) * K + k, K - k < most ? K - k : most, spans + k / most, m);
        struct tg_integer_dots t = {w, spans, y + first * w->rows, rows, tg_has_vnni()};
        tg_parallel_for(tg_outputs_chunk, &t, w->rows, 1024);
    }
}

#endif
