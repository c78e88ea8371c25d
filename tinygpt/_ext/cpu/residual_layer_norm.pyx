# Residual addition, dropout and LayerNorm in one pass. The mathematics is in tinygpt/ops/residual_layer_norm.py.
#
# Separate operations would read and write the residual stream once each. Here memory sees, forward, reads of residual
# and x and writes of s and y: 16 bytes an element in float32; backward, reads of dy, ds and s and one write of the
# gradient that the residual and x share (two when dropout makes them differ).

cdef inline void add_row(real *a, real *b, real *x_bias, real *c, Py_ssize_t C, Task *task,
                         Py_ssize_t row) noexcept nogil:
    """c = a + dropout(b + x_bias), x_bias a row or NULL."""
    cdef double p = task.scalar[1]
    cdef Py_ssize_t j
    cdef real one = <real> tg_hidden_one()  # else a + b may be added first, and rounded as coarsely as the sum
    if p > 0:
        dropout_mask(c, C, <uint64_t> row, task, p)
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


cdef void residual_layer_norm_forward_rows(real *residual, Task *task, Py_ssize_t begin,
                                           Py_ssize_t end) noexcept nogil:
    cdef real *x = <real *> task.array[1]
    cdef real *x_bias = <real *> task.array[2]
    cdef real *weight = <real *> task.array[3]
    cdef real *bias = <real *> task.array[4]
    cdef real *s = <real *> task.array[5]
    cdef real *y = <real *> task.array[6]
    cdef real *mean = <real *> task.array[7]
    cdef real *rstd = <real *> task.array[8]
    cdef Py_ssize_t C = task.size[0], first = begin, stop, row
    while first < end:
        stop = min(end, first + NEAR)
        for row in range(first, stop):
            add_row(residual + row * C, x + row * C, x_bias, s + row * C, C, task, row)
        normalize_rows(s + first * C, stop - first, weight, bias, y + first * C, mean + 2 * first, rstd + first,
                       C, task.scalar[0])
        first = stop


def residual_layer_norm_forward(residual, x, x_bias, weight, bias, double eps, double p, uint64_t seed,
                                uint64_t stream):
    """residual, x (N, C); x_bias, bias (C,) or None; weight (C,) -> s, y (N, C), mean (N, 2), rstd (N,)."""
    cdef Task task
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1]
    s, y = numpy.empty_like(x), numpy.empty_like(x)
    mean, rstd = numpy.empty((N, 2), x.dtype), numpy.empty(N, x.dtype)
    give(&task, (residual, x, x_bias, weight, bias, s, y, mean, rstd))
    task.size[0] = C
    task.scalar[0], task.scalar[1] = eps, p
    task.seed, task.stream = seed, stream
    run(&task, <Rows> residual_layer_norm_forward_rows[float], <Rows> residual_layer_norm_forward_rows[double], x, N,
        grain_of(N, C * 8))
    return s, y, mean, rstd


cdef void residual_layer_norm_backward_blocks(real *dy, Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *ds = <real *> task.array[1]
    cdef real *s = <real *> task.array[2]
    cdef real *weight = <real *> task.array[3]
    cdef real *mean = <real *> task.array[4]
    cdef real *rstd = <real *> task.array[5]
    cdef real *dresidual = <real *> task.array[6]
    cdef real *dx = <real *> task.array[7]
    cdef double *dweight = <double *> task.array[8]
    cdef double *dbias = <double *> task.array[9]
    cdef double *dx_bias = <double *> task.array[10]
    cdef Py_ssize_t C = task.size[0], N = task.size[1], block, part, first, row, stop, j, at
    cdef double p = task.scalar[0]
    for block in range(begin, end):
        clear_sums(dweight, block, C)
        clear_sums(dbias, block, C)
        clear_sums(dx_bias, block, C)
        for part in range(BLOCK // NEAR):
            first = block * BLOCK + part * NEAR
            stop = min(N, first + NEAR)
            if first >= N:
                break
            for row in range(first, stop):
                at = row * C
                normalize_row_backward(dy + at, s + at, weight, mean + 2 * row, rstd[row], dresidual + at, ds + at, C)
                if p > 0:
                    dropout_mask(dx + at, C, <uint64_t> row, task, p)
                    for j in range(C):
                        dx[at + j] *= dresidual[at + j]
                if dx_bias != NULL:
                    for j in range(C):
                        dx_bias[block * C + j] += dx[at + j]
            add_weight_gradients(dy + first * C, s + first * C, mean + 2 * first, rstd + first, stop - first,
                                 dweight + block * C, dbias + block * C if dbias != NULL else NULL, C)


def residual_layer_norm_backward(dy, ds, s, weight, mean, rstd, double p, uint64_t seed, uint64_t stream,
                                 bint has_x_bias, bint has_bias):
    """dy, ds, s (N, C), weight (C,), mean (N, 2), rstd (N,) -> dresidual, dx (N, C), dx_bias, dweight, dbias (C,).

    dx is dresidual itself when nothing was dropped; dx_bias and dbias are None where there is no such bias.
    """
    cdef Task task
    cdef Py_ssize_t N = s.shape[0], C = s.shape[1], blocks = (N + BLOCK - 1) // BLOCK
    dresidual = numpy.empty_like(s)
    dx = dresidual if p == 0 else numpy.empty_like(s)
    dweight = numpy.empty((blocks, C))
    dbias = numpy.empty((blocks, C)) if has_bias else None
    dx_bias = numpy.empty((blocks, C)) if has_x_bias else None
    give(&task, (dy, ds, s, weight, mean, rstd, dresidual, dx, dweight, dbias, dx_bias))
    task.size[0], task.size[1] = C, N
    task.scalar[0] = p
    task.seed, task.stream = seed, stream
    run(&task, <Rows> residual_layer_norm_backward_blocks[float], <Rows> residual_layer_norm_backward_blocks[double],
        s, blocks, 1)
    return dresidual, dx, add_blocks(dx_bias, s.dtype), add_blocks(dweight, s.dtype), add_blocks(dbias, s.dtype)
