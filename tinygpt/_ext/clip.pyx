# The sum of squares behind the gradient norm: tinygpt/optim/clip.py. One pass, double precision, fixed order.

cdef void sum_of_squares_spans(real *x, Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef double *sums = <double *> task.array[1]
    cdef Py_ssize_t n = task.size[0], span, i
    cdef double total
    for span in range(begin, end):
        total = 0
        for i in range(span * SPAN, min(n, (span + 1) * SPAN)):
            total += <double> x[i] * <double> x[i]
        sums[span] = total


def sum_of_squares(x):
    """x, any shape -> the sum of its squares, a float."""
    cdef Task task
    cdef Py_ssize_t n = x.size, spans = (n + SPAN - 1) // SPAN
    sums = numpy.empty(spans)
    give(&task, (x, sums))
    task.size[0] = n
    run(&task, <Rows> sum_of_squares_spans[float], <Rows> sum_of_squares_spans[double], x, spans, 4)
    return float(sums.sum())
