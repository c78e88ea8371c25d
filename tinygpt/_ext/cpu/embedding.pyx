# Embedding: rows of a table by id, and the sum of gradients back into them: tinygpt/ops/embedding.py.
#
# Two positions may have the same id, so adding in parallel over positions would be a race. Instead the threads divide
# the columns: each adds up its own span of columns of every row. `order` groups the positions by id, so that only the
# sums of one id, in double precision, are needed at a time.

cdef enum:
    COLUMNS = 64  # columns per span

cdef struct EmbeddingForward:
    void *weight
    int64_t *ids
    void *y
    Py_ssize_t C

cdef struct EmbeddingBackward:
    void *dy
    int64_t *ids
    int64_t *order
    void *dweight
    Py_ssize_t N, C


cdef void embedding_forward_rows(real *kind, EmbeddingForward *p, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *weight = <real *> p.weight
    cdef int64_t *ids = p.ids
    cdef real *y = <real *> p.y
    cdef Py_ssize_t C = p.C, row
    for row in range(begin, end):
        memcpy(y + row * C, weight + ids[row] * C, C * sizeof(real))


cdef void embedding_backward_columns(real *kind, EmbeddingBackward *p, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *dy = <real *> p.dy
    cdef int64_t *ids = p.ids
    cdef int64_t *order = p.order
    cdef real *dweight = <real *> p.dweight
    cdef Py_ssize_t C = p.C, N = p.N, width = end - begin, n, j
    cdef double sums[COLUMNS]
    cdef real *row
    memset(sums, 0, sizeof(sums))
    for n in range(N):
        row = dy + order[n] * C + begin
        for j in range(width):
            sums[j] += row[j]
        if n + 1 == N or ids[order[n + 1]] != ids[order[n]]:  # the last position of this id
            row = dweight + ids[order[n]] * C + begin
            for j in range(width):
                row[j] = <real> (row[j] + sums[j])
            memset(sums, 0, sizeof(sums))


cdef positions_by_id(ids, Py_ssize_t V):
    """The positions 0 .. N - 1 sorted by id (a stable sort)."""
    cdef int64_t *id
    cdef int64_t *place
    cdef int64_t *order
    cdef Py_ssize_t N = ids.size, i
    if V > 8 * N:
        return numpy.argsort(ids, kind="stable").astype(numpy.int64, copy=False)
    # V is not much larger than N: counting sort. place[v] is the index for the next position with id v.
    places, found = numpy.zeros(V + 1, numpy.int64), numpy.empty(N, numpy.int64)
    id, place, order = <int64_t *> memory(ids), <int64_t *> memory(places), <int64_t *> memory(found)
    for i in range(N):
        place[id[i] + 1] += 1
    for i in range(V):
        place[i + 1] += place[i]
    for i in range(N):
        order[place[id[i]]] = i
        place[id[i]] += 1
    return found


def embedding_forward(weight, ids):
    """weight (V, C), ids (N,) -> y (N, C)."""
    cdef Py_ssize_t N = ids.shape[0], C = weight.shape[1]
    if out_of_range(ids, weight.shape[0]):
        return NotImplemented
    y = numpy.empty((N, C), weight.dtype)
    cdef EmbeddingForward p = EmbeddingForward(
        weight=memory(weight), ids=<int64_t *> memory(ids), y=memory(y), C=C
    )
    run(&p, <Rows> embedding_forward_rows[float], <Rows> embedding_forward_rows[double], weight, N,
        grain_of(N, C * PLAIN))
    return y


def embedding_backward(dy, ids, dweight):
    """Adds dy (N, C) into dweight (V, C): row n of dy goes to row ids[n], for ids (N,)."""
    cdef Py_ssize_t N = dy.shape[0], C = dy.shape[1]
    if not dweight.flags.writeable or out_of_range(ids, dweight.shape[0]):
        return NotImplemented
    order = positions_by_id(ids, dweight.shape[0])
    cdef EmbeddingBackward p = EmbeddingBackward(
        dy=memory(dy), ids=<int64_t *> memory(ids), order=<int64_t *> memory(order), dweight=memory(dweight), N=N, C=C
    )
    run(&p, <Rows> embedding_backward_columns[float], <Rows> embedding_backward_columns[double], dy, C,
        COLUMNS)
