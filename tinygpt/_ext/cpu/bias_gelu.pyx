# Bias addition and GELU in one pass, and backward the bias's gradient with it: tinygpt/ops/bias_gelu.py.

cdef void bias_gelu_forward_rows(real *x, Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *bias = <real *> task.array[1]
    cdef real *y = <real *> task.array[2]
    cdef Py_ssize_t C = task.size[0], row, j
    for row in range(begin, end):
        for j in range(C):
            y[row * C + j] = gelu_value(x[row * C + j] + bias[j])


def bias_gelu_forward(x, bias):
    """x (N, C), bias (C,) -> gelu(x + bias) (N, C)."""
    cdef Task task
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1]
    y = numpy.empty_like(x)
    give(&task, (x, bias, y))
    task.size[0] = C
    run(&task, <Rows> bias_gelu_forward_rows[float], <Rows> bias_gelu_forward_rows[double], x, N, grain_of(N, C * 4))
    return y


cdef void bias_gelu_backward_blocks(real *dy, Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *x = <real *> task.array[1]
    cdef real *bias = <real *> task.array[2]
    cdef real *dx = <real *> task.array[3]
    cdef double *dbias = <double *> task.array[4]
    cdef Py_ssize_t C = task.size[0], N = task.size[1], block, row, j, at
    for block in range(begin, end):
        clear_sums(dbias, block, C)
        for row in range(block * BLOCK, min(N, (block + 1) * BLOCK)):
            at = row * C
            for j in range(C):
                dx[at + j] = dy[at + j] * gelu_slope(x[at + j] + bias[j])
            for j in range(C):
                dbias[block * C + j] += dx[at + j]


def bias_gelu_backward(dy, x, bias, out=None):
    """dy, x (N, C), bias (C,) -> dx (N, C), in `out` if there is one, which may be dy, and dbias (C,)."""
    cdef Task task
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1], blocks = (N + BLOCK - 1) // BLOCK
    dx, sums = numpy.empty_like(x) if out is None else out, numpy.empty((blocks, C))
    give(&task, (dy, x, bias, dx, sums))
    task.size[0], task.size[1] = C, N
    run(&task, <Rows> bias_gelu_backward_blocks[float], <Rows> bias_gelu_backward_blocks[double], x, blocks, 1)
    return dx, add_blocks(sums, x.dtype)
