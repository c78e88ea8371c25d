# AdamW, one pass over each parameter, all parameters in one region: tinygpt/optim/adamw.py has the mathematics.
#
# Memory sees reads of parameter, gradient, m and v and writes of parameter, m and v: 28 bytes an element in float32.

cdef void adamw_update_span(real *param, Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *grad = <real *> task.array[1]
    cdef real *m = <real *> task.array[2]
    cdef real *v = <real *> task.array[3]
    cdef real beta1 = <real> task.scalar[0], beta2 = <real> task.scalar[1]
    cdef real rest1 = <real> (1 - task.scalar[0]), rest2 = <real> (1 - task.scalar[1])
    cdef real rate = <real> task.scalar[2], root = <real> task.scalar[3], eps = <real> task.scalar[4]
    cdef real shrink = <real> task.scalar[5], scale = <real> task.scalar[6]
    cdef real g
    cdef Py_ssize_t i
    for i in range(begin, end):
        g = grad[i] * scale
        m[i] = beta1 * m[i] + rest1 * g
        v[i] = beta2 * v[i] + rest2 * g * g
        param[i] = param[i] * shrink - rate * m[i] / (<real> sqrt_of(v[i]) * root + eps)


cdef inline real sqrt_of(real x) noexcept nogil:
    if real is float:
        return sqrtf(x)
    else:
        return sqrt(x)


cdef extern from "<math.h>" nogil:
    float sqrtf(float x)


cdef int adamw_task(Task *task, call) except -1:
    cdef double lr, beta1, beta2, eps, weight_decay, grad_scale
    cdef Py_ssize_t step
    param, grad, m, v, lr, beta1, beta2, eps, weight_decay, step, grad_scale = call
    give(task, (param, grad, m, v))
    task.rows = <Rows> adamw_update_span[float] if param.itemsize == 4 else <Rows> adamw_update_span[double]
    task.size[0] = param.size
    task.scalar[0], task.scalar[1] = beta1, beta2
    task.scalar[2] = lr / (1 - beta1 ** step)
    task.scalar[3] = 1 / sqrt(1 - beta2 ** step)
    task.scalar[4], task.scalar[5], task.scalar[6] = eps, 1 - lr * weight_decay, grad_scale
    return 0


def adamw_update_each(calls):
    """The arguments of adamw_update for many parameters, which are updated together."""
    cdef Task *tasks
    cdef Py_ssize_t i = 0
    if not all(param.flags.writeable for param, *_ in calls):
        return NotImplemented
    tasks = tasks_for(len(calls))
    try:
        for call in calls:
            adamw_task(&tasks[i], call)
            i += 1
        run_each(tasks, i, SPAN)
    finally:
        free(tasks)
    return [None] * i


def adamw_update(*arguments):
    """One step, in place on param, m and v, all of one shape; grad is multiplied by grad_scale first."""
    done = adamw_update_each([arguments])
    return done if done is NotImplemented else None
