# Bias addition and GELU in one pass; the backward pass also sums the gradient of the bias: tinygpt/ops/bias_gelu.py.

cdef struct BiasGelu:
    void *dy  # backward
    void *x
    void *bias
    void *out
    double *dbias  # backward
    Py_ssize_t N, C


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
    y = numpy.empty_like(x)
    cdef BiasGelu p = BiasGelu(dy=NULL, x=memory(x), bias=memory(bias), out=memory(y), dbias=NULL, N=N, C=C)
    run(&p, <Rows> bias_gelu_forward_rows[float], <Rows> bias_gelu_forward_rows[double], x, N, grain_of(N, C * PLAIN))
    return y


cdef void bias_gelu_backward_blocks(real *kind, BiasGelu *p, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *dy = <real *> p.dy
    cdef real *x = <real *> p.x
    cdef real *bias = <real *> p.bias
    cdef real *dx = <real *> p.out
    cdef double *dbias = p.dbias
    cdef Py_ssize_t C = p.C, N = p.N, block, row, j, at
    for block in range(begin, end):
        clear_sums(dbias, block, C)
        for row in range(block * BLOCK, min(N, (block + 1) * BLOCK)):
            at = row * C
            for j in range(C):
                dx[at + j] = dy[at + j] * gelu_slope(x[at + j] + bias[j])
            for j in range(C):
                dbias[block * C + j] += dx[at + j]


def bias_gelu_backward(dy, x, bias, out=None):
    """dy, x (N, C), bias (C,) -> dx (N, C), in `out` if given, which may be dy; dbias (C,)."""
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1], blocks = blocks_of(N)
    dx, sums = numpy.empty_like(x) if out is None else out, numpy.empty((blocks, C))
    cdef BiasGelu p = BiasGelu(
        dy=memory(dy), x=memory(x), bias=memory(bias), out=memory(dx), dbias=<double *> memory(sums), N=N, C=C
    )
    run(&p, <Rows> bias_gelu_backward_blocks[float], <Rows> bias_gelu_backward_blocks[double], x, blocks, 1)
    return dx, add_blocks(sums, x.dtype)
