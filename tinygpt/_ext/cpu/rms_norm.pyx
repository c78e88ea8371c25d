# RMSNorm for the CPU. The mathematics is in tinygpt/ops/rms_norm.py.
#
# A row stays in the L1 cache between its two passes. Memory traffic: forward, one read of x and one write of y, 8 bytes
# per element in float32; backward, one read each of dy and x and one write of dx, 12 bytes. The sums over rows for
# dweight use rows.pxi.

cdef extern from "vmath.h" nogil:
    double tg_hidden_one()

cdef struct RMSNormForward:
    void *x
    void *weight
    void *y
    void *rstd
    Py_ssize_t C
    double eps

cdef struct RMSNormBackward:
    void *dy
    void *x
    void *weight
    void *rstd
    void *dx
    double *dweight
    Py_ssize_t N, C


cdef void rms_norm_forward_rows(real *kind, RMSNormForward *p, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *x = <real *> p.x
    cdef real *weight = <real *> p.weight
    cdef real *y = <real *> p.y
    cdef real *rstd = <real *> p.rstd
    cdef Py_ssize_t C = p.C, row, j
    cdef double squares, scale
    for row in range(begin, end):
        squares = 0
        for j in range(C):  # in double precision, because the square of a float may overflow a float
            squares += <double> x[row * C + j] * <double> x[row * C + j]
        scale = 1.0 / sqrt(squares / C + p.eps)
        rstd[row] = <real> scale
        for j in range(C):
            y[row * C + j] = <real> (x[row * C + j] * scale * weight[j])


def rms_norm_forward(x, weight, double eps):
    """x (N, C), weight (C,) -> y (N, C), rstd (N,)."""
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1]
    y, rstd = numpy.empty_like(x), numpy.empty(N, x.dtype)
    cdef RMSNormForward p = RMSNormForward(
        x=memory(x), weight=memory(weight), y=memory(y), rstd=memory(rstd), C=C, eps=eps
    )
    run(&p, <Rows> rms_norm_forward_rows[float], <Rows> rms_norm_forward_rows[double], x, N, grain_of(N, C * PLAIN))
    return y, rstd


cdef void rms_norm_backward_blocks(real *kind, RMSNormBackward *p, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *dy = <real *> p.dy
    cdef real *x = <real *> p.x
    cdef real *weight = <real *> p.weight
    cdef real *rstd = <real *> p.rstd
    cdef real *dx = <real *> p.dx
    cdef double *dweight
    cdef Py_ssize_t C = p.C, block, row, j, at
    cdef real scale, pull, norm, zero = <real> (tg_hidden_one() - 1)  # else the compiler may form dy * x, and overflow
    cdef double stretch
    for block in range(begin, end):
        clear_sums(p.dweight, block, C)
        dweight = p.dweight + block * C
        for row in range(block * BLOCK, min(p.N, (block + 1) * BLOCK)):
            at, scale, stretch = row * C, rstd[row], 0
            for j in range(C):
                stretch += <double> (dy[at + j] * weight[j]) * <double> (x[at + j] * scale)
            pull = <real> (stretch / C)
            for j in range(C):
                norm = x[at + j] * scale + zero
                dx[at + j] = scale * (dy[at + j] * weight[j] - norm * pull)
                dweight[j] += <double> (dy[at + j] * norm)


def rms_norm_backward(dy, x, weight, rstd):
    """dy, x (N, C), weight (C,), rstd (N,) -> dx (N, C), dweight (C,)."""
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1], blocks = blocks_of(N)
    dx, dweight = numpy.empty_like(x), numpy.empty((blocks, C))
    cdef RMSNormBackward p = RMSNormBackward(
        dy=memory(dy), x=memory(x), weight=memory(weight), rstd=memory(rstd), dx=memory(dx),
        dweight=<double *> memory(dweight), N=N, C=C,
    )
    run(&p, <Rows> rms_norm_backward_blocks[float], <Rows> rms_norm_backward_blocks[double], x, blocks, 1)
    return dx, add_blocks(dweight, x.dtype)
