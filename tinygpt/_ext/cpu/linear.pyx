# The bias of a linear layer and its gradient: tinygpt/ops/linear.py.

TAKES_BFLOAT16.update(["add_bias", "column_sum"])

cdef struct AddBias:
    void *y
    void *bias
    Py_ssize_t C

cdef struct ColumnSum:
    void *x
    double *sums
    Py_ssize_t C


cdef void add_bias_rows(real *kind, AddBias *p, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *y = <real *> p.y
    cdef real *bias = <real *> p.bias
    cdef Py_ssize_t C = p.C, row, j
    for row in range(begin, end):
        for j in range(C):
            y[row * C + j] += bias[j]


def add_bias(y, bias):
    """y (N, C) += bias (C,), in place; returns y."""
    cdef Py_ssize_t N = y.shape[0], C = y.shape[1]
    if not y.flags.writeable:
        return NotImplemented
    bias = wide(bias)
    cdef AddBias p = AddBias(y=memory(y), bias=memory(bias), C=C)
    cdef NarrowTask narrow = narrow_task(<Rows> add_bias_rows[float], &p, sizeof(p))
    if y.itemsize == 2:
        add_narrow(&narrow, &p.y, y, C, True, True)
        run_narrow(&narrow, N, grain_of(N, C * PLAIN))
    else:
        run(&p, <Rows> add_bias_rows[float], <Rows> add_bias_rows[double], y, N, grain_of(N, C * PLAIN))
    return y


cdef void column_sum_rows(real *kind, ColumnSum *p, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *x = <real *> p.x
    cdef double *sums = p.sums
    cdef Py_ssize_t C = p.C, row = begin, j
    cdef real *a
    cdef double *into
    while row < end:
        a, into = x + row * C, sums + row // BLOCK * C
        if row % BLOCK == 0:
            clear_sums(sums, row // BLOCK, C)
        if row + 8 <= end:  # add up eight rows before the sums in double precision are read and written
            for j in range(C):
                into[j] += (((a[j] + a[C + j]) + (a[2 * C + j] + a[3 * C + j]))
                            + ((a[4 * C + j] + a[5 * C + j]) + (a[6 * C + j] + a[7 * C + j])))
            row += 8
        else:
            for j in range(C):
                into[j] += a[j]
            row += 1


def column_sum(x):
    """x (N, C) -> (C,): the sum over rows, in a fixed order: eight rows in x's dtype, then those sums in double."""
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1], blocks = blocks_of(N)
    sums = numpy.empty((blocks, C))
    cdef ColumnSum p = ColumnSum(x=memory(x), sums=<double *> memory(sums), C=C)
    cdef NarrowTask narrow = narrow_task(<Rows> column_sum_rows[float], &p, sizeof(p))
    if x.itemsize == 2:
        add_narrow(&narrow, &p.x, x, C, True, False)
        run_narrow(&narrow, N, BLOCK)
    else:
        run(&p, <Rows> column_sum_rows[float], <Rows> column_sum_rows[double], x, N, BLOCK)
    return add_blocks(sums, statistics_of(x))
