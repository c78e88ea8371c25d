# The thread pool as Python sees it.

cdef bint adopted = False


def start_threads(int count, str library):
    """Start the team and offer it to the BLAS behind `library` (a loaded library that depends on it)."""
    global adopted
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
