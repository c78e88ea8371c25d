# Softmax and log-softmax over rows: tinygpt/ops/softmax.py. The passes over a row are in softmax.pxi; between them the
# row stays in the cache.

cdef struct Softmax:
    void *x  # forward: x -> y
    void *y
    void *dy  # backward: dy, y -> dx
    void *dx
    Py_ssize_t C


cdef void softmax_forward_rows(real *kind, Softmax *p, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *x = <real *> p.x
    cdef real *y = <real *> p.y
    cdef Py_ssize_t C = p.C, start = begin, stop, row
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


cdef void log_softmax_forward_rows(real *kind, Softmax *p, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *x = <real *> p.x
    cdef real *y = <real *> p.y
    cdef Py_ssize_t C = p.C, start = begin, stop, row
    cdef real lse[2 * TOGETHER]  # in two parts: a single number loses digits if logits are large
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


cdef void softmax_backward_rows(real *kind, Softmax *p, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """dx = y * (dy - sum(dy * y))."""
    cdef real *dy = <real *> p.dy
    cdef real *y = <real *> p.y
    cdef real *dx = <real *> p.dx
    cdef Py_ssize_t C = p.C, start = begin, stop, row
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


cdef void log_softmax_backward_rows(real *kind, Softmax *p, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """dx = dy - exp(y) * sum(dy)."""
    cdef real *dy = <real *> p.dy
    cdef real *y = <real *> p.y
    cdef real *dx = <real *> p.dx
    cdef Py_ssize_t C = p.C, row
    cdef double total
    for row in range(begin, end):
        total = row_sum(dy + row * C, C)
        exp_scaled(y + row * C, dy + row * C, dx + row * C, C, <real> 0, <real> -total)


cdef object softmax_forward_of(Rows single, Rows double_, x):
    """Run a forward kernel over the rows of x (N, C)."""
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1]
    y = numpy.empty_like(x)
    cdef Softmax p = Softmax(x=memory(x), y=memory(y), dy=NULL, dx=NULL, C=C)
    run(&p, single, double_, x, N, grain_of(N, C * PLAIN))
    return y


cdef object softmax_backward_of(Rows single, Rows double_, dy, y):
    """Run a backward kernel over the rows of dy, y (N, C)."""
    cdef Py_ssize_t N = dy.shape[0], C = dy.shape[1]
    dx = numpy.empty_like(dy)
    cdef Softmax p = Softmax(x=NULL, y=memory(y), dy=memory(dy), dx=memory(dx), C=C)
    run(&p, single, double_, dy, N, grain_of(N, C * PLAIN))
    return dx


def softmax_forward(x):
    """x (N, C) -> y (N, C)."""
    return softmax_forward_of(<Rows> softmax_forward_rows[float], <Rows> softmax_forward_rows[double], x)


def softmax_backward(dy, y):
    """dy, y (N, C) -> dx (N, C)."""
    return softmax_backward_of(<Rows> softmax_backward_rows[float], <Rows> softmax_backward_rows[double], dy, y)


def log_softmax_forward(x):
    """x (N, C) -> y (N, C)."""
    return softmax_forward_of(<Rows> log_softmax_forward_rows[float], <Rows> log_softmax_forward_rows[double], x)


def log_softmax_backward(dy, y):
    """dy, y (N, C) -> dx (N, C)."""
    return softmax_backward_of(
        <Rows> log_softmax_backward_rows[float], <Rows> log_softmax_backward_rows[double], dy, y
    )
