# Sums over rows, in an order that does not depend on the threads: each block of BLOCK rows is summed in double
# precision into its own row of a small table, and the table is added up in order. No two threads write to the same
# address.

cdef extern from "norm.h" nogil:
    double tg_sum_float(float *x, Py_ssize_t n)
    double tg_sum_double(double *x, Py_ssize_t n)

cdef enum:
    BLOCK = 128  # rows; a constant, so that the order of summation is fixed


cdef inline double row_sum(real *x, Py_ssize_t n) noexcept nogil:
    if real is float:
        return tg_sum_float(x, n)
    else:
        return tg_sum_double(x, n)


cdef inline Py_ssize_t blocks_of(Py_ssize_t N) noexcept nogil:
    """The number of blocks that N rows are split into."""
    return (N + BLOCK - 1) // BLOCK


cdef inline void clear_sums(double *table, Py_ssize_t block, Py_ssize_t C) noexcept nogil:
    """Clear row `block` of a table (NULL: no table), on the thread that will add to it, so that it is in its cache."""
    if table != NULL:
        memset(table + block * C, 0, C * sizeof(double))


cdef struct AddBlocks:
    double *table
    void *sums
    Py_ssize_t blocks, C


cdef void add_blocks_columns(real *kind, AddBlocks *p, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Add up columns begin .. end - 1 of the table, using its first row as the accumulator."""
    cdef real *sums = <real *> p.sums
    cdef double *table = p.table
    cdef Py_ssize_t C = p.C, blocks = p.blocks, block, j
    for block in range(1, blocks):
        for j in range(begin, end):
            table[j] += table[block * C + j]
    for j in range(begin, end):
        sums[j] = <real> table[j]


cdef object add_blocks(table, dtype):
    """table (blocks, C) in double precision, which is overwritten -> sums (C,) of dtype; None -> None."""
    if table is None:
        return None
    cdef Py_ssize_t blocks = table.shape[0], C = table.shape[1]
    sums = numpy.empty(C, dtype)
    cdef AddBlocks p = AddBlocks(table=<double *> memory(table), sums=memory(sums), blocks=blocks, C=C)
    run(&p, <Rows> add_blocks_columns[float], <Rows> add_blocks_columns[double], sums, C, grain_of(C, blocks * 8))
    return sums
