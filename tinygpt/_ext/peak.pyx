# The float32 multiply-add peak of this processor at this level of instructions: peak.h.

import time

cdef extern from "peak.h" nogil:
    void tg_fma_chains(void *task, Py_ssize_t begin, Py_ssize_t end)
    double tg_fma_flops(Py_ssize_t turns)


def fma_peak(int trials=20):
    """The most float32 operations a second that all threads together reach: the best of `trials` short runs."""
    cdef Py_ssize_t turns = 200000, chunks = 4 * tg_get_num_threads()
    best = 0.0
    for _ in range(trials):
        start = time.perf_counter()
        with nogil:
            tg_parallel_for(tg_fma_chains, &turns, chunks, 1)
        best = max(best, chunks * tg_fma_flops(turns) / (time.perf_counter() - start))
    return best


cdef extern from "peak.h" nogil:
    float tg_read(const float *x, Py_ssize_t count)


cdef void read_parts(float *x, Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    (<float *> task.array[1])[begin] = tg_read(x + begin * task.size[0], task.size[0])


def read_sum(x):
    """The sum of a float32 array of any length, near enough, read by all threads: how fast memory can be read."""
    cdef Task task
    cdef Py_ssize_t parts = 64
    sums = numpy.empty(parts, numpy.float32)
    give(&task, (x, sums))
    task.size[0] = x.size // parts
    run(&task, <Rows> read_parts, <Rows> read_parts, x, parts, 1)
    return float(sums.sum())
