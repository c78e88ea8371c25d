# Cross-entropy over a vocabulary: tinygpt/ops/cross_entropy.py and linear_cross_entropy.py.
#
# Forward is one pass over the logits: a piece of PIECE logits is read from memory once, and its largest value and sum of
# exponentials are taken while it is in the first cache. The running sum is rescaled when a larger value comes
# (online softmax). Probabilities are never stored.

cdef Py_ssize_t PIECE = 2048


cdef inline void in_two_parts(real top, double log_total, real *lse) noexcept nogil:
    """lse = top + log_total as near and rest: see tinygpt/ops/_two_parts.py."""
    lse[0] = <real> (top + log_total)
    lse[1] = <real> tg_less_then_more(top, lse[0], log_total)


cdef inline void log_sum_exp(real *x, Py_ssize_t n, real *lse) noexcept nogil:
    """log(sum(exp(x))) of a row, in two parts, stably and in one pass over memory."""
    cdef Py_ssize_t start = 0, stop
    cdef real top = x[0], piece_top
    cdef double total = 0
    while start < n:
        stop = min(n, start + PIECE)
        piece_top = row_max(x + start, stop - start)
        if piece_top > top:
            total *= exp(<double> top - <double> piece_top)
            top = piece_top
        total += exp_sum(x + start, <real *> NULL, stop - start, finite_or_zero(top))
        start = stop
    in_two_parts(top, log(total), lse)


cdef inline real finite_or_zero(real top) noexcept nogil:
    """A row's largest value as what to take off before exp: nothing but -inf so far gives exp(-inf - 0) = 0."""
    return <real> 0 if top == <real> -INFINITY else top


cdef inline void log_sum_exps(real *x, Py_ssize_t rows, Py_ssize_t n, real *lse) noexcept nogil:
    """log(sum(exp(x))) in two parts of up to TOGETHER short rows, each step for all of them, or of one long row."""
    cdef Py_ssize_t row
    cdef real top[TOGETHER]
    cdef double total[TOGETHER]
    if n > SHORT:
        log_sum_exp(x, n, lse)
        return
    for row in range(rows):
        top[row] = row_max(x + row * n, n)
    for row in range(rows):
        total[row] = exp_sum(x + row * n, <real *> NULL, n, finite_or_zero(top[row]))
    for row in range(rows):
        in_two_parts(top[row], log(total[row]), lse + 2 * row)


cdef inline real loss_of(real *lse, real picked) noexcept nogil:
    """lse - picked, of the parts of lse."""
    return <real> tg_less_then_more(lse[0], picked, lse[1])


cdef void cross_entropy_forward_rows(real *logits, Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef int64_t *targets = <int64_t *> task.array[1]
    cdef real *losses = <real *> task.array[2]
    cdef real *lse = <real *> task.array[3]
    cdef Py_ssize_t V = task.size[0], start = begin, stop, row
    cdef int64_t ignored = task.size[1]
    while start < end:
        stop = after_these(start, end, V)
        log_sum_exps(logits + start * V, stop - start, V, lse + 2 * start)
        for row in range(start, stop):
            losses[row] = 0 if targets[row] == ignored else loss_of(lse + 2 * row, logits[row * V + targets[row]])
        start = stop


cdef inline void gradient_row(real *x, real *dx, Py_ssize_t V, int64_t target, real *lse, real scale) noexcept nogil:
    """dx = scale * (exp(x - lse) - onehot(target)); dx may be x."""
    exp_scaled(x, <real *> NULL, dx, V, lse[0], <real> (scale * tg_exp_minus(lse[1])))
    dx[target] -= scale


cdef void cross_entropy_backward_rows(real *logits, Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """d loss / d logit_j = softmax_j - (j == target), times the row's upstream gradient."""
    cdef int64_t *targets = <int64_t *> task.array[1]
    cdef real *lse = <real *> task.array[2]
    cdef real *dlosses = <real *> task.array[3]
    cdef real *dlogits = <real *> task.array[4]
    cdef Py_ssize_t V = task.size[0], row
    cdef int64_t ignored = task.size[1]
    for row in range(begin, end):
        if targets[row] == ignored:
            memset(dlogits + row * V, 0, V * sizeof(real))
            continue
        gradient_row(logits + row * V, dlogits + row * V, V, targets[row], lse + 2 * row, dlosses[row])


cdef void cross_entropy_inplace_rows(real *logits, Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef int64_t *targets = <int64_t *> task.array[1]
    cdef real *losses = <real *> task.array[2]
    cdef Py_ssize_t V = task.size[0], row
    cdef int64_t ignored = task.size[1]
    cdef real lse[2]
    for row in range(begin, end):
        if targets[row] == ignored:
            losses[row] = 0
            memset(logits + row * V, 0, V * sizeof(real))
            continue
        log_sum_exp(logits + row * V, V, lse)
        losses[row] = loss_of(lse, logits[row * V + targets[row]])
        gradient_row(logits + row * V, logits + row * V, V, targets[row], lse, <real> task.scalar[0])


def cross_entropy_forward(logits, targets, int64_t ignore_index):
    """logits (N, V), targets (N,) -> losses (N,), 0 where ignored; lse (N, 2)."""
    cdef Task task
    cdef Py_ssize_t N = logits.shape[0], V = logits.shape[1]
    if out_of_range(targets, V, ignore_index):
        return NotImplemented
    losses, lse = numpy.empty(N, logits.dtype), numpy.empty((N, 2), logits.dtype)
    give(&task, (logits, targets, losses, lse))
    task.size[0], task.size[1] = V, ignore_index
    run(&task, <Rows> cross_entropy_forward_rows[float], <Rows> cross_entropy_forward_rows[double], logits, N,
        grain_of(N, V * 4))
    return losses, lse


def cross_entropy_backward(dlosses, logits, targets, lse, int64_t ignore_index):
    """dlosses, targets (N,), lse (N, 2), logits (N, V) -> dlogits (N, V)."""
    cdef Task task
    cdef Py_ssize_t N = logits.shape[0], V = logits.shape[1]
    if out_of_range(targets, V, ignore_index):
        return NotImplemented
    dlogits = numpy.empty_like(logits)
    give(&task, (logits, targets, lse, dlosses, dlogits))
    task.size[0], task.size[1] = V, ignore_index
    run(&task, <Rows> cross_entropy_backward_rows[float], <Rows> cross_entropy_backward_rows[double], logits, N,
        grain_of(N, V * 8))
    return dlogits


def cross_entropy_inplace(logits, targets, int64_t ignore_index, double scale):
    """logits (N, V) become scale * d loss / d logits; returns the losses (N,)."""
    cdef Task task
    cdef Py_ssize_t N = logits.shape[0], V = logits.shape[1]
    if not logits.flags.writeable or out_of_range(targets, V, ignore_index):
        return NotImplemented
    losses = numpy.empty(N, logits.dtype)
    give(&task, (logits, targets, losses))
    task.size[0], task.size[1] = V, ignore_index
    task.scalar[0] = scale
    run(&task, <Rows> cross_entropy_inplace_rows[float], <Rows> cross_entropy_inplace_rows[double], logits, N,
        grain_of(N, V * 8))
    return losses
