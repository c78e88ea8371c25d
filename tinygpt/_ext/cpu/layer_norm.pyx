# LayerNorm for the CPU. The mathematics is in tinygpt/ops/layer_norm.py.
#
# Forward: each row is read three times (mean, variance, result), but stays in the L1 cache, so memory traffic is one
# read of x and one write of y: 8 bytes per element in float32.
# Backward: memory traffic is one read each of dy and x and one write of dx. The sums over rows for dweight and dbias
# use rows.pxi. The loops over a row are in normalize.pxi. In bfloat16 half of the bytes: narrow.pxi.

TAKES_BFLOAT16.update(["layer_norm_forward", "layer_norm_backward"])

cdef struct LayerNormForward:
    void *x
    void *weight
    void *bias
    void *y
    void *mean
    void *rstd
    Py_ssize_t C
    double eps

cdef struct LayerNormBackward:
    void *dy
    void *x
    void *weight
    void *mean
    void *rstd
    void *dx
    double *dweight
    double *dbias
    Py_ssize_t C


cdef void layer_norm_forward_rows(real *kind, LayerNormForward *p, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *x = <real *> p.x
    cdef real *y = <real *> p.y
    cdef real *mean = <real *> p.mean
    cdef real *rstd = <real *> p.rstd
    cdef Py_ssize_t C = p.C, row = begin
    while row < end:
        normalize_rows(x + row * C, min(NEAR, end - row), <real *> p.weight, <real *> p.bias, y + row * C,
                       mean + 2 * row, rstd + row, C, p.eps)
        row += NEAR


def layer_norm_forward(x, weight, bias, double eps):
    """x (N, C), weight (C,), bias (C,) or None -> y (N, C), mean (N, 2), rstd (N,)."""
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1]
    weight, bias = wide(weight), wide(bias)
    y, mean, rstd = numpy.empty_like(x), numpy.empty((N, 2), statistics_of(x)), numpy.empty(N, statistics_of(x))
    cdef LayerNormForward p = LayerNormForward(
        x=memory(x), weight=memory(weight), bias=memory(bias), y=memory(y), mean=memory(mean), rstd=memory(rstd),
        C=C, eps=eps,
    )
    cdef NarrowTask narrow = narrow_task(<Rows> layer_norm_forward_rows[float], &p, sizeof(p))
    if x.itemsize == 2:
        add_narrow(&narrow, &p.x, x, C, True, False)
        add_narrow(&narrow, &p.y, y, C, False, True)
        run_narrow(&narrow, N, grain_of(N, C * PLAIN))
    else:
        run(&p, <Rows> layer_norm_forward_rows[float], <Rows> layer_norm_forward_rows[double], x, N,
            grain_of(N, C * PLAIN))
    return y, mean, rstd


cdef void layer_norm_backward_rows(real *kind, LayerNormBackward *p, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *dy = <real *> p.dy
    cdef real *x = <real *> p.x
    cdef real *weight = <real *> p.weight
    cdef real *mean = <real *> p.mean
    cdef real *rstd = <real *> p.rstd
    cdef real *dx = <real *> p.dx
    cdef double *dweight = p.dweight
    cdef double *dbias = p.dbias
    cdef Py_ssize_t C = p.C, block, first = begin, row, stop
    while first < end:
        block, stop = first // BLOCK, min(end, first + NEAR)
        if first % BLOCK == 0:
            clear_sums(dweight, block, C)
            clear_sums(dbias, block, C)
        for row in range(first, stop):
            normalize_row_backward(dy + row * C, x + row * C, weight, mean + 2 * row, rstd[row], dx + row * C,
                                   <real *> NULL, C)
        add_weight_gradients(dy + first * C, x + first * C, mean + 2 * first, rstd + first, stop - first,
                             dweight + block * C, dbias + block * C if dbias != NULL else NULL, C)
        first = stop


def layer_norm_backward(dy, x, weight, mean, rstd, bint has_bias=True):
    """dy, x (N, C), weight (C,), mean (N, 2), rstd (N,) -> dx (N, C), dweight (C,), dbias (C,) or None."""
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1], blocks = blocks_of(N)
    weight, dx = wide(weight), numpy.empty_like(x)
    dweight = numpy.empty((blocks, C))
    dbias = numpy.empty((blocks, C)) if has_bias else None
    cdef LayerNormBackward p = LayerNormBackward(
        dy=memory(dy), x=memory(x), weight=memory(weight), mean=memory(mean), rstd=memory(rstd), dx=memory(dx),
        dweight=<double *> memory(dweight), dbias=<double *> memory(dbias), C=C,
    )
    cdef NarrowTask narrow = narrow_task(<Rows> layer_norm_backward_rows[float], &p, sizeof(p))
    if x.itemsize == 2:
        add_narrow(&narrow, &p.dy, dy, C, True, False)
        add_narrow(&narrow, &p.x, x, C, True, False)
        add_narrow(&narrow, &p.dx, dx, C, False, True)
        run_narrow(&narrow, N, BLOCK)
    else:
        run(&p, <Rows> layer_norm_backward_rows[float], <Rows> layer_norm_backward_rows[double], x, N, BLOCK)
    return dx, add_blocks(dweight, statistics_of(x)), add_blocks(dbias, statistics_of(x))
