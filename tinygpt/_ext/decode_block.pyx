# One new token through one block of the model, and products of few rows. The loops are in decode.h; the mathematics in
# tinygpt/ops/packed.py and tinygpt/ops/decode_block.py.
#
# Memory-bound: the weights are read once, whatever the number of rows. float32 and packed weights only; anything else is the
# reference's.

cdef extern from "decode.h" nogil:
    int TG_FLOAT32, TG_BFLOAT16, TG_INT8, TG_BLOCKS
    cdef struct tg_matrix:
        const void *weight
        const float *scale
        const float *bias
        Py_ssize_t rows, columns, group
        int format
    cdef struct tg_parts:
        float *parts
        Py_ssize_t M, pitch
    cdef struct tg_block:
        tg_matrix attn, attn_proj, fc, proj
        const float *ln_1
        const float *ln_1_bias
        const float *ln_2
        const float *ln_2_bias
        Py_ssize_t M, C, H, capacity
        double eps
        float *x
        float *keys
        float *values
        const int64_t *length
        float *normed
        float *mixed
        float *wide
        float *parts[2]
    Py_ssize_t tg_pitch(Py_ssize_t N)
    tg_parts tg_product(const tg_matrix *matrix, const float *x, Py_ssize_t ldx, Py_ssize_t M, float *parts)
    void tg_sum(const tg_parts *p, const tg_matrix *w, Py_ssize_t m, Py_ssize_t j0, Py_ssize_t count, float *out)
    void tg_transposed_product(const tg_matrix *matrix, const float *x, Py_ssize_t M, float *y)
    void tg_decode_block(tg_block *block)

cdef dict FORMATS = {
    numpy.dtype(numpy.float32): TG_FLOAT32, numpy.dtype(numpy.uint16): TG_BFLOAT16, numpy.dtype(numpy.int8): TG_INT8,
}


cdef void *address(object array, object dtype) except? NULL:
    """Where a contiguous array of this dtype begins; None gives NULL. TypeError for anything else."""
    cdef Py_buffer view
    cdef void *memory
    if array is None:
        return NULL
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise TypeError("not an array that the compiled body takes")
    PyObject_GetBuffer(array, &view, PyBUF_STRIDES)
    memory = view.buf
    PyBuffer_Release(&view)
    return memory


cdef int take_matrix(tg_matrix *w, object matrix, object bias, Py_ssize_t along) except -1:
    """Fill w from a tinygpt.ops.packed.Matrix; `along`: the length of its sums."""
    data, scale, group = matrix
    if data.dtype not in FORMATS:
        raise TypeError("not a format that the compiled body takes")
    w.format = FORMATS[data.dtype]
    w.rows, w.columns = data.shape
    w.group = group if scale is not None else along
    w.weight = address(data, data.dtype)
    w.scale = <const float *> address(scale, numpy.float32)
    w.bias = <const float *> address(bias, numpy.float32)
    return 0


def few_rows_product(x, matrix):
    """x (M, K), matrix (K, N) -> (M, N)."""
    cdef tg_matrix w
    cdef tg_parts parts
    cdef Py_ssize_t M = x.shape[0], K = x.shape[1], N, m
    cdef float *rows
    cdef float *out
    cdef float *room
    if x.dtype != numpy.float32 or matrix.data.dtype not in FORMATS:
        return NotImplemented
    take_matrix(&w, matrix, None, K)
    N = w.columns
    y, work = numpy.empty((M, N), numpy.float32), numpy.empty(TG_BLOCKS * M * tg_pitch(N), numpy.float32)
    rows, out, room = <float *> address(x, x.dtype), <float *> address(y, y.dtype), <float *> address(work, work.dtype)
    with nogil:
        parts = tg_product(&w, rows, K, M, room)
        for m in range(M):
            tg_sum(&parts, &w, m, 0, N, out + m * N)
    return y


def few_rows_product_transposed(x, matrix, out):
    """x (M, K), matrix (N, K) -> out (M, N)."""
    cdef tg_matrix w
    cdef Py_ssize_t M = x.shape[0], K = x.shape[1]
    cdef float *rows
    cdef float *y
    if x.dtype != numpy.float32 or matrix.data.dtype not in FORMATS:
        return NotImplemented
    take_matrix(&w, matrix, None, K)
    rows, y = <float *> address(x, x.dtype), <float *> address(out, x.dtype)
    with nogil:
        tg_transposed_product(&w, rows, M, y)
    return out


def decode_work(Py_ssize_t M, Py_ssize_t C):
    """How many floats of room decode_block needs."""
    return 6 * M * C + TG_BLOCKS * M * (tg_pitch(4 * C) + tg_pitch(C))


def decode_block(x, block, keys, values, length, work):
    """x (M, C), keys and values (M, H, capacity, D), length (M,): all in place; see the reference."""
    cdef tg_block t
    cdef Py_ssize_t M = x.shape[0], C = x.shape[1]
    cdef float *room
    if x.dtype != numpy.float32 or work.size < decode_work(M, C) or block.attn.data.dtype not in FORMATS:
        return NotImplemented
    t.M, t.C, t.H, t.capacity, t.eps = M, C, keys.shape[1], keys.shape[2], block.eps
    take_matrix(&t.attn, block.attn, block.attn_bias, C)
    take_matrix(&t.attn_proj, block.attn_proj, block.attn_proj_bias, C)
    take_matrix(&t.fc, block.fc, block.fc_bias, C)
    take_matrix(&t.proj, block.proj, block.proj_bias, 4 * C)
    t.ln_1, t.ln_1_bias = <const float *> address(block.ln_1, x.dtype), <const float *> address(block.ln_1_bias, x.dtype)
    t.ln_2, t.ln_2_bias = <const float *> address(block.ln_2, x.dtype), <const float *> address(block.ln_2_bias, x.dtype)
    t.x, t.keys, t.values = <float *> address(x, x.dtype), <float *> address(keys, x.dtype), <float *> address(values, x.dtype)
    t.length = <const int64_t *> address(length, numpy.int64)
    room = <float *> address(work, x.dtype)
    t.normed, t.mixed, t.wide = room, room + M * C, room + 2 * M * C
    t.parts[0] = room + 6 * M * C
    t.parts[1] = t.parts[0] + TG_BLOCKS * M * tg_pitch(4 * C)
    with nogil:
        tg_decode_block(&t)
