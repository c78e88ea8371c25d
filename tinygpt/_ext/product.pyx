# The float32 matrix product: product.h has the loops, tinygpt/backends/products.py says when it is called.

cdef extern from "product.h" nogil:
    int TG_PRODUCT_PAYS
    cdef struct tg_gemm:
        Py_ssize_t M, N, K
        const float *a
        const float *b
        Py_ssize_t a_row, a_k, b_k, b_column
        float *c
        Py_ssize_t c_row
        int add
    int tg_gemm_run(tg_gemm *g)

# Products of fewer rows or columns spend more time on packing than on multiplying.
cdef Py_ssize_t FEWEST = 32


cdef void *open_matrix(array, Py_ssize_t *row, Py_ssize_t *column) except? NULL:
    """The address of a matrix and its strides in elements."""
    cdef Py_buffer view
    PyObject_GetBuffer(array, &view, PyBUF_STRIDES)
    row[0], column[0] = view.strides[0] // view.itemsize, view.strides[1] // view.itemsize
    PyBuffer_Release(&view)
    return view.buf


def product_into(a, b, out, bint add):
    """out (M, N) = a (M, K) @ b (K, N), or += it. Bits don't depend on threads, nor an element's on M and N."""
    cdef tg_gemm g
    cdef Py_ssize_t c_column
    if not TG_PRODUCT_PAYS or a.itemsize != 4 or a.shape[0] < FEWEST or b.shape[1] < FEWEST or not out.flags.writeable:
        return NotImplemented
    g.M, g.K, g.N, g.add = a.shape[0], a.shape[1], b.shape[1], add
    g.a = <float *> open_matrix(a, &g.a_row, &g.a_k)
    g.b = <float *> open_matrix(b, &g.b_k, &g.b_column)
    g.c = <float *> open_matrix(out, &g.c_row, &c_column)
    if (g.a_k != 1 and g.a_row != 1) or (g.b_k != 1 and g.b_column != 1) or c_column != 1:
        return NotImplemented
    cdef int failed
    with nogil:
        failed = tg_gemm_run(&g)
    if failed:
        raise MemoryError(f"no memory for the copies that a product of {a.shape} and {b.shape} needs")
    return out
