# Dropout: tinygpt/ops/dropout.py. Forward and backward both recompute the mask from its seed (dropout.pxi); it is never
# stored.

TAKES_BFLOAT16.add("dropout_apply")

cdef struct DropoutApply:
    void *x
    void *y
    Py_ssize_t C
    Dropout dropout


cdef void dropout_apply_rows(real *kind, DropoutApply *p, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *x = <real *> p.x
    cdef real *y = <real *> p.y
    cdef Py_ssize_t C = p.C, row, j
    for row in range(begin, end):
        dropout_mask(y + row * C, C, <uint64_t> row, &p.dropout)
        for j in range(C):
            y[row * C + j] *= x[row * C + j]


def dropout_apply(x, double p, uint64_t seed, uint64_t stream, uint64_t first_row=0):
    """x (N, C) -> x * mask / (1 - p)."""
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1]
    if not p < 1:
        return NotImplemented
    y = numpy.empty_like(x)
    cdef DropoutApply task = DropoutApply(
        x=memory(x), y=memory(y), C=C, dropout=Dropout(p=p, seed=seed, stream=stream, first_row=first_row)
    )
    cdef NarrowTask narrow = narrow_task(<Rows> dropout_apply_rows[float], &task, sizeof(task))
    if x.itemsize == 2:
        add_narrow(&narrow, &task.x, x, C, True, False)
        add_narrow(&narrow, &task.y, y, C, False, True)
        run_narrow(&narrow, N, grain_of(N, C * RANDOM))
    else:
        run(&task, <Rows> dropout_apply_rows[float], <Rows> dropout_apply_rows[double], x, N, grain_of(N, C * RANDOM))
    return y
