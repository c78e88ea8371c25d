# Dropout: tinygpt/ops/dropout.py. The mask is recomputed from its seed, never stored, forward and backward alike.

cdef void dropout_apply_rows(real *x, Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *y = <real *> task.array[1]
    cdef Py_ssize_t C = task.size[0], row, j
    for row in range(begin, end):
        dropout_mask(y + row * C, C, <uint64_t> row, task, task.scalar[0])
        for j in range(C):
            y[row * C + j] *= x[row * C + j]


def dropout_apply(x, double p, uint64_t seed, uint64_t stream):
    """x (N, C) -> x * mask / (1 - p)."""
    cdef Task task
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1]
    if not p < 1:
        return NotImplemented
    y = numpy.empty_like(x)
    give(&task, (x, y))
    task.size[0] = C
    task.scalar[0] = p
    task.seed, task.stream = seed, stream
    run(&task, <Rows> dropout_apply_rows[float], <Rows> dropout_apply_rows[double], x, N, grain_of(N, C * 16))
    return y
