"""Which of the compiled levels this processor can run."""

cdef extern from "levels.h":
    int tg_has_avx2()
    int tg_has_avx512()

cdef extern from *:
    """
    #if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
    static int tg_has_native(void) {
        __builtin_cpu_init();
        return TG_NATIVE; /* from setup.py: what the flags of that build switched on */
    }
    #else
    static int tg_has_native(void) { return 1; }
    #endif
    """
    int tg_has_native()


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
