# Cross-entropy over a vocabulary: tinygpt/ops/cross_entropy.py and linear_cross_entropy.py.
#
# Forward is one pass over the logits: softmax.pxi. Probabilities are never stored.

TAKES_BFLOAT16.update(["cross_entropy_forward", "cross_entropy_backward", "cross_entropy_inplace"])

cdef struct CrossEntropy:
    void *logits
    int64_t *targets
    void *losses
    void *lse
    void *dlosses  # backward
    void *dlogits  # backward
    Py_ssize_t V
    int64_t ignored
    double scale  # in place


cdef inline real loss_of(real *lse, real picked) noexcept nogil:
    """lse - picked, for lse in two parts."""
    return <real> tg_less_then_more(lse[0], picked, lse[1])


cdef void cross_entropy_forward_rows(real *kind, CrossEntropy *p, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *logits = <real *> p.logits
    cdef int64_t *targets = p.targets
    cdef real *losses = <real *> p.losses
    cdef real *lse = <real *> p.lse
    cdef Py_ssize_t V = p.V, start = begin, stop, row
    cdef int64_t ignored = p.ignored
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


cdef void cross_entropy_backward_rows(real *kind, CrossEntropy *p, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """d loss / d logit_j = softmax_j - (j == target), times the row's upstream gradient."""
    cdef real *logits = <real *> p.logits
    cdef int64_t *targets = p.targets
    cdef real *lse = <real *> p.lse
    cdef real *dlosses = <real *> p.dlosses
    cdef real *dlogits = <real *> p.dlogits
    cdef Py_ssize_t V = p.V, row
    cdef int64_t ignored = p.ignored
    for row in range(begin, end):
        if targets[row] == ignored:
            memset(dlogits + row * V, 0, V * sizeof(real))
            continue
        gradient_row(logits + row * V, dlogits + row * V, V, targets[row], lse + 2 * row, dlosses[row])


cdef void cross_entropy_inplace_rows(real *kind, CrossEntropy *p, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *logits = <real *> p.logits
    cdef int64_t *targets = p.targets
    cdef real *losses = <real *> p.losses
    cdef Py_ssize_t V = p.V, row
    cdef int64_t ignored = p.ignored
    cdef real lse[2]
    for row in range(begin, end):
        if targets[row] == ignored:
            losses[row] = 0
            memset(logits + row * V, 0, V * sizeof(real))
            continue
        log_sum_exp(logits + row * V, V, lse)
        losses[row] = loss_of(lse, logits[row * V + targets[row]])
        gradient_row(logits + row * V, logits + row * V, V, targets[row], lse, <real> p.scale)


def cross_entropy_forward(logits, targets, int64_t ignore_index):
    """logits (N, V), targets (N,) -> losses (N,), 0 for ignored targets; lse (N, 2)."""
    cdef Py_ssize_t N = logits.shape[0], V = logits.shape[1]
    if out_of_range(targets, V, ignore_index):
        return NotImplemented
    losses, lse = numpy.empty(N, statistics_of(logits)), numpy.empty((N, 2), statistics_of(logits))
    cdef CrossEntropy p = CrossEntropy(
        logits=memory(logits), targets=<int64_t *> memory(targets), losses=memory(losses), lse=memory(lse),
        dlosses=NULL, dlogits=NULL, V=V, ignored=ignore_index, scale=1,
    )
    cdef NarrowTask narrow = narrow_task(<Rows> cross_entropy_forward_rows[float], &p, sizeof(p))
    if logits.itemsize == 2:
        add_narrow(&narrow, &p.logits, logits, V, True, False)
        run_narrow(&narrow, N, grain_of(N, V * PLAIN))
    else:
        run(&p, <Rows> cross_entropy_forward_rows[float], <Rows> cross_entropy_forward_rows[double], logits, N,
            grain_of(N, V * PLAIN))
    return losses, lse


def cross_entropy_backward(dlosses, logits, targets, lse, int64_t ignore_index):
    """dlosses, targets (N,), lse (N, 2), logits (N, V) -> dlogits (N, V)."""
    cdef Py_ssize_t N = logits.shape[0], V = logits.shape[1]
    if out_of_range(targets, V, ignore_index):
        return NotImplemented
    dlogits, dlosses, lse = numpy.empty_like(logits), wide(dlosses), wide(lse)
    cdef CrossEntropy p = CrossEntropy(
        logits=memory(logits), targets=<int64_t *> memory(targets), losses=NULL, lse=memory(lse),
        dlosses=memory(dlosses), dlogits=memory(dlogits), V=V, ignored=ignore_index, scale=1,
    )
    cdef NarrowTask narrow = narrow_task(<Rows> cross_entropy_backward_rows[float], &p, sizeof(p))
    if logits.itemsize == 2:
        add_narrow(&narrow, &p.logits, logits, V, True, False)
        add_narrow(&narrow, &p.dlogits, dlogits, V, False, True)
        run_narrow(&narrow, N, grain_of(N, V * TWICE))
    else:
        run(&p, <Rows> cross_entropy_backward_rows[float], <Rows> cross_entropy_backward_rows[double], logits, N,
            grain_of(N, V * TWICE))
    return dlogits


def cross_entropy_inplace(logits, targets, int64_t ignore_index, double scale):
    """Overwrites logits (N, V) with scale * d loss / d logits and returns the losses (N,)."""
    cdef Py_ssize_t N = logits.shape[0], V = logits.shape[1]
    if not logits.flags.writeable or out_of_range(targets, V, ignore_index):
        return NotImplemented
    losses = numpy.empty(N, statistics_of(logits))
    cdef CrossEntropy p = CrossEntropy(
        logits=memory(logits), targets=<int64_t *> memory(targets), losses=memory(losses), lse=NULL, dlosses=NULL,
        dlogits=NULL, V=V, ignored=ignore_index, scale=scale,
    )
    cdef NarrowTask narrow = narrow_task(<Rows> cross_entropy_inplace_rows[float], &p, sizeof(p))
    if logits.itemsize == 2:
        add_narrow(&narrow, &p.logits, logits, V, True, True)
        run_narrow(&narrow, N, grain_of(N, V * TWICE))
    else:
        run(&p, <Rows> cross_entropy_inplace_rows[float], <Rows> cross_entropy_inplace_rows[double], logits, N,
            grain_of(N, V * TWICE))
    return losses
