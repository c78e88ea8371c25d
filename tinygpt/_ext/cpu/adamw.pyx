# AdamW, one pass over each parameter, all of them in one parallel region: tinygpt/optim/adamw.py has the mathematics.
#
# Memory traffic: parameter, gradient, m and v are read, parameter, m and v written: 28 bytes per element in float32, and
# 2 for the copy in bfloat16 that a model computing in that type has of a parameter.

TAKES_BFLOAT16.add("adamw_update")

cdef extern from "<math.h>" nogil:
    float sqrtf(float x)

cdef struct AdamW:
    void *param
    void *grad
    void *m
    void *v
    uint16_t *rounded  # or NULL
    Rows update  # with a copy
    double beta1, beta2, rate, root, eps, shrink, grad_scale


cdef inline real sqrt_of(real x) noexcept nogil:
    if real is float:
        return sqrtf(x)
    else:
        return sqrt(x)


cdef void adamw_update_span(real *kind, AdamW *p, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *param = <real *> p.param
    cdef real *grad = <real *> p.grad
    cdef real *m = <real *> p.m
    cdef real *v = <real *> p.v
    cdef real beta1 = <real> p.beta1, beta2 = <real> p.beta2
    cdef real rest1 = <real> (1 - p.beta1), rest2 = <real> (1 - p.beta2)
    cdef real rate = <real> p.rate, root = <real> p.root, eps = <real> p.eps
    cdef real shrink = <real> p.shrink, scale = <real> p.grad_scale
    cdef real g
    cdef Py_ssize_t i
    for i in range(begin, end):
        g = grad[i] * scale
        m[i] = beta1 * m[i] + rest1 * g
        v[i] = beta2 * v[i] + rest2 * g * g
        param[i] = param[i] * shrink - rate * m[i] / (<real> sqrt_of(v[i]) * root + eps)


cdef void adamw_update_span_and_copy(void *kind, AdamW *p, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    p.update(NULL, p, begin, end)
    tg_narrow(p.rounded + begin, <float *> p.param + begin, end - begin)


cdef int adamw_task(Spans *spans, AdamW *p, call) except -1:
    cdef double lr, beta1, beta2, eps, weight_decay, grad_scale
    cdef Py_ssize_t step
    param, grad, m, v, lr, beta1, beta2, eps, weight_decay, step, grad_scale, *copies = call
    p.param, p.grad, p.m, p.v = memory(param), memory(grad), memory(m), memory(v)
    p.rounded = <uint16_t *> memory(copies[0]) if copies else NULL
    p.beta1, p.beta2, p.eps, p.grad_scale = beta1, beta2, eps, grad_scale
    p.rate = lr / (1 - beta1 ** step)
    p.root = 1 / sqrt(1 - beta2 ** step)
    p.shrink = 1 - lr * weight_decay
    spans.rows = <Rows> adamw_update_span[float] if param.itemsize == 4 else <Rows> adamw_update_span[double]
    if p.rounded != NULL:
        p.update, spans.rows = spans.rows, <Rows> adamw_update_span_and_copy
    spans.task, spans.size = p, param.size
    return 0


def adamw_update_each(calls):
    """Update many parameters together; calls: the arguments of adamw_update for each of them."""
    cdef Spans *spans = NULL
    cdef AdamW *tasks = NULL
    cdef Py_ssize_t i = 0
    if not all(param.flags.writeable for param, *_ in calls):
        return NotImplemented
    if any(len(call) > 11 and not (call[0].itemsize == 4 and call[11].itemsize == 2) for call in calls):
        return NotImplemented
    try:
        spans = <Spans *> room_for(len(calls), sizeof(Spans))
        tasks = <AdamW *> room_for(len(calls), sizeof(AdamW))
        for call in calls:
            adamw_task(&spans[i], &tasks[i], call)
            i += 1
        run_each(spans, i)
    finally:
        free(spans)
        free(tasks)
    return [None] * i


def adamw_update(*arguments):
    """One step, in place on param, m and v, all of the same shape; grad is multiplied by grad_scale first."""
    done = adamw_update_each([arguments])
    return done if done is NotImplemented else None
