/* Which levels of vector instructions this processor has: asked by levels.pyx at run time and by setup.py at build time. */
#ifndef TG_LEVELS_H
#define TG_LEVELS_H

#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
static int tg_has_avx2(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}
static int tg_has_avx512(void) {
    return tg_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#else
static int tg_has_avx2(void) { return 0; }
static int tg_has_avx512(void) { return 0; }
#endif

#endif
