# The Python interface of the thread pool, and settings of the memory allocator.

cdef extern from *:
    """
    #include <stdlib.h>
    #ifdef __GLIBC__
    #include <malloc.h>
    /* A training step allocates and frees the same arrays over and over. By default glibc returns larger blocks to the
     * system each time, which then has to clear every page again: a tenth of a small model's step. Keep up to 1 GB. */
    static void tg_keep_freed_memory(void) {
        mallopt(M_MMAP_THRESHOLD, 32 << 20); /* the maximum that glibc accepts */
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
    """Start the threads and offer them to the BLAS that `library`, a loaded library, depends on."""
    global adopted
    tg_keep_freed_memory()
    tg_set_num_threads(count)
    adopted = tg_adopt_blas(library.encode()) == 1


def set_num_threads(int count):
    """Use `count` threads for the kernels and the matrix products; returns the actual number."""
    return tg_set_num_threads(count)


def get_num_threads():
    return tg_get_num_threads()


def threads_report():
    """A phrase that says how many threads there are, and whether the matrix products run on them too."""
    blas = "shared with the matrix products" if adopted else "the BLAS in use keeps its own threads"
    return f"{tg_get_num_threads()} threads, {blas}"


def moves():
    """How often a thread has left a core that it shared with another one of the team. Always 0 except on Linux."""
    return tg_moves()


def sendings():
    """How often the caller has sent a worker that did not get to run to other cores than its own. 0 except on Linux."""
    return tg_sendings()
