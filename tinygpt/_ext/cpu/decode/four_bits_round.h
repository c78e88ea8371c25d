/* Rounding weights to four bits: `round_columns` in tinygpt/ops/_four_bits.py, operation by operation, so that the bits are
 * the same. A product that is then added or subtracted is hidden from the compiler, which would make them one rounding.
 */
#ifndef TINYGPT_FOUR_BITS_ROUND_H
#define TINYGPT_FOUR_BITS_ROUND_H

#include "four_bits.h"

typedef tg_floats tg_group[TG_FOUR_GROUP]; /* the weights of a group in neighbouring columns, or their q */

TG_INLINE tg_floats tg_choose(tg_ints yes, tg_floats a, tg_floats b) {
    return (tg_floats)((yes & (tg_ints)a) | (~yes & (tg_ints)b));
}

TG_INLINE tg_floats tg_times(tg_floats a, tg_floats b) {
    tg_floats product = a * b;
    TG_BARRIER(product);
    return product;
}

/* The nearest whole number in -8 .. 7, ties to even. Adding 1.5 * 2^23 leaves no bits for a fraction. */
TG_INLINE tg_floats tg_whole(tg_floats x) {
    const tg_floats shift = 12582912.0f - (tg_floats){0}, least = -8.0f - (tg_floats){0}, most = 7.0f - (tg_floats){0};
    x += shift;
    TG_BARRIER(x);
    x -= shift;
    x = tg_choose(x < least, least, x);
    return tg_choose(x > most, most, x);
}

/* x, or the smallest normal number if x is smaller than that. */
TG_INLINE tg_floats tg_not_tiny(tg_floats x) {
    const tg_floats smallest = 0x1p-126f - (tg_floats){0};
    return tg_choose(tg_choose(x < 0, -x, x) < smallest, smallest, x);
}

/* x rounded to bfloat16, as a float. */
TG_INLINE tg_floats tg_to_bfloat16(tg_floats x) {
    const tg_words bits = (tg_words)x;
    return (tg_floats)((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16 << 16);
}

struct tg_rounded {
    tg_group q;
    tg_floats scale, error; /* error: the sum of squares, in units of the group's largest weight */
};

/* q and scale if the largest weight, `extreme`, should be `steps` scales away from zero. relative: weight / extreme. */
TG_INLINE void tg_round_with(const tg_floats *weight, const tg_floats *relative, tg_floats extreme, float steps,
                             struct tg_rounded *to) {
    tg_floats products = {0}, squares = {0}, error = {0};
    for (int k = 0; k < TG_FOUR_GROUP; k++) {
        const tg_floats q = tg_whole(tg_times(relative[k], -steps - (tg_floats){0}));
        products += tg_times(relative[k], q);
        squares += tg_times(q, q);
        TG_BARRIER(products);
        TG_BARRIER(squares);
    }
    const tg_floats ones = 1.0f - (tg_floats){0}, best = products / tg_choose(squares < ones, ones, squares);
    to->scale = tg_to_bfloat16(tg_not_tiny(tg_times(extreme, best)));
    const tg_floats part = to->scale / extreme;
    for (int k = 0; k < TG_FOUR_GROUP; k++) {
        to->q[k] = tg_whole(weight[k] / to->scale);
        const tg_floats difference = relative[k] - tg_times(to->q[k], part);
        error += tg_times(difference, difference);
        TG_BARRIER(error);
    }
    to->error = error;
}

/* The best of the candidates for a group in TG_LANE neighbouring columns; weights `apart` apart from term to term. */
static void tg_round_group(const float *weights, ptrdiff_t apart, const float *steps, int candidates, struct tg_rounded *best) {
    tg_group weight, relative;
    tg_floats most = *(const tg_floats *)weights, least = most;
    for (int k = 0; k < TG_FOUR_GROUP; k++) {
        weight[k] = *(const tg_floats *)(weights + k * apart);
        most = tg_choose(weight[k] > most, weight[k], most);
        least = tg_choose(weight[k] < least, weight[k], least);
    }
    const tg_floats extreme = tg_not_tiny(tg_choose(most > -least, most, least));
    for (int k = 0; k < TG_FOUR_GROUP; k++) relative[k] = weight[k] / extreme;
    tg_round_with(weight, relative, extreme, steps[0], best);
    for (int i = 1; i < candidates; i++) {
        struct tg_rounded other;
        tg_round_with(weight, relative, extreme, steps[i], &other);
        const tg_ints better = other.error < best->error;
        for (int k = 0; k < TG_FOUR_GROUP; k++) best->q[k] = tg_choose(better, other.q[k], best->q[k]);
        best->scale = tg_choose(better, other.scale, best->scale);
        best->error = tg_choose(better, other.error, best->error);
    }
}

struct tg_rounding {
    const float *weights; /* (K, N), N a multiple of TG_PANEL */
    ptrdiff_t K, N;
    const float *steps;
    int candidates;
    uint32_t *words;  /* (K / 8, N) */
    uint16_t *scales; /* (K / 32, N) */
};

static void tg_round_groups(void *task, ptrdiff_t begin, ptrdiff_t end) {
    const struct tg_rounding *t = task;
    for (ptrdiff_t g = begin; g < end; g++)
        for (ptrdiff_t j = 0; j < t->N; j += TG_LANE) {
            struct tg_rounded found;
            tg_round_group(t->weights + g * TG_FOUR_GROUP * t->N + j, t->N, t->steps, t->candidates, &found);
            const tg_words scale = (tg_words)found.scale >> 16;
            for (int i = 0; i < TG_LANE; i++) t->scales[g * t->N + j + i] = (uint16_t)scale[i];
            for (int word = 0; word < TG_FOUR_GROUP / TG_NIBBLES; word++) {
                tg_words packed = {0};
                for (int i = 0; i < TG_NIBBLES; i++) {
                    const int term = word * TG_NIBBLES + i / 2 + i % 2 * (TG_NIBBLES / 2);
                    packed |= ((tg_words)__builtin_convertvector(found.q[term], tg_ints) & 15) << 4 * i;
                }
                *(tg_words *)(t->words + (g * TG_FOUR_GROUP / TG_NIBBLES + word) * t->N + j) = packed;
            }
        }
}

static void tg_round_columns(const struct tg_rounding *t) {
    tg_parallel_for(tg_round_groups, (void *)t, t->K / TG_FOUR_GROUP, 1);
}

#endif
