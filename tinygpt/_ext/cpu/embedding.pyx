# Embedding: rows of a table by number, and the sum of gradients back into them: tinygpt/ops/embedding.py.
#
# Two positions may hold one id, so adding in parallel over positions would race. The threads share out the columns
# instead: each adds its own span of every row. `order` brings the positions of one id together, so that its sum is in
# double precision and needs no more room than that span.

cdef enum:
    COLUMNS = 64  # of a span

cdef void embedding_forward_rows(real *weight, Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef int64_t *ids = <int64_t *> task.array[1]
    cdef real *y = <real *> task.array[2]
    cdef Py_ssize_t C = task.size[0], row
    for row in range(begin, end):
        memcpy(y + row * C, weight + ids[row] * C, C * sizeof(real))


cdef void embedding_backward_columns(real *dy, Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef int64_t *ids = <int64_t *> task.array[1]
    cdef int64_t *order = <int64_t *> task.array[2]
    cdef real *dweight = <real *> task.array[3]
    cdef Py_ssize_t C = task.size[0], N = task.size[1], width = end - begin, n, j
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
    """The positions 0 .. N - 1 in the order of their ids, equal ones as they come."""
    cdef Task task
    cdef int64_t *id
    cdef int64_t *place
    cdef int64_t *order
    cdef Py_ssize_t N = ids.size, i
    if V > 8 * N:
        return numpy.argsort(ids, kind="stable").astype(numpy.int64, copy=False)
    # Few ids: count them. place[v] is where the next position of id v goes.
    places, found = numpy.zeros(V + 1, numpy.int64), numpy.empty(N, numpy.int64)
    give(&task, (ids, places, found))
    id, place, order = <int64_t *> task.array[0], <int64_t *> task.array[1], <int64_t *> task.array[2]
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
    cdef Task task
    cdef Py_ssize_t N = ids.shape[0], C = weight.shape[1]
    if out_of_range(ids, weight.shape[0]):
        return NotImplemented
    y = numpy.empty((N, C), weight.dtype)
    give(&task, (weight, ids, y))
    task.size[0] = C
    run(&task, <Rows> embedding_forward_rows[float], <Rows> embedding_forward_rows[double], weight, N,
        grain_of(N, C * 4))
    return y


def embedding_backward(dy, ids, dweight):
    """dy (N, C), ids (N,): adds to each row of dweight (V, C) the sum of the rows of dy that its id received."""
    cdef Task task
    cdef Py_ssize_t N = dy.shape[0], C = dy.shape[1]
    if not dweight.flags.writeable or out_of_range(ids, dweight.shape[0]):
        return NotImplemented
    order = positions_by_id(ids, dweight.shape[0])
    give(&task, (dy, ids, order, dweight))
    task.size[0], task.size[1] = C, N
    run(&task, <Rows> embedding_backward_columns[float], <Rows> embedding_backward_columns[double], dy, C,
        COLUMNS)
