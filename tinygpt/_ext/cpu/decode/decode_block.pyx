# One new token through one block of the model (decode.h), and products of a few rows (few_rows.h, few_rows_transposed.h,
# four_bits.h); weights.h has the formats. The mathematics
# is in tinygpt/ops/packed.py and, for the block, in tinygpt/gpt.py.
#
# Memory-bound: the weights are read once, whatever the number of rows. Supports float32 and packed weights; everything
# else is left to the reference.

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT
from libc.math cimport sqrt
from libc.string cimport strchr

cdef extern from "decode.h" nogil:
    int TG_FLOAT32, TG_BFLOAT16, TG_INT8, TG_INT4, TG_BLOCKS, TG_PANEL, TG_FOUR_GROUP, TG_NIBBLES
    int TG_ROWS_AT_ONCE, TG_SPAN_TERMS
    int TG_GELU_TANH, TG_GELU_ERF, TG_RELU, TG_SILU
    cdef struct tg_matrix:
        const void *weight
        const float *scale
        const uint16_t *half_scale
        const float *bias
        Py_ssize_t rows, columns, group
        int format
        int rounded
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
        double eps_1, eps_2, scale
        int activation
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
    void tg_sum_all(tg_parts parts, const tg_matrix *matrix, float *out)
    void tg_transposed_product(const tg_matrix *matrix, const float *x, Py_ssize_t M, float *y)
    struct tg_span:
        pass
    Py_ssize_t tg_spans(const tg_matrix *matrix)
    void tg_integer_transposed(const tg_matrix *matrix, const float *x, Py_ssize_t M, float *y, tg_span *spans)
    int tg_use_vnni(int wanted)
    Py_ssize_t tg_rounded_room(Py_ssize_t M, Py_ssize_t K)
    void tg_four_product(
        const tg_matrix *matrix, const float *x, Py_ssize_t ldx, Py_ssize_t M, float *y, Py_ssize_t pitch, float *room
    )
    void tg_unpack(const tg_matrix *matrix, int axis, float *out)
    void tg_four_unpack(const tg_matrix *matrix, int transposed, float *out)
    void tg_decode_block(tg_block *block)


cdef void *address(object array, const char *formats, tg_matrix *shape=NULL, Py_ssize_t size=-1) except? NULL:
    """The address of a C-contiguous array of one of the types `formats` (buffer protocol letters), NULL for None.

    shape: receives the sizes and the format of a 2-D array. size: the required number of elements. Raises TypeError for
    another type or size, and ValueError (NumPy's) for another layout; the caller then falls back to the reference.
    """
    cdef Py_buffer view
    cdef void *memory
    if array is None:
        return NULL
    PyObject_GetBuffer(array, &view, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS)
    memory = view.buf
    cdef char letter = view.format[0]
    cdef bint fits = strchr(formats, letter) != NULL and view.format[1] == 0
    fits = fits and (size < 0 or view.len == size * view.itemsize)
    if shape != NULL and view.ndim == 2:
        shape.rows, shape.columns = view.shape[0], view.shape[1]
        shape.format = TG_FLOAT32 if letter == c"f" else TG_BFLOAT16 if letter == c"H" else TG_INT8
    PyBuffer_Release(&view)
    if not fits:
        raise TypeError(f"an array of type {chr(letter)}, or its size, does not fit: {formats.decode()} is needed")
    return memory


cdef inline float *floats(object array) except? NULL:
    return <float *> address(array, b"f")


cdef int take_matrix(tg_matrix *w, object matrix, object bias, Py_ssize_t along, bint transposed=False) except -1:
    """Fill w from a tinygpt.ops.packed.Matrix; `along`: the number of terms of its sums."""
    data, scale, group, outputs, activations = matrix
    w.bias, w.rounded = floats(bias), activations is not None
    if outputs is not None:
        return take_four(w, data, scale, outputs, along)
    w.weight = address(data, b"fHb", w)
    if (w.columns if transposed else w.rows) != along or (w.format == TG_INT8) != (scale is not None):
        raise ValueError("the matrix does not fit")
    w.group = group if scale is not None else along
    w.scale = floats(scale)
    return 0


cdef int take_four(tg_matrix *w, object data, object scale, Py_ssize_t outputs, Py_ssize_t along) except -1:
    """Fill w from a 4-bit matrix, whose rows are the terms of its sums on either axis."""
    shape = data.shape
    if len(shape) != 3 or shape[1] * TG_NIBBLES != along or along % TG_FOUR_GROUP or shape[2] != TG_PANEL:
        raise ValueError("the matrix does not fit")
    if (outputs + TG_PANEL - 1) // TG_PANEL != shape[0]:
        raise ValueError("the number of outputs does not fit")
    w.weight = address(data, b"I")
    w.half_scale = <const uint16_t *> address(scale, b"H", NULL, shape[0] * (along // TG_FOUR_GROUP) * TG_PANEL)
    w.format, w.group, w.scale = TG_INT4, TG_FOUR_GROUP, NULL
    w.rows, w.columns = along, outputs
    return 0


def few_rows_product(x, matrix):
    """x (M, K), matrix (K, N) -> (M, N)."""
    cdef tg_matrix w
    cdef Py_ssize_t M = x.shape[0], K = x.shape[1], N, count, at_once, first = 0
    cdef float *rows
    cdef float *out
    cdef float *room
    try:
        rows = floats(x)
        take_matrix(&w, matrix, None, K)
    except (TypeError, ValueError):
        return NotImplemented
    N = w.columns
    at_once = min(M, TG_ROWS_AT_ONCE) if w.rounded else M  # with rounded activations, this is the product of many rows too
    y = numpy.empty((M, N), numpy.float32)
    work = numpy.empty(TG_BLOCKS * at_once * tg_pitch(N) + tg_rounded_room(at_once, K), numpy.float32)
    out, room = floats(y), floats(work)
    with nogil:
        while first < M:
            count = min(at_once, M - first)
            tg_sum_all(tg_product(&w, rows + first * K, K, count, room), &w, out + first * N)
            first += at_once
    return y


def few_rows_product_transposed(x, matrix, out):
    """x (M, K), matrix (N, K) -> out (M, N)."""
    cdef tg_matrix w, written
    cdef Py_ssize_t M = x.shape[0], K = x.shape[1]
    cdef float *rows
    cdef float *y
    cdef float *four_room = NULL
    cdef tg_span *room = NULL
    try:
        rows, y = floats(x), <float *> address(out, b"f", &written)
        take_matrix(&w, matrix, None, K, True)
    except (TypeError, ValueError):
        return NotImplemented
    if written.rows != M or written.columns != (w.columns if w.format == TG_INT4 else w.rows):
        return NotImplemented
    if w.rounded and w.format == TG_INT4:
        work = numpy.empty(tg_rounded_room(M, K), numpy.float32)
        four_room = floats(work)
    elif w.rounded:
        spans = numpy.empty(tg_spans(&w) * <Py_ssize_t> sizeof(tg_span), numpy.uint8)
        room = <tg_span *> address(spans, b"B")
    with nogil:
        if w.format == TG_INT4:
            tg_four_product(&w, rows, K, M, y, w.columns, four_room)
        elif w.rounded:
            tg_integer_transposed(&w, rows, M, y, room)
        else:
            tg_transposed_product(&w, rows, M, y)
    return out


def use_vnni(wanted):
    """For tests: whether to multiply bytes by the instructions for that, if the processor has them; returns the
    previous setting. The results are the same."""
    return bool(tg_use_vnni(wanted))


def integer_product_sizes():
    """For tests: the constants shared with the definition of the product with rounded activations."""
    return TG_SPAN_TERMS, TG_BLOCKS


def unpack_into(out, matrix, int axis):
    """Unpack a matrix (rows, columns) into out, float32. axis: the axis along which groups share a scale."""
    cdef tg_matrix w
    cdef float *weights
    try:
        weights = floats(out)
        take_matrix(&w, matrix, None, out.shape[axis], axis == 1)
    except (TypeError, ValueError):
        return NotImplemented
    if w.format == TG_INT4 and out.shape[1 - axis] != w.columns:
        return NotImplemented
    with nogil:
        if w.format == TG_INT4:
            tg_four_unpack(&w, axis == 1, weights)
        else:
            tg_unpack(&w, axis, weights)
    return out


cdef dict ACTIVATIONS = {"gelu_new": TG_GELU_TANH, "gelu": TG_GELU_ERF, "relu": TG_RELU, "silu": TG_SILU}


cdef inline float *vector(object parameter, Py_ssize_t size) except? NULL:
    """The address of a parameter's elements, NULL for None."""
    return NULL if parameter is None else <float *> address(parameter.data, b"f", NULL, size)


cdef int take_layer(tg_matrix *w, object layer, Py_ssize_t rows, Py_ssize_t columns) except -1:
    """Fill w from a Linear, packed or not, with a matrix (rows, columns). columns < 0: any number of columns."""
    weight = getattr(layer, "weight", None)  # runs for every token, so it avoids building a Matrix
    take_matrix(w, layer.matrix if weight is None else (weight.data, None, None, None, None), None, rows)
    if columns >= 0 and w.columns != columns:
        raise ValueError("the layer does not fit")
    w.bias = vector(layer.bias, w.columns)
    return 0


def decode_work(Py_ssize_t M, Py_ssize_t C, Py_ssize_t inner):
    """The number of floats of workspace that decode_block needs; inner: the MLP's hidden size."""
    wide = max(C, inner)
    return M * (2 * C + wide) + TG_BLOCKS * M * (tg_pitch(max(3 * C, inner)) + tg_pitch(C)) + tg_rounded_room(M, inner)


def decode_block(x, block, keys, values, length, work):
    """x (M, C), keys and values (M, H, capacity, D), updated in place; length (M,); see the reference."""
    cdef tg_block t
    cdef Py_ssize_t M = x.shape[0], C = x.shape[1], inner
    cdef float *room
    attn, mlp, shape = block.attn, block.mlp, keys.shape
    if shape[0] != M or shape[1] * shape[3] != C or values.shape != shape or length.shape != (M,):
        return NotImplemented
    activation = ACTIVATIONS.get(mlp.activation)
    if attn.n_head != shape[1] or activation is None:
        return NotImplemented
    t.M, t.C, t.H, t.capacity = M, C, shape[1], shape[2]
    ln_1, ln_2 = block.ln_1, block.ln_2
    t.eps_1, t.eps_2, t.activation = ln_1.eps, ln_2.eps, activation
    t.scale = 1 / sqrt(<double> shape[3]) if attn.scale is None else attn.scale
    try:
        t.x, t.keys, t.values, room = floats(x), floats(keys), floats(values), floats(work)
        t.length = <const int64_t *> address(length, b"lq")
        t.ln_1, t.ln_1_bias = vector(ln_1.weight, C), vector(ln_1.bias, C)
        t.ln_2, t.ln_2_bias = vector(ln_2.weight, C), vector(ln_2.bias, C)
        take_layer(&t.attn, attn.c_attn, C, 3 * C)
        take_layer(&t.attn_proj, attn.c_proj, C, C)
        take_layer(&t.fc, mlp.c_fc, C, -1)
        take_layer(&t.proj, mlp.c_proj, t.fc.columns, C)
    except (TypeError, ValueError):
        return NotImplemented
    inner = t.fc.columns
    if work.size < decode_work(M, C, inner):
        return NotImplemented
    t.normed, t.mixed, t.wide = room, room + M * C, room + 2 * M * C
    t.parts[0] = t.wide + M * max(C, inner)
    t.parts[1] = t.parts[0] + TG_BLOCKS * M * tg_pitch(max(3 * C, inner))
    with nogil:
        tg_decode_block(&t)
