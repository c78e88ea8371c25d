# Softmax and its logarithm over rows: tinygpt/ops/softmax.py. A row stays in the cache between its passes.

cdef inline real row_max(real *x, Py_ssize_t n) noexcept nogil:
    if real is float:
        return tg_largest_float(x, n, x[0])
    else:
        return tg_largest_double(x, n, x[0])


cdef void softmax_forward_rows(real *x, Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *y = <real *> task.array[1]
    cdef Py_ssize_t C = task.size[0], row, j
    cdef real top, inverse
    cdef double total
    for row in range(begin, end):
        top = row_max(x + row * C, C)
        total = 0
        for j in range(C):
            y[row * C + j] = vexp(x[row * C + j] - top)
            total += y[row * C + j]
        inverse = <real> (1 / total)
        for j in range(C):
            y[row * C + j] *= inverse


cdef void log_softmax_forward_rows(real *x, Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *y = <real *> task.array[1]
    cdef Py_ssize_t C = task.size[0], row, j
    cdef real top
    cdef double total, lse
    for row in range(begin, end):
        top = row_max(x + row * C, C)
        total = 0
        for j in range(C):
            total += vexp(x[row * C + j] - top)
        lse = top + log(total)  # in float32 it would lose the logarithm's digits beside a large top
        for j in range(C):
            y[row * C + j] = deviation(x[row * C + j], lse)


cdef void softmax_backward_rows(real *dy, Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """dx = y * (dy - sum(dy * y))."""
    cdef real *y = <real *> task.array[1]
    cdef real *dx = <real *> task.array[2]
    cdef Py_ssize_t C = task.size[0], row, j
    cdef double total
    cdef real projection
    for row in range(begin, end):
        total = 0
        for j in range(C):
            total += dy[row * C + j] * y[row * C + j]
        projection = <real> total
        for j in range(C):
            dx[row * C + j] = y[row * C + j] * (dy[row * C + j] - projection)


cdef void log_softmax_backward_rows(real *dy, Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """dx = dy - exp(y) * sum(dy)."""
    cdef real *y = <real *> task.array[1]
    cdef real *dx = <real *> task.array[2]
    cdef Py_ssize_t C = task.size[0], row, j
    cdef double total
    cdef real projection
    for row in range(begin, end):
        total = 0
        for j in range(C):
            total += dy[row * C + j]
        projection = <real> total
        for j in range(C):
            dx[row * C + j] = dy[row * C + j] - vexp(y[row * C + j]) * projection


cdef object map_rows(Rows single, Rows double_, tuple inputs):
    """Run a kernel over the rows of the inputs (N, C) into a new array of their shape."""
    cdef Task task
    cdef Py_ssize_t N = inputs[0].shape[0], C = inputs[0].shape[1]
    out = numpy.empty_like(inputs[0])
    give(&task, inputs + (out,))
    task.size[0] = C
    run(&task, single, double_, out, N, grain_of(N, C * 4))
    return out


def softmax_forward(x):
    """x (N, C) -> y (N, C)."""
    return map_rows(<Rows> softmax_forward_rows[float], <Rows> softmax_forward_rows[double], (x,))


def softmax_backward(dy, y):
    """dy, y (N, C) -> dx (N, C)."""
    return map_rows(<Rows> softmax_backward_rows[float], <Rows> softmax_backward_rows[double], (dy, y))


def log_softmax_forward(x):
    """x (N, C) -> y (N, C)."""
    return map_rows(<Rows> log_softmax_forward_rows[float], <Rows> log_softmax_forward_rows[double], (x,))


def log_softmax_backward(dy, y):
    """dy, y (N, C) -> dx (N, C)."""
    return map_rows(<Rows> log_softmax_backward_rows[float], <Rows> log_softmax_backward_rows[double], (dy, y))
