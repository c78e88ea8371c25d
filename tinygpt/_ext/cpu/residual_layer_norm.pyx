# Residual addition, dropout and LayerNorm in one pass. The mathematics is in tinygpt/ops/residual_layer_norm.py.
#
# Separate operations would each read and write the residual stream. Memory traffic of this one: forward, residual and x
# are read, s and y written, 16 bytes per element in float32; backward, dy, ds and s are read, and the gradient that the
# residual and x share is written (two arrays if dropout makes them differ). In bfloat16 half of the bytes: narrow.pxi.

TAKES_BFLOAT16.update(["residual_layer_norm_forward", "residual_layer_norm_backward"])

cdef extern from "vmath.h" nogil:
    double tg_hidden_one()

cdef struct ResidualLayerNormForward:
    void *residual
    void *x
    void *x_bias
    void *weight
    void *bias
    void *s
    void *y
    void *mean
    void *rstd
    Py_ssize_t C
    double eps
    Dropout dropout

cdef struct ResidualLayerNormBackward:
    void *dy
    void *ds
    void *s
    void *weight
    void *mean
    void *rstd
    void *dresidual
    void *dx
    double *dweight
    double *dbias
    double *dx_bias
    Py_ssize_t C
    Dropout dropout


cdef inline void add_row(real *a, real *b, real *x_bias, real *c, Py_ssize_t C,
                         ResidualLayerNormForward *p, Py_ssize_t row) noexcept nogil:
    """c = a + dropout(b + x_bias), x_bias a row or NULL."""
    cdef Py_ssize_t j
    cdef real one = <real> tg_hidden_one()  # or the compiler might add a + b first and lose digits of x_bias
    if p.dropout.p > 0:
        dropout_mask(c, C, <uint64_t> row, &p.dropout)
        if x_bias != NULL:
            for j in range(C):
                c[j] = a[j] + c[j] * (b[j] + x_bias[j])
        else:
            for j in range(C):
                c[j] = a[j] + c[j] * b[j]
    elif x_bias != NULL:
        for j in range(C):
            c[j] = a[j] + one * (b[j] + x_bias[j])
    else:
        for j in range(C):
            c[j] = a[j] + b[j]


cdef void residual_layer_norm_forward_rows(real *kind, ResidualLayerNormForward *p, Py_ssize_t begin,
                                           Py_ssize_t end) noexcept nogil:
    cdef real *residual = <real *> p.residual
    cdef real *x = <real *> p.x
    cdef real *s = <real *> p.s
    cdef real *y = <real *> p.y
    cdef real *mean = <real *> p.mean
    cdef real *rstd = <real *> p.rstd
    cdef Py_ssize_t C = p.C, first = begin, stop, row
    while first < end:
        stop = min(end, first + NEAR)
        for row in range(first, stop):
            add_row(residual + row * C, x + row * C, <real *> p.x_bias, s + row * C, C, p, row)
        normalize_rows(s + first * C, stop - first, <real *> p.weight, <real *> p.bias, y + first * C,
                       mean + 2 * first, rstd + first, C, p.eps)
        first = stop


def residual_layer_norm_forward(residual, x, x_bias, weight, bias, double eps, double p, uint64_t seed,
                                uint64_t stream, uint64_t first_row=0):
    """residual, x (N, C); x_bias, bias (C,) or None; weight (C,) -> s, y (N, C), mean (N, 2), rstd (N,)."""
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1]
    x_bias, weight, bias = wide(x_bias), wide(weight), wide(bias)
    s, y = numpy.empty_like(x), numpy.empty_like(x)
    mean, rstd = numpy.empty((N, 2), statistics_of(x)), numpy.empty(N, statistics_of(x))
    cdef ResidualLayerNormForward task = ResidualLayerNormForward(
        residual=memory(residual), x=memory(x), x_bias=memory(x_bias), weight=memory(weight), bias=memory(bias),
        s=memory(s), y=memory(y), mean=memory(mean), rstd=memory(rstd), C=C, eps=eps,
        dropout=Dropout(p=p, seed=seed, stream=stream, first_row=first_row),
    )
    cdef NarrowTask narrow = narrow_task(<Rows> residual_layer_norm_forward_rows[float], &task, sizeof(task))
    if x.itemsize == 2:
        add_narrow(&narrow, &task.residual, residual, C, True, False)
        add_narrow(&narrow, &task.x, x, C, True, False)
        add_narrow(&narrow, &task.s, s, C, False, True)
        add_narrow(&narrow, &task.y, y, C, False, True)
        run_narrow(&narrow, N, grain_of(N, C * TWICE))
    else:
        run(&task, <Rows> residual_layer_norm_forward_rows[float], <Rows> residual_layer_norm_forward_rows[double], x,
            N, grain_of(N, C * TWICE))
    return s, y, mean, rstd


cdef void residual_layer_norm_backward_rows(real *kind, ResidualLayerNormBackward *p, Py_ssize_t begin,
                                            Py_ssize_t end) noexcept nogil:
    cdef real *dy = <real *> p.dy
    cdef real *ds = <real *> p.ds
    cdef real *s = <real *> p.s
    cdef real *weight = <real *> p.weight
    cdef real *mean = <real *> p.mean
    cdef real *rstd = <real *> p.rstd
    cdef real *dresidual = <real *> p.dresidual
    cdef real *dx = <real *> p.dx
    cdef double *dweight = p.dweight
    cdef double *dbias = p.dbias
    cdef double *dx_bias = p.dx_bias
    cdef Py_ssize_t C = p.C, block, first = begin, row, stop, j, at
    while first < end:
        block, stop = first // BLOCK, min(end, first + NEAR)
        if first % BLOCK == 0:
            clear_sums(dweight, block, C)
            clear_sums(dbias, block, C)
            clear_sums(dx_bias, block, C)
        for row in range(first, stop):
            at = row * C
            normalize_row_backward(dy + at, s + at, weight, mean + 2 * row, rstd[row], dresidual + at, ds + at, C)
            if p.dropout.p > 0:
                dropout_mask(dx + at, C, <uint64_t> row, &p.dropout)
                for j in range(C):
                    dx[at + j] *= dresidual[at + j]
            if dx_bias != NULL:
                for j in range(C):
                    dx_bias[block * C + j] += dx[at + j]
        add_weight_gradients(dy + first * C, s + first * C, mean + 2 * first, rstd + first, stop - first,
                             dweight + block * C, dbias + block * C if dbias != NULL else NULL, C)
        first = stop


def residual_layer_norm_backward(dy, ds, s, weight, mean, rstd, double p, uint64_t seed, uint64_t stream,
                                 bint has_x_bias, bint has_bias, uint64_t first_row=0):
    """dy, ds, s (N, C), weight (C,), mean (N, 2), rstd (N,) -> dresidual, dx (N, C), dx_bias, dweight, dbias (C,).

    dx is dresidual itself if p is 0; dx_bias and dbias are None if there is no such bias.
    """
    cdef Py_ssize_t N = s.shape[0], C = s.shape[1], blocks = blocks_of(N)
    weight, dresidual = wide(weight), numpy.empty_like(s)
    dx = dresidual if p == 0 else numpy.empty_like(s)
    dweight = numpy.empty((blocks, C))
    dbias = numpy.empty((blocks, C)) if has_bias else None
    dx_bias = numpy.empty((blocks, C)) if has_x_bias else None
    cdef ResidualLayerNormBackward task = ResidualLayerNormBackward(
        dy=memory(dy), ds=memory(ds), s=memory(s), weight=memory(weight), mean=memory(mean), rstd=memory(rstd),
        dresidual=memory(dresidual), dx=memory(dx), dweight=<double *> memory(dweight),
        dbias=<double *> memory(dbias), dx_bias=<double *> memory(dx_bias), C=C,
        dropout=Dropout(p=p, seed=seed, stream=stream, first_row=first_row),
    )
    cdef NarrowTask narrow = narrow_task(<Rows> residual_layer_norm_backward_rows[float], &task, sizeof(task))
    if s.itemsize == 2:
        add_narrow(&narrow, &task.dy, dy, C, True, False)
        add_narrow(&narrow, &task.ds, ds, C, True, False)
        add_narrow(&narrow, &task.s, s, C, True, False)
        add_narrow(&narrow, &task.dresidual, dresidual, C, False, True)
        add_narrow(&narrow, &task.dx, dx, C, False, True)
        run_narrow(&narrow, N, BLOCK)
    else:
        run(&task, <Rows> residual_layer_norm_backward_rows[float], <Rows> residual_layer_norm_backward_rows[double], s,
            N, BLOCK)
    dtype = statistics_of(s)
    return dresidual, dx, add_blocks(dx_bias, dtype), add_blocks(dweight, dtype), add_blocks(dbias, dtype)
