/* Products of 4-bit weights with activations rounded to 8 bits, by integer arithmetic: `integer_product` in
 * tinygpt/ops/_integer_product.py, with the same bits. A group of weights and a span of activations are the same 32 terms.
 *
 * With 8 added, the four low or high halves of a word's bytes are a quad of unsigned bytes, which processors multiply by
 * signed ones: AVX512-VNNI four terms in an instruction, AVX2 and AVX-512 in two, in 16-bit sums, which the 32 terms
 * can't overflow (8 * 2 * 15 * 127 < 2^15). The initial value of the sum corrects for the 8. So 128 weights take five
 * instructions to unpack and two to multiply, while float32 takes sixteen and eight.
 */
#ifndef TINYGPT_FOUR_BITS_ROUNDED_H
#define TINYGPT_FOUR_BITS_ROUNDED_H

#include "four_bits.h"
#include "integer_tile.h"

enum { TG_GROUP_QUADS = TG_FOUR_GROUP / 4 };

/* Rounded activations: M rows of K bytes, and for each group its scale and the start of its sums. */
struct tg_rounded_rows {
    int8_t *bytes;
    int32_t *start;
    float *scale;
    ptrdiff_t K;
};

/* Floats of room for the rounded activations of M rows of K terms. */
static inline ptrdiff_t tg_rounded_room(ptrdiff_t M, ptrdiff_t K) { return M * (K / 4 + 2 * (K / TG_FOUR_GROUP)); }

static struct tg_rounded_rows tg_rounded_rows_in(float *room, ptrdiff_t M, ptrdiff_t K) {
    const ptrdiff_t spans = M * (K / TG_FOUR_GROUP);
    return (struct tg_rounded_rows){(int8_t *)(room + 2 * spans), (int32_t *)room, room + spans, K};
}

/* The eight quads of a group in TG_LANE columns, 8 added to each weight. */
TG_INLINE void tg_four_quads(const uint32_t *words, tg_words *quads) {
#pragma GCC unroll 4
    for (int i = 0; i < TG_GROUP_QUADS; i += 2) {
        const tg_words packed = *(const tg_words *)(words + i / 2 * TG_PANEL) ^ 0x88888888;
        quads[i] = packed & 0x0F0F0F0F;
        quads[i + 1] = packed >> 4 & 0x0F0F0F0F;
    }
}

/* start + the sums over a group's quads, times 32 bytes x. */
TG_INLINE tg_ints tg_four_dots(const tg_words *quads, const int8_t *x, int32_t start, int vnni) {
    tg_ints sum = start + (tg_ints){0};
#if defined(__AVX512BW__)
    if (vnni) {
#pragma GCC unroll 8
        for (int i = 0; i < TG_GROUP_QUADS; i++)
            __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(quads[i]), "v"(tg_everywhere(x + 4 * i)));
        return sum;
    }
#endif
#if defined(__AVX2__)
    tg_shorts pairs = {0};
#pragma GCC unroll 8
    for (int i = 0; i < TG_GROUP_QUADS; i++) {
        const tg_ints terms = tg_everywhere(x + 4 * i);
#if defined(__AVX512BW__)
        pairs += (tg_shorts)_mm512_maddubs_epi16((__m512i)quads[i], (__m512i)terms);
#else
        pairs += (tg_shorts)_mm256_maddubs_epi16((__m256i)quads[i], (__m256i)terms);
#endif
    }
    const tg_shorts ones = 1 - (tg_shorts){0};
    return sum + tg_dot_pairs((tg_ints)pairs, (tg_ints)ones);
#else
    for (int i = 0; i < TG_GROUP_QUADS; i++)
        for (int j = 0; j < 4; j++) sum += (tg_ints)(quads[i] >> 8 * j & 255) * x[4 * i + j];
    return sum;
#endif
}

/* As tg_panel_sums, for `rows` rounded rows from row m on. */
TG_INLINE void tg_rounded_sums(const uint32_t *words, const uint16_t *scales, ptrdiff_t apart, ptrdiff_t scales_apart,
                               const struct tg_rounded_rows *x, ptrdiff_t m, int rows, int panels, tg_floats *total,
                               int vnni) {
    const int vectors = panels * TG_PANEL_PARTS;
    const ptrdiff_t spans = x->K / TG_FOUR_GROUP;
#pragma GCC unroll 8
    for (int i = 0; i < rows * vectors; i++) total[i] = (tg_floats){0};
    for (ptrdiff_t s = 0; s < spans; s++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            const ptrdiff_t column = v % TG_PANEL_PARTS * TG_LANE;
            tg_words quads[TG_GROUP_QUADS];
            tg_four_quads(words + v / TG_PANEL_PARTS * apart + s * (TG_FOUR_GROUP / TG_NIBBLES) * TG_PANEL + column, quads);
            const tg_floats scale = tg_half_scales(scales + v / TG_PANEL_PARTS * scales_apart + s * TG_PANEL + column);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                const ptrdiff_t row = m + r, span = row * spans + s;
                const tg_ints sum = tg_four_dots(quads, x->bytes + row * x->K + s * TG_FOUR_GROUP, x->start[span], vnni);
                tg_floats part = __builtin_convertvector(sum, tg_floats) * x->scale[span];
                TG_BARRIER(part);
                part *= scale;
                TG_BARRIER(part);
                total[r * vectors + v] += part;
            }
        }
}

struct tg_rounding_rows {
    struct tg_rounded_rows rows;
    const float *x;
    ptrdiff_t ldx;
};

static void tg_round_groups_of_x(void *task, ptrdiff_t begin, ptrdiff_t end) {
    const struct tg_rounding_rows *t = task;
    const ptrdiff_t spans = t->rows.K / TG_FOUR_GROUP;
    struct tg_span span;
    for (ptrdiff_t i = begin; i < end; i++) {
        tg_round_row(t->x + i / spans * t->ldx + i % spans * TG_FOUR_GROUP, TG_FOUR_GROUP, &span, 0);
        memcpy(t->rows.bytes + i * TG_FOUR_GROUP, span.quads[0], TG_FOUR_GROUP);
        t->rows.start[i] = span.start[0] / 128 * 8; /* computed for an offset of 128 */
        t->rows.scale[i] = span.scale[0];
    }
}

/* Round M rows of x, ldx apart, into `room`. */
static struct tg_rounded_rows tg_round_x(const float *x, ptrdiff_t ldx, ptrdiff_t M, ptrdiff_t K, float *room) {
    struct tg_rounding_rows t = {tg_rounded_rows_in(room, M, K), x, ldx};
    tg_parallel_for(tg_round_groups_of_x, &t, M * (K / TG_FOUR_GROUP), 256);
    return t.rows;
}

#endif
