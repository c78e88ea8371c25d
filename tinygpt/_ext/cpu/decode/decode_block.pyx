# One new token through one block of the model, and products of few rows. The loops are in decode.h; the mathematics in
# tinygpt/ops/packed.py and tinygpt/ops/decode_block.py.
#
# Memory-bound: the weights are read once, whatever the number of rows. float32 and packed weights only; anything else is the
# reference's.

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT
from libc.string cimport strchr

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
    void tg_unpack(const tg_matrix *matrix, int axis, float *out)
    void tg_decode_block(tg_block *block)


cdef void *address(object array, const char *formats, tg_matrix *shape=NULL) except? NULL:
    """Where a C-contiguous array begins whose type is one of `formats`, letters of the buffer protocol; None gives NULL.

    shape: takes the array's two sizes and its format. TypeError or ValueError (NumPy's, for another layout) for what the
    compiled body doesn't take: its caller leaves that to the reference.
    """
    cdef Py_buffer view
    cdef void *memory
    if array is None:
        return NULL
    PyObject_GetBuffer(array, &view, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS)
    memory = view.buf
    cdef char letter = view.format[0]
    cdef bint fits = strchr(formats, letter) != NULL and view.format[1] == 0
    if shape != NULL and view.ndim == 2:
        shape.rows, shape.columns = view.shape[0], view.shape[1]
        shape.format = TG_FLOAT32 if letter == c"f" else TG_BFLOAT16 if letter == c"H" else TG_INT8
    PyBuffer_Release(&view)
    if not fits:
        raise TypeError(f"an array of type {chr(letter)} where one of {formats.decode()} is needed")
    return memory


cdef inline float *floats(object array) except? NULL:
    return <float *> address(array, b"f")


cdef int take_matrix(tg_matrix *w, object matrix, object bias, Py_ssize_t along, bint transposed=False) except -1:
    """Fill w from a tinygpt.ops.packed.Matrix; `along`: the length of its sums."""
    data, scale, group = matrix
    w.weight = address(data, b"fHb", w)
    if (w.columns if transposed else w.rows) != along or (w.format == TG_INT8) != (scale is not None):
        raise ValueError("a matrix that does not fit")
    w.group = group if scale is not None else along
    w.scale = floats(scale)
    w.bias = floats(bias)
    return 0


def few_rows_product(x, matrix):
    """x (M, K), matrix (K, N) -> (M, N)."""
    cdef tg_matrix w
    cdef tg_parts parts
    cdef Py_ssize_t M = x.shape[0], K = x.shape[1], N, m
    cdef float *rows
    cdef float *out
    cdef float *room
    try:
        rows = floats(x)
        take_matrix(&w, matrix, None, K)
    except (TypeError, ValueError):
        return NotImplemented
    N = w.columns
    y, work = numpy.empty((M, N), numpy.float32), numpy.empty(TG_BLOCKS * M * tg_pitch(N), numpy.float32)
    out, room = floats(y), floats(work)
    with nogil:
        parts = tg_product(&w, rows, K, M, room)
        for m in range(M):
            tg_sum(&parts, &w, m, 0, N, out + m * N)
    return y


def few_rows_product_transposed(x, matrix, out):
    """x (M, K), matrix (N, K) -> out (M, N)."""
    cdef tg_matrix w, written
    cdef Py_ssize_t M = x.shape[0], K = x.shape[1]
    cdef float *rows
    cdef float *y
    try:
        rows, y = floats(x), <float *> address(out, b"f", &written)
        take_matrix(&w, matrix, None, K, True)
    except (TypeError, ValueError):
        return NotImplemented
    if written.rows != M or written.columns != w.rows:
        return NotImplemented
    with nogil:
        tg_transposed_product(&w, rows, M, y)
    return out


def unpack_into(out, matrix, int axis):
    """A packed matrix (rows, columns) as float32, axis being the one whose groups share a scale."""
    cdef tg_matrix w
    cdef float *weights
    try:
        weights = floats(out)
        take_matrix(&w, matrix, None, out.shape[axis], axis == 1)
    except (TypeError, ValueError):
        return NotImplemented
    with nogil:
        tg_unpack(&w, axis, weights)
    return out


def decode_work(Py_ssize_t M, Py_ssize_t C):
    """How many floats of room decode_block needs."""
    return 6 * M * C + TG_BLOCKS * M * (tg_pitch(4 * C) + tg_pitch(C))


def decode_block(x, block, keys, values, length, work):
    """x (M, C), keys and values (M, H, capacity, D), length (M,): all in place; see the reference."""
    cdef tg_block t
    cdef Py_ssize_t M = x.shape[0], C = x.shape[1]
    cdef float *room
    shape = keys.shape
    if work.size < decode_work(M, C) or shape[0] != M or shape[1] * shape[3] != C or values.shape != shape:
        return NotImplemented
    t.M, t.C, t.H, t.capacity, t.eps = M, C, shape[1], shape[2], block.eps
    try:
        t.x, t.keys, t.values, room = floats(x), floats(keys), floats(values), floats(work)
        t.length = <const int64_t *> address(length, b"lq")
        t.ln_1, t.ln_1_bias, t.ln_2, t.ln_2_bias = (
            floats(block.ln_1), floats(block.ln_1_bias), floats(block.ln_2), floats(block.ln_2_bias)
        )
        take_matrix(&t.attn, block.attn, block.attn_bias, C)
        take_matrix(&t.attn_proj, block.attn_proj, block.attn_proj_bias, C)
        take_matrix(&t.fc, block.fc, block.fc_bias, C)
        take_matrix(&t.proj, block.proj, block.proj_bias, 4 * C)
    except (TypeError, ValueError):
        return NotImplemented
    t.normed, t.mixed, t.wide = room, room + M * C, room + 2 * M * C
    t.parts[0] = room + 6 * M * C
    t.parts[1] = t.parts[0] + TG_BLOCKS * M * tg_pitch(4 * C)
    with nogil:
        tg_decode_block(&t)
