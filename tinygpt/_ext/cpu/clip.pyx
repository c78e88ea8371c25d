# The sum of squares for the gradient norm: tinygpt/optim/clip.py. One pass over all arrays together, in double
# precision and in a fixed order.

cdef struct SumOfSquares:
    void *x
    double *sums


cdef void sum_of_squares_span(real *kind, SumOfSquares *p, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """The sum of squares of one span, stored at the span's index."""
    cdef real *x = <real *> p.x
    cdef Py_ssize_t i
    cdef double total = 0
    for i in range(begin, end):
        total += <double> x[i] * <double> x[i]
    p.sums[begin // SPAN] = total


def sum_of_squares_each(calls):
    """[(x,), ...] -> the sum of squares of each x, as Python floats."""
    cdef Spans *spans = NULL
    cdef SumOfSquares *tasks = NULL
    cdef Py_ssize_t i
    sums = [numpy.empty((x.size + SPAN - 1) // SPAN) for x, in calls]
    try:
        spans = <Spans *> room_for(len(sums), sizeof(Spans))
        tasks = <SumOfSquares *> room_for(len(sums), sizeof(SumOfSquares))
        for i in range(len(sums)):
            x, = calls[i]
            tasks[i].x, tasks[i].sums = memory(x), <double *> memory(sums[i])
            spans[i].rows = <Rows> sum_of_squares_span[float] if x.itemsize == 4 else <Rows> sum_of_squares_span[double]
            spans[i].task, spans[i].size = &tasks[i], x.size
        run_each(spans, len(sums))
    finally:
        free(spans)
        free(tasks)
    return [float(parts.sum()) for parts in sums]


def sum_of_squares(x):
    """x, any shape -> its sum of squares, a Python float."""
    return sum_of_squares_each([(x,)])[0]
