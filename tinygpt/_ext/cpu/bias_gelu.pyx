# Bias addition and GELU in one pass; the backward pass also sums the gradient of the bias: tinygpt/ops/bias_gelu.py.

TAKES_BFLOAT16.update(["bias_gelu_forward", "bias_gelu_backward"])

cdef struct BiasGelu:
    void *dy  # backward
    void *x
    void *bias
    void *out
    double *dbias  # backward
    Py_ssize_t C


cdef void bias_gelu_forward_rows(real *kind, BiasGelu *p, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *x = <real *> p.x
    cdef real *bias = <real *> p.bias
    cdef real *y = <real *> p.out
    cdef Py_ssize_t C = p.C, row, j
    for row in range(begin, end):
        for j in range(C):
            y[row * C + j] = gelu_value(x[row * C + j] + bias[j])


def bias_gelu_forward(x, bias):
    """x (N, C), bias (C,) -> gelu(x + bias) (N, C)."""
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1]
    y, bias = numpy.empty_like(x), wide(bias)
    cdef BiasGelu p = BiasGelu(dy=NULL, x=memory(x), bias=memory(bias), out=memory(y), dbias=NULL, C=C)
    cdef NarrowTask narrow = narrow_task(<Rows> bias_gelu_forward_rows[float], &p, sizeof(p))
    if x.itemsize == 2:
        add_narrow(&narrow, &p.x, x, C, True, False)
        add_narrow(&narrow, &p.out, y, C, False, True)
        run_narrow(&narrow, N, grain_of(N, C * PLAIN))
    else:
        run(&p, <Rows> bias_gelu_forward_rows[float], <Rows> bias_gelu_forward_rows[double], x, N,
            grain_of(N, C * PLAIN))
    return y


cdef void bias_gelu_backward_rows(real *kind, BiasGelu *p, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *dy = <real *> p.dy
    cdef real *x = <real *> p.x
    cdef real *bias = <real *> p.bias
    cdef real *dx = <real *> p.out
    cdef double *dbias = p.dbias
    cdef Py_ssize_t C = p.C, block, row, j, at
    for row in range(begin, end):
        at, block = row * C, row // BLOCK
        if row % BLOCK == 0:
            clear_sums(dbias, block, C)
        for j in range(C):
            dx[at + j] = dy[at + j] * gelu_slope(x[at + j] + bias[j])
        for j in range(C):
            dbias[block * C + j] += dx[at + j]


def bias_gelu_backward(dy, x, bias, out=None):
    """dy, x (N, C), bias (C,) -> dx (N, C), in `out` if given, which may be dy; dbias (C,)."""
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1], blocks = blocks_of(N)
    dx, sums, bias = numpy.empty_like(x) if out is None else out, numpy.empty((blocks, C)), wide(bias)
    cdef BiasGelu p = BiasGelu(
        dy=memory(dy), x=memory(x), bias=memory(bias), out=memory(dx), dbias=<double *> memory(sums), C=C
    )
    cdef NarrowTask narrow = narrow_task(<Rows> bias_gelu_backward_rows[float], &p, sizeof(p))
    if x.itemsize == 2:
        add_narrow(&narrow, &p.dy, dy, C, True, False)
        add_narrow(&narrow, &p.x, x, C, True, False)
        add_narrow(&narrow, &p.out, dx, C, False, True)
        run_narrow(&narrow, N, BLOCK)
    else:
        run(&p, <Rows> bias_gelu_backward_rows[float], <Rows> bias_gelu_backward_rows[double], x, N, BLOCK)
    return dx, add_blocks(sums, statistics_of(x))
