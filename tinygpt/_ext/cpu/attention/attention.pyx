# Attention: tinygpt/ops/attention.py has the mathematics, attention_tile.h the algorithm for one head. This file reads
# the strides, allocates the outputs and divides the B * H heads among the threads. No (T, T) matrix is ever stored.

cdef extern from "attention.h" nogil:
    cdef struct tg_attention:
        Py_ssize_t B, H, Tq, Tk, D
        Py_ssize_t q_stride[3]
        Py_ssize_t k_stride[3]
        Py_ssize_t v_stride[3]
        Py_ssize_t y_stride[3]
        Py_ssize_t dy_stride[3]
        Py_ssize_t dq_stride[3]
        Py_ssize_t dk_stride[3]
        Py_ssize_t dv_stride[3]
        int is_causal
        double scale, dropout_p, kept
        uint32_t threshold
        uint64_t seed, stream, first_row
        void *q
        void *k
        void *v
        void *y
        void *lse
        void *dy
        void *dq
        void *dk
        void *dv
        int failed
    void tg_heads_forward_float(void *task, Py_ssize_t begin, Py_ssize_t end)
    void tg_heads_forward_double(void *task, Py_ssize_t begin, Py_ssize_t end)
    void tg_heads_backward_float(void *task, Py_ssize_t begin, Py_ssize_t end)
    void tg_heads_backward_double(void *task, Py_ssize_t begin, Py_ssize_t end)

cdef extern from "attention_narrow.h" nogil:
    void tg_heads_forward_narrow(void *task, Py_ssize_t begin, Py_ssize_t end)
    void tg_heads_backward_narrow(void *task, Py_ssize_t begin, Py_ssize_t end)

TAKES_BFLOAT16.update(["attention_forward", "attention_backward"])


cdef void *open_array(object array, Py_ssize_t *stride) except? NULL:
    """The address of a (B, H, T, D) array; writes its first three strides, in elements, to stride[0..2]."""
    cdef Py_buffer view
    cdef int i
    PyObject_GetBuffer(array, &view, PyBUF_STRIDES)
    for i in range(3):
        stride[i] = view.strides[i] // view.itemsize
    PyBuffer_Release(&view)
    return view.buf


cdef bint takes(object array):
    """True if the last axis is contiguous and the other strides are multiples of the element size."""
    strides, size = array.strides, array.itemsize
    return strides[3] == size and not (strides[0] % size or strides[1] % size or strides[2] % size)


cdef void describe(tg_attention *p, q, k, bint is_causal, double scale, double dropout_p, uint64_t seed,
                   uint64_t stream, uint64_t first_row):
    cdef double level = dropout_p * 4294967296.0 + 0.5
    p.B, p.H, p.Tq, p.D = q.shape
    p.Tk = k.shape[2]
    p.is_causal, p.scale, p.dropout_p = is_causal, scale, dropout_p
    p.kept = 1.0 / (1.0 - dropout_p)
    p.threshold = 4294967295u if level >= 4294967295.0 else <uint32_t> level
    p.seed, p.stream, p.first_row = seed, stream, first_row
    p.failed = 0


cdef void run_heads(tg_body body, tg_attention *p):
    """Run all heads, divided among the threads in runs of adjacent heads, whose rows are adjacent in memory."""
    cdef Py_ssize_t heads = p.B * p.H
    with nogil:
        tg_parallel_for(body, p, heads, max(1, heads // (8 * tg_get_num_threads())))


def attention_forward(q, k, v, bint is_causal, double scale, double dropout_p, uint64_t seed, uint64_t stream,
                      uint64_t first_row=0):
    """q (B, H, Tq, D), k, v (B, H, Tk, D) -> y (B, H, Tq, D), lse (B, H, Tq, 2). y's memory is (B, Tq, H, D)."""
    cdef tg_attention p
    q, k, v = [array if takes(array) else numpy.ascontiguousarray(array) for array in (q, k, v)]
    describe(&p, q, k, is_causal, scale, dropout_p, seed, stream, first_row)
    y = numpy.empty((p.B, p.Tq, p.H, p.D), q.dtype).transpose(0, 2, 1, 3)
    lse = numpy.empty((p.B, p.H, p.Tq, 2), statistics_of(q))
    cdef Py_ssize_t unused[3]
    p.q, p.k, p.v = open_array(q, p.q_stride), open_array(k, p.k_stride), open_array(v, p.v_stride)
    p.y, p.lse = open_array(y, p.y_stride), open_array(lse, unused)
    cdef tg_body body = tg_heads_forward_float if q.itemsize == 4 else tg_heads_forward_double
    if q.itemsize == 2:
        body = tg_heads_forward_narrow
    run_heads(body, &p)
    if p.failed:
        raise MemoryError("attention: no memory for the copies of one head")
    return y, lse


def attention_backward(dy, q, k, v, y, lse, bint is_causal, double scale, double dropout_p, uint64_t seed,
                       uint64_t stream, dq, dk, dv, uint64_t first_row=0):
    """Writes the gradients of q, k, v into dq, dk, dv, which may be views of one packed array."""
    cdef tg_attention p
    if not (takes(dq) and takes(dk) and takes(dv)):
        return NotImplemented
    dy, q, k, v, y = [array if takes(array) else numpy.ascontiguousarray(array) for array in (dy, q, k, v, y)]
    lse = numpy.ascontiguousarray(wide(lse))
    describe(&p, q, k, is_causal, scale, dropout_p, seed, stream, first_row)
    cdef Py_ssize_t unused[3]
    p.q, p.k, p.v = open_array(q, p.q_stride), open_array(k, p.k_stride), open_array(v, p.v_stride)
    p.y, p.lse, p.dy = open_array(y, p.y_stride), open_array(lse, unused), open_array(dy, p.dy_stride)
    p.dq, p.dk, p.dv = open_array(dq, p.dq_stride), open_array(dk, p.dk_stride), open_array(dv, p.dv_stride)
    cdef tg_body body = tg_heads_backward_float if q.itemsize == 4 else tg_heads_backward_double
    if q.itemsize == 2:
        body = tg_heads_backward_narrow
    run_heads(body, &p)
    if p.failed:
        raise MemoryError("attention: no memory for the copies of one head")
