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
    enum:
        PRODUCT_ROWS
        PRODUCT_COLUMNS
        PRODUCT_STRIDE
        TG_BLOCK_DEPTH
    cdef struct tg_block_run:
        Py_ssize_t panels
        float *operands
        float *results
    Py_ssize_t tg_block_panels()
    double tg_block_flops(Py_ssize_t panels)
    Py_ssize_t tg_panel_size(Py_ssize_t depth)
    void tg_block_strips(void *task, Py_ssize_t begin, Py_ssize_t end)
    float *tg_memory_float(Py_ssize_t count)


def block_rate(double seconds=0.3):
    """Float32 operations a second of the matrix product's block on all threads, its operands in the caches: the most that a
    product can reach; and of the chains of fma_peak straight after it, before the clock has risen again. None where
    products are left to the BLAS library.

    The medians of 15 turns, one after the other without a pause: the clock takes milliseconds to fall."""
    if not TG_PRODUCT_PAYS:
        return None
    cdef Py_ssize_t turns = 50000, chunks = 4 * tg_get_num_threads()
    cdef tg_block_run task
    task.panels = tg_block_panels()
    cdef Py_ssize_t operands = PRODUCT_ROWS * PRODUCT_STRIDE + task.panels * tg_panel_size(TG_BLOCK_DEPTH)
    cdef float *memory = tg_memory_float(operands + chunks * PRODUCT_ROWS * task.panels * PRODUCT_COLUMNS)
    if memory == NULL:
        raise MemoryError("no memory for a block of a matrix product")
    memset(memory, 0, operands * sizeof(float))
    task.operands, task.results = memory, memory + operands
    block, chains = [], []
    for _ in range(15):
        runs, start = 0, time.perf_counter()
        while time.perf_counter() < start + seconds / 15:
            with nogil:
                tg_parallel_for(tg_block_strips, &task, chunks, 1)
            runs += 1
        end = time.perf_counter()
        with nogil:
            tg_parallel_for(tg_fma_chains, &turns, chunks, 1)
        block.append(runs * chunks * tg_block_flops(task.panels) / (end - start))
        chains.append(chunks * tg_fma_flops(turns) / (time.perf_counter() - end))
    free(memory)
    return sorted(block)[7], sorted(chains)[7]


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
