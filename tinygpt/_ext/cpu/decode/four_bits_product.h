/* y = x W for 4-bit weights and a few rows of x, as they are or rounded: panels are divided among the threads. */
#ifndef TINYGPT_FOUR_BITS_PRODUCT_H
#define TINYGPT_FOUR_BITS_PRODUCT_H

#include "four_bits.h"
#include "four_bits_rounded.h"

enum { TG_NOT_ROUNDED, TG_ROUNDED, TG_ROUNDED_VNNI };

struct tg_four {
    const struct tg_matrix *matrix;
    const float *x;
    ptrdiff_t ldx, M;
    float *y;
    ptrdiff_t pitch;
    struct tg_rounded_rows rounded; /* of matrices that round the activations */
};

/* `rows` rows of y from row m on, in the `panels` panels p, p + apart, p + 2 apart, ... */
TG_INLINE void tg_panels_at(const struct tg_four *t, ptrdiff_t m, int rows, ptrdiff_t p, ptrdiff_t apart, int panels,
                            int kind) {
    const ptrdiff_t K = t->matrix->rows, N = t->matrix->columns;
    const ptrdiff_t words = K / TG_NIBBLES * TG_PANEL, scales = K / TG_FOUR_GROUP * TG_PANEL; /* of a panel */
    tg_floats total[TG_MOST_SUMS];
    const uint32_t *weights = (const uint32_t *)t->matrix->weight + p * words;
    const uint16_t *of_weights = t->matrix->half_scale + p * scales;
    if (kind == TG_NOT_ROUNDED)
        tg_panel_sums(weights, of_weights, apart * words, apart * scales, t->x + m * t->ldx, t->ldx, K, rows, panels, total);
    else
        tg_rounded_sums(weights, of_weights, apart * words, apart * scales, &t->rounded, m, rows, panels, total,
                        kind == TG_ROUNDED_VNNI);
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < panels; i++) {
            const ptrdiff_t j = (p + i * apart) * TG_PANEL, count = N - j < TG_PANEL ? N - j : TG_PANEL;
            memcpy(t->y + (m + r) * t->pitch + j, total + (r * panels + i) * TG_PANEL_PARTS, (size_t)count * sizeof(float));
        }
}

/* All rows of y in some panels: as many rows together as possible, then what is left over. */
TG_INLINE void tg_four_panels_of(const struct tg_four *t, ptrdiff_t begin, ptrdiff_t end, int kind) {
    if (t->M == 1) {
        const ptrdiff_t apart = (end - begin) / TG_FOUR_PANELS;
        for (ptrdiff_t p = begin; p < begin + apart; p++) tg_panels_at(t, 0, 1, p, apart, TG_FOUR_PANELS, kind);
        for (ptrdiff_t p = begin + apart * TG_FOUR_PANELS; p < end; p++) tg_panels_at(t, 0, 1, p, 1, 1, kind);
        return;
    }
    for (ptrdiff_t p = begin; p < end; p++) {
        ptrdiff_t m = 0;
        for (; m + TG_FOUR_ROWS <= t->M; m += TG_FOUR_ROWS) tg_panels_at(t, m, TG_FOUR_ROWS, p, 1, 1, kind);
        for (; m + 2 <= t->M; m += 2) tg_panels_at(t, m, 2, p, 1, 1, kind);
        if (m < t->M) tg_panels_at(t, m, 1, p, 1, 1, kind);
    }
}

static void tg_four_panels(void *task, ptrdiff_t begin, ptrdiff_t end) {
    const struct tg_four *t = task;
    if (!t->matrix->rounded)
        tg_four_panels_of(t, begin, end, TG_NOT_ROUNDED);
    else if (tg_has_vnni())
        tg_four_panels_of(t, begin, end, TG_ROUNDED_VNNI);
    else
        tg_four_panels_of(t, begin, end, TG_ROUNDED);
}

/* y (M, pitch) = x W; the rows of x are ldx apart. room: tg_rounded_room floats, for a matrix that rounds activations. */
static void tg_four_product(const struct tg_matrix *matrix, const float *x, ptrdiff_t ldx, ptrdiff_t M, float *y,
                            ptrdiff_t pitch, float *room) {
    struct tg_four t = {matrix, x, ldx, M, y, pitch, {NULL}};
    if (matrix->rounded) t.rounded = tg_round_x(x, ldx, M, matrix->rows, room);
    tg_parallel_for(tg_four_panels, &t, (matrix->columns + TG_PANEL - 1) / TG_PANEL, 8);
}

#endif
