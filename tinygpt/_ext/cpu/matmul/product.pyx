# Float32 matrix products: product.h has our own kernel, product_blas.h splits a product among the threads for NumPy's
# BLAS; tinygpt/ops/_matmul.py decides when they are called.

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

cdef extern from "product_blas.h" nogil:
    cdef struct tg_blocks:
        tg_gemm g
        Py_ssize_t count, a_next, b_next, c_next
    int tg_gemm_by_blas(tg_blocks *p)

# With fewer rows or columns, our own kernel would spend more time on packing than on multiplying.
cdef Py_ssize_t FEWEST = 32


def product_is_ours():
    """Whether our own kernel runs above that: then no bit of a row of a product depends on how many rows there are."""
    return bool(TG_PRODUCT_PAYS)


cdef void *open_matrices(array, Py_ssize_t *next, Py_ssize_t *row, Py_ssize_t *column) except? NULL:
    """The address of a matrix, or of a batch (S, M, N) of them, and its strides in elements. NULL if a BLAS does not
    support the strides: one of the two must be 1, and the other at least the length of the first one's axis."""
    cdef Py_buffer view
    PyObject_GetBuffer(array, &view, PyBUF_STRIDES)
    cdef int last = view.ndim - 1
    cdef Py_ssize_t M = view.shape[last - 1], N = view.shape[last], size = view.itemsize
    cdef void *address = view.buf
    next[0] = 0 if last == 1 else view.strides[0] // size
    row[0], column[0] = view.strides[last - 1] // size, view.strides[last] // size
    PyBuffer_Release(&view)
    if N == 1:  # the stride of an axis of length 1 does not matter
        column[0] = 1
    if M == 1:
        row[0] = N if column[0] == 1 else 1
    return address if (column[0] == 1 and row[0] >= N) or (row[0] == 1 and column[0] >= M) else NULL


def matmul_into(a, b, out, bint add):
    """out (M, N) = a (M, K) @ b (K, N), or out += a @ b; or a batch (S, M, N) of products. The bits do not depend on
    the number of threads."""
    cdef tg_blocks p
    cdef Py_ssize_t c_column
    if a.itemsize != 4 or not out.flags.writeable:
        return NotImplemented
    cdef int last = a.ndim - 1
    p.g.M, p.g.K, p.g.N, p.g.add = a.shape[last - 1], a.shape[last], b.shape[last], add
    if b.shape[last - 1] != p.g.K or out.shape != (*a.shape[:last], p.g.N) or b.shape[:last - 1] != a.shape[:last - 1]:
        return NotImplemented  # NumPy says what does not fit
    p.count = 1 if last == 1 else a.shape[0]
    p.g.a = <float *> open_matrices(a, &p.a_next, &p.g.a_row, &p.g.a_k)
    p.g.b = <float *> open_matrices(b, &p.b_next, &p.g.b_k, &p.g.b_column)
    p.g.c = <float *> open_matrices(out, &p.c_next, &p.g.c_row, &c_column)
    if p.g.a == NULL:
        return matmul_into(numpy.array(a, order="C"), b, out, add)
    if p.g.b == NULL:
        return matmul_into(a, numpy.array(b, order="C"), out, add)
    if p.g.c == NULL or c_column != 1:
        made = matmul_into(a, b, numpy.empty(out.shape, numpy.float32), False)
        if made is NotImplemented:
            return made
        if add:
            out += made
        else:
            out[...] = made
        return out
    cdef bint own = TG_PRODUCT_PAYS and last == 1 and p.g.M >= FEWEST and p.g.N >= FEWEST
    cdef int done
    with nogil:
        done = tg_gemm_run(&p.g) if own else tg_gemm_by_blas(&p)
    if own and done < 0:
        raise MemoryError(f"no memory for the copies that a product of {a.shape} and {b.shape} needs")
    return out if own or done else NotImplemented
