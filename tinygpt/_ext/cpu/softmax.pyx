# Softmax and its logarithm over rows: tinygpt/ops/softmax.py. A row stays in the cache between its passes.
#
# What is done to one row is in rows.h. Each step of a short row waits for the one before: the largest value, the sum of
# exponentials, its logarithm. So a step is taken for TOGETHER short rows before the next one.

cdef extern from "rows.h" nogil:
    double tg_exp_sum_float(const float *x, float *y, Py_ssize_t n, float shift)
    double tg_exp_sum_double(const double *x, double *y, Py_ssize_t n, double shift)
    void tg_exp_scaled_float(const float *x, const float *add, float *y, Py_ssize_t n, float shift, float factor)
    void tg_exp_scaled_double(const double *x, const double *add, double *y, Py_ssize_t n, double shift, double factor)
    void tg_scale_float(float *y, Py_ssize_t n, float factor)
    void tg_scale_double(double *y, Py_ssize_t n, double factor)
    void tg_deviations_float(const float *x, float *y, Py_ssize_t n, float near, float rest)
    void tg_deviations_double(const double *x, double *y, Py_ssize_t n, double near, double rest)
    double tg_dot_float(const float *a, const float *b, Py_ssize_t n)
    double tg_dot_double(const double *a, const double *b, Py_ssize_t n)
    void tg_weighed_float(const float *x, const float *weight, float *y, Py_ssize_t n, float mean)
    void tg_weighed_double(const double *x, const double *weight, double *y, Py_ssize_t n, double mean)

cdef enum:
    TOGETHER = 8  # rows
    SHORT = 1024  # numbers: so many rows of so many still fit the first cache


cdef inline Py_ssize_t after_these(Py_ssize_t row, Py_ssize_t end, Py_ssize_t C) noexcept nogil:
    """The end of the rows that take their steps together with `row`."""
    return min(end, row + TOGETHER) if C <= SHORT else row + 1


cdef inline real row_max(real *x, Py_ssize_t n) noexcept nogil:
    if real is float:
        return tg_largest_float(x, n, x[0])
    else:
        return tg_largest_double(x, n, x[0])


cdef inline double exp_sum(real *x, real *y, Py_ssize_t n, real shift) noexcept nogil:
    """The sum of exp(x - shift) over a row; the exponentials go to y, unless that is NULL."""
    if real is float:
        return tg_exp_sum_float(x, y, n, shift)
    else:
        return tg_exp_sum_double(x, y, n, shift)


cdef inline void exp_scaled(real *x, real *add, real *y, Py_ssize_t n, real shift, real factor) noexcept nogil:
    """y = add + exp(x - shift) * factor over a row; add may be NULL."""
    if real is float:
        tg_exp_scaled_float(x, add, y, n, shift, factor)
    else:
        tg_exp_scaled_double(x, add, y, n, shift, factor)


cdef void softmax_forward_rows(real *x, Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *y = <real *> task.array[1]
    cdef Py_ssize_t C = task.size[0], start = begin, stop, row
    cdef real top[TOGETHER]
    cdef double total[TOGETHER]
    while start < end:
        stop = after_these(start, end, C)
        for row in range(start, stop):
            top[row - start] = row_max(x + row * C, C)
        for row in range(start, stop):
            total[row - start] = exp_sum(x + row * C, y + row * C, C, top[row - start])
        for row in range(start, stop):
            if real is float:
                tg_scale_float(y + row * C, C, <real> (1 / total[row - start]))
            else:
                tg_scale_double(y + row * C, C, 1 / total[row - start])
        start = stop


cdef void log_softmax_forward_rows(real *x, Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *y = <real *> task.array[1]
    cdef Py_ssize_t C = task.size[0], start = begin, stop, row
    cdef real lse[2 * TOGETHER]  # in two parts: one would lose its digits beside a large logit
    cdef real *parts
    while start < end:
        stop = after_these(start, end, C)
        log_sum_exps(x + start * C, stop - start, C, lse)
        for row in range(start, stop):
            parts = lse + 2 * (row - start)
            if real is float:
                tg_deviations_float(x + row * C, y + row * C, C, parts[0], parts[1])
            else:
                tg_deviations_double(x + row * C, y + row * C, C, parts[0], parts[1])
        start = stop


cdef void softmax_backward_rows(real *dy, Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """dx = y * (dy - sum(dy * y))."""
    cdef real *y = <real *> task.array[1]
    cdef real *dx = <real *> task.array[2]
    cdef Py_ssize_t C = task.size[0], start = begin, stop, row
    cdef real total[TOGETHER]
    while start < end:
        stop = after_these(start, end, C)
        for row in range(start, stop):
            if real is float:
                total[row - start] = <real> tg_dot_float(dy + row * C, y + row * C, C)
            else:
                total[row - start] = tg_dot_double(dy + row * C, y + row * C, C)
        for row in range(start, stop):
            if real is float:
                tg_weighed_float(dy + row * C, y + row * C, dx + row * C, C, total[row - start])
            else:
                tg_weighed_double(dy + row * C, y + row * C, dx + row * C, C, total[row - start])
        start = stop


cdef void log_softmax_backward_rows(real *dy, Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """dx = dy - exp(y) * sum(dy)."""
    cdef real *y = <real *> task.array[1]
    cdef real *dx = <real *> task.array[2]
    cdef Py_ssize_t C = task.size[0], row
    cdef double total
    for row in range(begin, end):
        if real is float:
            total = tg_sum_float(dy + row * C, C)
        else:
            total = tg_sum_double(dy + row * C, C)
        exp_scaled(y + row * C, dy + row * C, dx + row * C, C, <real> 0, <real> -total)


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
