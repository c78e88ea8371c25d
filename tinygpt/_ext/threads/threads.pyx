# The thread pool as Python sees it, and the memory allocator's habits.

cdef extern from *:
    """
    #include <stdlib.h>
    #ifdef __GLIBC__
    #include <malloc.h>
    /* A training step allocates and frees the same arrays over and over. By default glibc hands larger blocks back to the
     * system each time, which then clears every page anew: a tenth of a small model's step. Keep up to 1 GB instead. */
    static void tg_keep_freed_memory(void) {
        mallopt(M_MMAP_THRESHOLD, 32 << 20); /* the most that it takes */
        mallopt(M_TRIM_THRESHOLD, 1 << 30);
        mallopt(M_TOP_PAD, 16 << 20);
    }
    #else
    static void tg_keep_freed_memory(void) {}
    #endif
    """
    void tg_keep_freed_memory()

cdef bint adopted = False


def start_threads(int count, str library):
    """Start the team and offer it to the BLAS behind `library` (a loaded library that depends on it)."""
    global adopted
    tg_keep_freed_memory()
    tg_set_num_threads(count)
    adopted = tg_adopt_blas(library.encode()) == 1


def set_num_threads(int count):
    """Use `count` threads for the kernels and for the matrix products; returns how many there are."""
    return tg_set_num_threads(count)


def get_num_threads():
    return tg_get_num_threads()


def threads_report():
    """One phrase: how many threads, and whether the matrix products run on them too."""
    blas = "shared with the matrix products" if adopted else "the BLAS in use keeps its own threads"
    return f"{tg_get_num_threads()} threads, {blas}"
