# LayerNorm for the CPU. The mathematics is in tinygpt/ops/layer_norm.py.
#
# Forward: each row is read three times (mean, variance, result), but it stays in the first cache, so memory sees one
# read of x and one write of y: 8 bytes an element in float32.
# Backward: memory sees one read each of dy and x and one write of dx. The sums over rows for dweight and dbias
# are taken over blocks of BLOCK rows, each into its own row of a small table, and the table is added up in order:
# no two threads write to one place, and the result does not depend on their number.

cdef Py_ssize_t BLOCK = 128  # rows; fixed, so that the order of summation is


cdef inline void normalize_row(real *x, real *weight, real *bias, real *y, real *mean, real *rstd, Py_ssize_t C,
                               double eps) noexcept nogil:
    """One row: y = (x - mean) * rstd * weight + bias."""
    cdef Py_ssize_t j
    cdef double total = 0, squares = 0
    cdef real r
    for j in range(C):
        total += x[j]
    cdef double exact_mean = total / C
    for j in range(C):
        squares += (x[j] - exact_mean) * (x[j] - exact_mean)
    r = <real> (1.0 / sqrt(squares / C + eps))
    # x - mean in double precision: where the mean is large beside the deviations, a rounded mean would shift the row.
    if bias != NULL:
        for j in range(C):
            y[j] = <real> (x[j] - exact_mean) * r * weight[j] + bias[j]
    else:
        for j in range(C):
            y[j] = <real> (x[j] - exact_mean) * r * weight[j]
    mean[0] = <real> exact_mean
    rstd[0] = r


cdef inline void normalize_row_backward(real *dy, real *x, real *weight, real mean, real rstd, real *dx, real *add,
                                        double *dweight, double *dbias, Py_ssize_t C) noexcept nogil:
    """One row: dx = add + rstd * (dnorm - mean(dnorm) - norm * mean(dnorm * norm)); adds to dweight and dbias."""
    cdef Py_ssize_t j
    cdef double shift = 0, stretch = 0
    cdef real norm, dnorm, a, b
    for j in range(C):
        norm = (x[j] - mean) * rstd
        dnorm = dy[j] * weight[j]
        shift += dnorm
        stretch += dnorm * norm
        dweight[j] += dy[j] * norm
    if dbias != NULL:
        for j in range(C):
            dbias[j] += dy[j]
    a = <real> (shift / C)
    b = <real> (stretch / C)
    if add != NULL:
        for j in range(C):
            norm = (x[j] - mean) * rstd
            dx[j] = add[j] + rstd * (dy[j] * weight[j] - a - norm * b)
    else:
        for j in range(C):
            norm = (x[j] - mean) * rstd
            dx[j] = rstd * (dy[j] * weight[j] - a - norm * b)


cdef void layer_norm_forward_rows(real *x, Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *weight = <real *> task.array[1]
    cdef real *bias = <real *> task.array[2]
    cdef real *y = <real *> task.array[3]
    cdef real *mean = <real *> task.array[4]
    cdef real *rstd = <real *> task.array[5]
    cdef Py_ssize_t C = task.size[0], row
    for row in range(begin, end):
        normalize_row(x + row * C, weight, bias, y + row * C, mean + row, rstd + row, C, task.scalar[0])


def layer_norm_forward(x, weight, bias, double eps):
    """x (N, C), weight (C,), bias (C,) or None -> y (N, C), mean (N,), rstd (N,)."""
    cdef Task task
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1]
    y, mean, rstd = numpy.empty_like(x), numpy.empty(N, x.dtype), numpy.empty(N, x.dtype)
    give(&task, (x, weight, bias, y, mean, rstd))
    task.size[0] = C
    task.scalar[0] = eps
    run(&task, <Rows> layer_norm_forward_rows[float], <Rows> layer_norm_forward_rows[double], x, N,
        grain_of(N, C * 4))
    return y, mean, rstd


cdef void layer_norm_backward_blocks(real *dy, Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *x = <real *> task.array[1]
    cdef real *weight = <real *> task.array[2]
    cdef real *mean = <real *> task.array[3]
    cdef real *rstd = <real *> task.array[4]
    cdef real *dx = <real *> task.array[5]
    cdef double *dweight = <double *> task.array[6]
    cdef double *dbias = <double *> task.array[7]
    cdef Py_ssize_t C = task.size[0], N = task.size[1], block, row, at
    for block in range(begin, end):
        for row in range(block * BLOCK, min(N, (block + 1) * BLOCK)):
            at = row * C
            normalize_row_backward(dy + at, x + at, weight, mean[row], rstd[row], dx + at, <real *> NULL,
                                   dweight + block * C, dbias + block * C if dbias != NULL else NULL, C)


def add_blocks(table, dtype):
    """(blocks, C) in double precision -> (C,) in the arrays' own; None stays None."""
    return None if table is None else table.sum(axis=0).astype(dtype)


def layer_norm_backward(dy, x, weight, mean, rstd, bint has_bias=True):
    """dy, x (N, C), weight (C,), mean, rstd (N,) -> dx (N, C), dweight (C,), dbias (C,) or None."""
    cdef Task task
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1], blocks = (N + BLOCK - 1) // BLOCK
    dx = numpy.empty_like(x)
    dweight = numpy.zeros((blocks, C))
    dbias = numpy.zeros((blocks, C)) if has_bias else None
    give(&task, (dy, x, weight, mean, rstd, dx, dweight, dbias))
    task.size[0] = C
    task.size[1] = N
    run(&task, <Rows> layer_norm_backward_blocks[float], <Rows> layer_norm_backward_blocks[double], x, blocks, 1)
    return dx, add_blocks(dweight, x.dtype), add_blocks(dbias, x.dtype)
