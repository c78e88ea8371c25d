/* The backward pass of GELU in two forms, for benchmarks/kernel_steps.py, which compiles this file several times.
 *
 * plain: one pass over memory, with the C library's expf, a call for each element.
 * inlined: the same with an exp that has no call and no branch, so the compiler may compute 4, 8 or 16 elements at once.
 *
 * The mathematics is in tinygpt/ops/gelu.py. */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define C 0.7978845608028654f /* sqrt(2 / pi) */
#define A 0.044715f

void plain(const float *dy, const float *x, float *dx, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float v = x[i], square = v * v, u = C * v * (1 + A * square);
        float t = expf(-2 * fabsf(u)), r = 1 / (1 + t), s = (v < 0 ? t : 1) * r;
        dx[i] = dy[i] * (s + v * (2 * (t * r * r) * (C * (1 + 3 * A * square))));
    }
}

/* exp(x) for x <= 0: 2^n * exp(r) with n = round(x / ln 2), and a Taylor series for exp(r), |r| <= ln(2) / 2. */
static inline float small_exp(float x) {
    x = x < -87 ? -87 : x;
    float n = rintf(x * 1.44269504f), r = x - n * 0.693147182f;
    float p = 1 + r * (1 + r * (1.0f / 2 + r * (1.0f / 6 + r * (1.0f / 24 + r * (1.0f / 120 + r * (1.0f / 720))))));
    uint32_t bits = (uint32_t)((int32_t)n + 127) << 23; /* the bits of 2^n */
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

void inlined(const float *restrict dy, const float *restrict x, float *restrict dx, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float v = x[i], square = v * v, u = C * v * (1 + A * square);
        float t = small_exp(-2 * fabsf(u)), r = 1 / (1 + t), s = (v < 0 ? t : 1) * r;
        dx[i] = dy[i] * (s + v * (2 * (t * r * r) * (C * (1 + 3 * A * square))));
    }
}
