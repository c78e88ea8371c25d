# The sum of squares behind the gradient norm: tinygpt/optim/clip.py. One pass over all arrays together, double
# precision, fixed order.

cdef void sum_of_squares_span(real *x, Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """One span; its sum goes to the place of its number."""
    cdef double *sums = <double *> task.array[1]
    cdef Py_ssize_t i
    cdef double total = 0
    for i in range(begin, end):
        total += <double> x[i] * <double> x[i]
    sums[begin // SPAN] = total


def sum_of_squares_each(calls):
    """[(x,), ...] -> the sum of the squares of each x, floats."""
    cdef Task *tasks = tasks_for(len(calls))
    cdef Py_ssize_t i
    sums = [numpy.empty((x.size + SPAN - 1) // SPAN) for x, in calls]
    try:
        for i in range(len(sums)):
            x, = calls[i]
            give(&tasks[i], (x, sums[i]))
            tasks[i].size[0] = x.size
            tasks[i].rows = <Rows> sum_of_squares_span[float] if x.itemsize == 4 else <Rows> sum_of_squares_span[double]
        run_each(tasks, len(sums), SPAN)
    finally:
        free(tasks)
    return [float(parts.sum()) for parts in sums]


def sum_of_squares(x):
    """x, any shape -> the sum of its squares, a float."""
    return sum_of_squares_each([(x,)])[0]
