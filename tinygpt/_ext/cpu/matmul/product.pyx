# Float32 matrix products: product.h has our own kernel, product_blas.h splits a product among the threads for NumPy's
# BLAS; tinygpt/ops/_matmul.py decides when they are called. Products of bfloat16 matrices go through product.h as well.

cdef extern from "bfloat16.h" nogil:
    int tg_has_pairs()

cdef extern from "product.h" nogil:
    int TG_PRODUCT_PAYS
    cdef struct tg_gemm:
        Py_ssize_t M, N, K
        const float *a
        const float *b
        Py_ssize_t a_row, a_k, b_k, b_column
        float *c
        Py_ssize_t c_row
        int add, pairs, half
        uint16_t *rounded
    int tg_gemm_run(tg_gemm *g)

cdef extern from "product_blas.h" nogil:
    cdef struct tg_blocks:
        tg_gemm g
        Py_ssize_t count, a_next, b_next, c_next
    int tg_gemm_by_blas(tg_blocks *p)

TAKES_BFLOAT16.add("matmul_into")

# With fewer rows or columns, our own kernel would spend more time on packing than on multiplying.
cdef Py_ssize_t FEWEST = 32


def product_is_ours():
    """Whether our own kernel runs above that: then no bit of a row of a product depends on the number of rows."""
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
    if a.itemsize == 2:
        return matmul_of_pairs(a, b, out, add)
    if a.itemsize != 4 or not out.flags.writeable:
        return NotImplemented
    cdef int last = a.ndim - 1
    p.g.M, p.g.K, p.g.N, p.g.add, p.g.pairs, p.g.rounded = a.shape[last - 1], a.shape[last], b.shape[last], add, 0, NULL
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


# Products of bfloat16 matrices --------------------------------------------------------------------------------

cdef bint IN_PAIRS = tg_has_pairs()


def has_bfloat16_products():
    """Whether this processor multiplies bfloat16 numbers itself (AVX512_BF16), and this level's kernels let it."""
    return bool(IN_PAIRS)


def use_bfloat16_products(bint wanted):
    """For tests: multiply bfloat16 numbers as a processor without AVX512_BF16 does, or as this one does."""
    global IN_PAIRS
    IN_PAIRS = wanted and tg_has_pairs()


cdef matmul_of_pairs(a, b, out, bint add):
    """`matmul_into` for a (M, K), b (K, N) in bfloat16 and out (M, N) in bfloat16, or in float32. The sums are float32.

    Each pair of neighbours along k adds its second product first, as the instruction does (`tg_add_pairs`).
    """
    cdef tg_gemm g
    cdef Py_ssize_t next, c_column
    if a.ndim != 2 or b.itemsize != 2 or not out.flags.writeable or (add and out.itemsize == 2):
        return NotImplemented
    g.M, g.K, g.N, g.add, g.pairs = a.shape[0], a.shape[1], b.shape[1], add, IN_PAIRS
    if b.shape[0] != g.K or out.shape != (g.M, g.N):
        return NotImplemented
    cdef void *c = open_matrices(out, &next, &g.c_row, &c_column)
    if c == NULL or c_column != 1 or (out.itemsize == 2 and not g.pairs):
        made = matmul_of_pairs(a, b, numpy.empty(out.shape, out.dtype if g.pairs else numpy.float32), False)
        if add:
            out += made
        else:
            out[...] = made
        return out
    g.c, g.rounded = <float *> c, NULL
    if out.itemsize == 2:
        g.c, g.rounded = NULL, <uint16_t *> c
    a, b = (in_words(a, 2), in_words(b.T, 4).T) if g.pairs else (exchanged(a), exchanged(b.T).T)
    g.a = <float *> open_matrices(a, &next, &g.a_row, &g.a_k)
    g.b = <float *> open_matrices(b, &next, &g.b_k, &g.b_column)
    g.half = g.K % 2
    g.K += g.half
    if g.pairs:
        g.K //= 2
        if g.a_k == 1:
            g.a_row //= 2
        if g.b_column != 1:
            g.b_column //= 2
    cdef int done
    with nogil:
        done = tg_gemm_run(&g)
    if done < 0:
        raise MemoryError(f"no memory for the copies that a product of {a.shape} and {b.shape} needs")
    return out


cdef in_words(x, Py_ssize_t least):
    """x (rows, K) in bfloat16; copied unless its columns are contiguous, or each row consists of words of two numbers,
    at least `least` numbers apart: with a zero at the end if K is odd."""
    cdef Py_ssize_t next, row, column, K = x.shape[1]
    cdef void *address = open_matrices(x, &next, &row, &column)
    if address != NULL and column != 1:
        return x
    if address != NULL and row >= least and not (row % 2 or K % 2 or <size_t> address % 4):
        return x
    made = numpy.zeros((x.shape[0], max(least, (K + 1) // 2 * 2)), x.dtype)
    made[:, :K] = x
    return made[:, :K]


cdef exchanged(x):
    """x (rows, K) in bfloat16 -> (rows, K or K + 1) in float32, the two numbers of each pair swapped: so the sum, one
    number after the other, has the same bits as the sum of pairs, up to PRODUCT_DEPTH terms."""
    cdef Py_ssize_t K = x.shape[1]
    made = numpy.zeros((x.shape[0], (K + 1) // 2 * 2), numpy.float32)
    made[:, 1::2] = x[:, ::2]
    made[:, :K - 1:2] = x[:, 1::2]
    return made
