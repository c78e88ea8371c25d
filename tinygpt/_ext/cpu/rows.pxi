# Sums over rows, in an order that does not depend on the threads: blocks of BLOCK rows, each summed in double precision
# into its own row of a small table, which is added up in order. No two threads write to one place.

cdef extern from "norm.h" nogil:
    double tg_sum_float(float *x, Py_ssize_t n)
    double tg_sum_double(double *x, Py_ssize_t n)

cdef enum:
    BLOCK = 128  # rows; fixed, so that the order of summation is


cdef inline double row_sum(real *x, Py_ssize_t n) noexcept nogil:
    if real is float:
        return tg_sum_float(x, n)
    else:
        return tg_sum_double(x, n)


cdef inline Py_ssize_t blocks_of(Py_ssize_t N) noexcept nogil:
    """Into how many blocks N rows are cut."""
    return (N + BLOCK - 1) // BLOCK


cdef inline void clear_sums(double *table, Py_ssize_t block, Py_ssize_t C) noexcept nogil:
    """Row `block` of a table of sums, by the thread that will add to it: it is then in its cache. NULL is no table."""
    if table != NULL:
        memset(table + block * C, 0, C * sizeof(double))


cdef struct AddBlocks:
    double *table
    void *sums
    Py_ssize_t blocks, C


cdef void add_blocks_columns(real *kind, AddBlocks *p, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Columns begin .. end - 1 of the sum over the table's rows, which is made in the first of them."""
    cdef real *sums = <real *> p.sums
    cdef double *table = p.table
    cdef Py_ssize_t C = p.C, blocks = p.blocks, block, j
    for block in range(1, blocks):
        for j in range(begin, end):
            table[j] += table[block * C + j]
    for j in range(begin, end):
        sums[j] = <real> table[j]


cdef object add_blocks(table, dtype):
    """(blocks, C) in double precision, which is used up -> (C,) in the arrays' own type; None stays None."""
    if table is None:
        return None
    cdef Py_ssize_t blocks = table.shape[0], C = table.shape[1]
    sums = numpy.empty(C, dtype)
    cdef AddBlocks p = AddBlocks(table=<double *> memory(table), sums=memory(sums), blocks=blocks, C=C)
    run(&p, <Rows> add_blocks_columns[float], <Rows> add_blocks_columns[double], sums, C, grain_of(C, blocks * 8))
    return sums
