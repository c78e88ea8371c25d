# LayerNorm for the CPU. The mathematics is in tinygpt/ops/layer_norm.py.
#
# Forward: each row is read three times (mean, variance, result), but it stays in the first cache, so memory sees one
# read of x and one write of y: 8 bytes an element in float32.
# Backward: memory sees one read each of dy and x and one write of dx. The sums over rows for dweight and dbias
# are taken over blocks of BLOCK rows, each into its own row of a small table, and the table is added up in order:
# no two threads write to one place, and the result does not depend on their number.

cdef enum:
    BLOCK = 128  # rows; fixed, so that the order of summation is
    NEAR = 4  # rows that are still in the first cache when they are looked at again; divides BLOCK


cdef inline real quarter(real near) noexcept nogil:
    """A quarter of a mean's first part, for `norm_of`."""
    if real is float:
        return tg_quarter_float(near)
    else:
        return tg_quarter_double(near)


cdef inline real norm_of(real x, real quarter, real scale, real rest) noexcept nogil:
    """(x - mean) * rstd of quarter = near / 4, scale = 4 rstd, rest = -rest * rstd: TG_NORM in norm.h says why."""
    return (x * <real> 0.25 - quarter) * scale + rest


cdef inline void normalize_rows(real *x, Py_ssize_t rows, real *weight, real *bias, real *y, real *mean, real *rstd,
                                Py_ssize_t C, double eps) noexcept nogil:
    """Up to NEAR rows: y = (x - mean) * rstd * weight + bias. Each step of a row waits for the one before, so a step is
    taken for all of them before the next one. mean has two numbers a row, near and rest."""
    cdef Py_ssize_t row
    cdef double scale
    cdef real rest
    cdef double exact[NEAR]
    cdef double squares[NEAR]
    for row in range(rows):
        if real is float:
            exact[row] = tg_sum_float(x + row * C, C) / C
        else:
            exact[row] = tg_sum_double(x + row * C, C) / C
    for row in range(rows):
        if real is float:
            squares[row] = tg_square_deviations_float(x + row * C, C, exact[row])
        else:
            squares[row] = tg_square_deviations_double(x + row * C, C, exact[row])
    for row in range(rows):
        mean[2 * row] = <real> exact[row]
        mean[2 * row + 1] = <real> (exact[row] - mean[2 * row])
        squares[row] = 1.0 / sqrt(squares[row] / C + eps)
        rstd[row] = <real> squares[row]
    for row in range(rows):
        scale, rest = 4 * squares[row], <real> (-mean[2 * row + 1] * squares[row])
        if real is float:
            tg_normalized_float(x + row * C, weight, bias, y + row * C, C, quarter(mean[2 * row]), <real> scale, rest)
        else:
            tg_normalized_double(x + row * C, weight, bias, y + row * C, C, quarter(mean[2 * row]), scale, rest)


cdef inline void normalize_row_backward(real *dy, real *x, real *weight, real *mean, real rstd, real *dx, real *add,
                                        Py_ssize_t C) noexcept nogil:
    """One row: dx = add + rstd * (dnorm - mean(dnorm) - norm * mean(dnorm * norm))."""
    cdef Py_ssize_t j
    cdef double shift = 0, stretch = 0
    cdef real norm, a, b, near = quarter(mean[0]), scale = 4 * rstd, rest = -mean[1] * rstd
    if real is float:
        tg_norm_sums_float(dy, x, weight, C, near, scale, rest, &shift, &stretch)
    else:
        tg_norm_sums_double(dy, x, weight, C, near, scale, rest, &shift, &stretch)
    a = <real> (shift / C)
    b = <real> (stretch / C)
    if add != NULL:
        for j in range(C):
            norm = norm_of(x[j], near, scale, rest)
            dx[j] = add[j] + rstd * (dy[j] * weight[j] - a - norm * b)
    else:
        for j in range(C):
            norm = norm_of(x[j], near, scale, rest)
            dx[j] = rstd * (dy[j] * weight[j] - a - norm * b)


cdef inline void add_weight_gradients(real *dy, real *x, real *mean, real *rstd, Py_ssize_t rows, double *dweight,
                                      double *dbias, Py_ssize_t C) noexcept nogil:
    """dweight += sum(dy * norm), dbias += sum(dy), over rows that are in the cache. Four rows are added up before the
    tables in double precision are read and written."""
    cdef Py_ssize_t row = 0, j
    cdef real *g
    cdef real *v
    cdef real near[4]
    cdef real scale[4]
    cdef real rest[4]
    cdef int i
    while row + 4 <= rows:
        g, v = dy + row * C, x + row * C
        for i in range(4):
            near[i], scale[i] = quarter(mean[2 * (row + i)]), 4 * rstd[row + i]
            rest[i] = -mean[2 * (row + i) + 1] * rstd[row + i]
        for j in range(C):
            dweight[j] += ((g[j] * norm_of(v[j], near[0], scale[0], rest[0])
                            + g[C + j] * norm_of(v[C + j], near[1], scale[1], rest[1]))
                           + (g[2 * C + j] * norm_of(v[2 * C + j], near[2], scale[2], rest[2])
                              + g[3 * C + j] * norm_of(v[3 * C + j], near[3], scale[3], rest[3])))
        if dbias != NULL:
            for j in range(C):
                dbias[j] += (g[j] + g[C + j]) + (g[2 * C + j] + g[3 * C + j])
        row += 4
    while row < rows:
        g, v = dy + row * C, x + row * C
        near[0], scale[0], rest[0] = quarter(mean[2 * row]), 4 * rstd[row], -mean[2 * row + 1] * rstd[row]
        for j in range(C):
            dweight[j] += g[j] * norm_of(v[j], near[0], scale[0], rest[0])
        if dbias != NULL:
            for j in range(C):
                dbias[j] += g[j]
        row += 1


cdef inline void clear_sums(double *table, Py_ssize_t block, Py_ssize_t C) noexcept nogil:
    """Row `block` of a table of sums, by the thread that will add to it: it is then in its cache. NULL is no table."""
    if table != NULL:
        memset(table + block * C, 0, C * sizeof(double))


cdef void layer_norm_forward_rows(real *x, Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *weight = <real *> task.array[1]
    cdef real *bias = <real *> task.array[2]
    cdef real *y = <real *> task.array[3]
    cdef real *mean = <real *> task.array[4]
    cdef real *rstd = <real *> task.array[5]
    cdef Py_ssize_t C = task.size[0], row = begin
    while row < end:
        normalize_rows(x + row * C, min(NEAR, end - row), weight, bias, y + row * C, mean + 2 * row, rstd + row,
                       C, task.scalar[0])
        row += NEAR


def layer_norm_forward(x, weight, bias, double eps):
    """x (N, C), weight (C,), bias (C,) or None -> y (N, C), mean (N, 2), rstd (N,)."""
    cdef Task task
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1]
    y, mean, rstd = numpy.empty_like(x), numpy.empty((N, 2), x.dtype), numpy.empty(N, x.dtype)
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
    cdef Py_ssize_t C = task.size[0], N = task.size[1], block, part, first, row, stop
    for block in range(begin, end):
        clear_sums(dweight, block, C)
        clear_sums(dbias, block, C)
        for part in range(BLOCK // NEAR):
            first = block * BLOCK + part * NEAR
            stop = min(N, first + NEAR)
            if first >= N:
                break
            for row in range(first, stop):
                normalize_row_backward(dy + row * C, x + row * C, weight, mean + 2 * row, rstd[row], dx + row * C,
                                       <real *> NULL, C)
            add_weight_gradients(dy + first * C, x + first * C, mean + 2 * first, rstd + first, stop - first,
                                 dweight + block * C, dbias + block * C if dbias != NULL else NULL, C)


cdef void add_blocks_columns(real *sums, Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Columns begin .. end - 1 of the sum over the table's rows, which is made in the first of them."""
    cdef double *table = <double *> task.array[1]
    cdef Py_ssize_t C = task.size[0], blocks = task.size[1], block, j
    for block in range(1, blocks):
        for j in range(begin, end):
            table[j] += table[block * C + j]
    for j in range(begin, end):
        sums[j] = <real> table[j]


cdef object add_blocks(table, dtype):
    """(blocks, C) in double precision, which is used up -> (C,) in the arrays' own type; None stays None."""
    cdef Task task
    if table is None:
        return None
    cdef Py_ssize_t blocks = table.shape[0], C = table.shape[1]
    sums = numpy.empty(C, dtype)
    give(&task, (sums, table))
    task.size[0], task.size[1] = C, blocks
    run(&task, <Rows> add_blocks_columns[float], <Rows> add_blocks_columns[double], sums, C, grain_of(C, blocks * 8))
    return sums


def layer_norm_backward(dy, x, weight, mean, rstd, bint has_bias=True):
    """dy, x (N, C), weight (C,), mean (N, 2), rstd (N,) -> dx (N, C), dweight (C,), dbias (C,) or None."""
    cdef Task task
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1], blocks = (N + BLOCK - 1) // BLOCK
    dx = numpy.empty_like(x)
    dweight = numpy.empty((blocks, C))
    dbias = numpy.empty((blocks, C)) if has_bias else None
    give(&task, (dy, x, weight, mean, rstd, dx, dweight, dbias))
    task.size[0] = C
    task.size[1] = N
    run(&task, <Rows> layer_norm_backward_blocks[float], <Rows> layer_norm_backward_blocks[double], x, blocks, 1)
    return dx, add_blocks(dweight, x.dtype), add_blocks(dbias, x.dtype)
