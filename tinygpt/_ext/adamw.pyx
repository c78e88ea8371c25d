# AdamW, one pass over each parameter: tinygpt/optim/adamw.py has the mathematics.
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


def adamw_update(param, grad, m, v, double lr, double beta1, double beta2, double eps, double weight_decay,
                 Py_ssize_t step, double grad_scale):
    """One step, in place on param, m and v, all of one shape; grad is multiplied by grad_scale first."""
    cdef Task task
    if not (param.flags.c_contiguous and m.flags.c_contiguous and v.flags.c_contiguous and param.flags.writeable):
        return NotImplemented
    give(&task, (param, grad, m, v))
    task.scalar[0], task.scalar[1] = beta1, beta2
    task.scalar[2] = lr / (1 - beta1 ** step)
    task.scalar[3] = 1 / sqrt(1 - beta2 ** step)
    task.scalar[4], task.scalar[5], task.scalar[6] = eps, 1 - lr * weight_decay, grad_scale
    run(&task, <Rows> adamw_update_span[float], <Rows> adamw_update_span[double], param, param.size, SPAN)
