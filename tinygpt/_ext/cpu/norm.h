/* LayerNorm of one row: the sums in double precision, the normalised row, and the sums of the backward pass. Included
 * once, by build/kernels.pyx.
 */
#ifndef TINYGPT_NORM_H
#define TINYGPT_NORM_H

#include "vmath.h"

/* (x - mean) * rstd, for a mean in two parts, near + rest, is TG_NORM(x, near / 4, 4 rstd, -rest * rstd). x - near
 * is exact whenever the mean is large compared with the deviation. x / 4 and near / 4 are exact too, and their
 * difference cannot overflow. The compiler must not see that the quarter is near / 4, or it would factor the 1/4 out
 * again. */
#define TG_NORM(type, x, quarter, scale, shift) (((x) * (type)0.25 - (quarter)) * (scale) + (shift))
static inline float tg_quarter_float(float near) {
    float quarter = near * 0.25f;
    TG_HIDE(quarter);
    return quarter;
}
static inline double tg_quarter_double(double near) {
    double quarter = near * 0.25;
    TG_HIDE(quarter);
    return quarter;
}

#define TG_ROW_SUMS(type)                                                                                           \
    /* the sum of x */                                                                                              \
    static inline double tg_sum_##type(const type *x, ptrdiff_t n) {                                               \
        tg_doubles sum[TG_SUMS] = {{0}};                                                                           \
        ptrdiff_t j = 0;                                                                                           \
        for (; j + TG_SUMS * TG_DOUBLES <= n; j += TG_SUMS * TG_DOUBLES)                                           \
            for (int s = 0; s < TG_SUMS; s++)                                                                      \
                sum[s] += tg_to_doubles_##type(*(const tg_some_##type *)(x + j + s * TG_DOUBLES));                 \
        double rest = 0;                                                                                           \
        for (; j < n; j++) rest += x[j];                                                                           \
        return tg_total(sum) + rest;                                                                               \
    }                                                                                                              \
    /* the sum of (x - mean)^2 */                                                                                  \
    static inline double tg_exact_square_deviations_##type(const type *x, ptrdiff_t n, double mean) {              \
        tg_doubles sum[TG_SUMS] = {{0}};                                                                           \
        ptrdiff_t j = 0;                                                                                           \
        for (; j + TG_SUMS * TG_DOUBLES <= n; j += TG_SUMS * TG_DOUBLES)                                           \
            for (int s = 0; s < TG_SUMS; s++) {                                                                    \
                const tg_doubles d = tg_to_doubles_##type(*(const tg_some_##type *)(x + j + s * TG_DOUBLES)) - mean; \
                sum[s] += d * d;                                                                                   \
            }                                                                                                      \
        double rest = 0;                                                                                           \
        for (; j < n; j++) rest += (x[j] - mean) * (x[j] - mean);                                                  \
        return tg_total(sum) + rest;                                                                               \
    }                                                                                                              \
    /* with norm = TG_NORM(x) and dnorm = dy * weight: the sums of dnorm and of dnorm * norm */                     \
    static inline void tg_norm_sums_##type(const type *dy, const type *x, const type *weight, ptrdiff_t n,         \
                                           type quarter, type scale, type rest, double *shift, double *stretch) {  \
        tg_doubles sum[TG_SUMS] = {{0}}, product[TG_SUMS] = {{0}};                                                 \
        ptrdiff_t j = 0;                                                                                           \
        for (; j + TG_SUMS * TG_DOUBLES <= n; j += TG_SUMS * TG_DOUBLES)                                           \
            for (int s = 0; s < TG_SUMS; s++) {                                                                    \
                const ptrdiff_t at = j + s * TG_DOUBLES;                                                           \
                const tg_some_##type norm = TG_NORM(type, *(const tg_some_##type *)(x + at), quarter, scale, rest); \
                const tg_some_##type dnorm = *(const tg_some_##type *)(dy + at) * *(const tg_some_##type *)(weight + at); \
                sum[s] += tg_to_doubles_##type(dnorm);                                                             \
                product[s] += tg_to_doubles_##type(dnorm * norm);                                                  \
            }                                                                                                      \
        *shift = tg_total(sum);                                                                                    \
        *stretch = tg_total(product);                                                                              \
        for (; j < n; j++) {                                                                                       \
            const type dnorm = dy[j] * weight[j];                                                                  \
            *shift += dnorm;                                                                                       \
            *stretch += dnorm * TG_NORM(type, x[j], quarter, scale, rest);                                         \
        }                                                                                                          \
    }
TG_ROW_SUMS(float)
TG_ROW_SUMS(double)

static inline double tg_square_deviations_double(const double *x, ptrdiff_t n, double mean) {
    return tg_exact_square_deviations_double(x, n, mean);
}

/* For floats, the deviations are taken from `near`, the float nearest to the mean, and the squares of eight vectors
 * are added up in single precision before they go into the sum in double precision. The end corrects for the
 * difference mean - near: the sum of (x - near)^2 is the sum of (x - mean)^2 plus n (mean - near)^2. If the squares
 * may have left the range of a float, everything is recomputed in double precision. */
static inline double tg_square_deviations_float(const float *x, ptrdiff_t n, double mean) {
    const float near = (float)mean;
    const double rest = mean - near;
    tg_doubles wide[TG_SUMS] = {{0}};
    ptrdiff_t j = 0;
    for (; j + 2 * TG_SUMS * TG_FLOATS <= n; j += 2 * TG_SUMS * TG_FLOATS) {
        tg_floats sum[TG_SUMS];
        for (int s = 0; s < TG_SUMS; s++) {
            const tg_floats a = *(const tg_floats *)(x + j + s * TG_FLOATS) - near;
            const tg_floats b = *(const tg_floats *)(x + j + (TG_SUMS + s) * TG_FLOATS) - near;
            sum[s] = a * a + b * b;
        }
        wide[0] += tg_widened((sum[0] + sum[1]) + (sum[2] + sum[3]));
    }
    double total = tg_total(wide);
    for (; j < n; j++) total += ((double)x[j] - near) * ((double)x[j] - near);
    if (!(total > 1e-30 * n && total < INFINITY)) return tg_exact_square_deviations_float(x, n, mean);
    return fmax(total - n * rest * rest, 0);
}

/* y = norm * weight + bias with norm = TG_NORM(x), bias a row or NULL. */
#define TG_NORMALIZED(type)                                                                                         \
    static inline void tg_normalized_##type(const type *x, const type *weight, const type *bias, type *y, ptrdiff_t n, \
                                            type quarter, type scale, type rest) {                                 \
        if (bias)                                                                                                  \
            for (ptrdiff_t j = 0; j < n; j++)                                                                      \
                y[j] = TG_NORM(type, x[j], quarter, scale, rest) * weight[j] + bias[j];                            \
        else                                                                                                       \
            for (ptrdiff_t j = 0; j < n; j++) y[j] = TG_NORM(type, x[j], quarter, scale, rest) * weight[j];        \
    }
TG_NORMALIZED(float)
TG_NORMALIZED(double)

#endif
