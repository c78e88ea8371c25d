"""Which of the compiled levels this processor can run."""

cdef extern from *:
    """
    #if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
    static int tg_has_avx2(void) {
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    }
    static int tg_has_avx512(void) {
        return tg_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
            && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    }
    static int tg_has_native(void) {
        __builtin_cpu_init();
        return TG_NATIVE; /* from setup.py: what the flags of that build switched on */
    }
    #else
    static int tg_has_native(void) { return 1; }
    static int tg_has_avx2(void) { return 0; }
    static int tg_has_avx512(void) { return 0; }
    #endif
    """
    int tg_has_native()
    int tg_has_avx2()
    int tg_has_avx512()


def supported():
    """The levels that this processor can run, such as ["native", "baseline", "avx2"]."""
    levels = ["baseline"]
    if tg_has_native():
        levels.append("native")
    if tg_has_avx2():
        levels.append("avx2")
    if tg_has_avx512():
        levels.append("avx512")
    return levels
