# GELU for the CPU, both forms. The mathematics is in tinygpt/ops/gelu.py.
#
# Memory-bound: 8 bytes an element forward and 12 backward in float32. The tanh form is computed as
# x * sigmoid(2u), which equals x/2 * (1 + tanh u) and needs one exponential and one division, with no cancellation.
# Whole numbers are cast to `real`: Cython takes a bare 1 as a double, and doubles the work with it. The erf form is in
# gelu_erf.h.

cdef extern from "gelu_erf.h" nogil:
    void tg_make_pieces()
    void tg_gelu_erf_forward_float(const float *x, float *y, Py_ssize_t n)
    void tg_gelu_erf_forward_double(const double *x, double *y, Py_ssize_t n)
    void tg_gelu_erf_backward_float(const float *dy, const float *x, float *dx, Py_ssize_t n)
    void tg_gelu_erf_backward_double(const double *dy, const double *x, double *dx, Py_ssize_t n)

tg_make_pieces()

cdef double GELU_A = 0.79788456080286535588  # sqrt(2 / pi)
cdef double GELU_B = 0.044715
cdef double LEAST = -40  # below it gelu is 0, and -inf must not become -inf / inf
cdef Py_ssize_t SPAN = 8192  # elements in a unit of work


cdef inline real gelu_value(real x) noexcept nogil:
    x = <real> LEAST if x < <real> LEAST else x  # a NaN is not below
    cdef real u = <real> GELU_A * (x + <real> GELU_B * x * x * x)
    return x / (<real> 1 + vexp(<real> -2 * u))


cdef inline real gelu_slope(real x) noexcept nogil:
    """d gelu / dx = s + x s (1 - s) 2 u', with s = sigmoid(2u) = 1 / (1 + e), and 1 - s as e s: a difference would have
    few digits."""
    cdef real square = x * x
    cdef real u = <real> GELU_A * (x + <real> GELU_B * square * x)
    cdef real e = vexp(<real> -2 * u)
    cdef real s = <real> 1 / (<real> 1 + e)
    cdef real rest = e * s
    cdef real du = <real> GELU_A * (<real> 1 + <real> 3 * <real> GELU_B * square)
    rest = rest if rest < <real> 1 else <real> 1  # also where e is infinite, and infinity * 0 is NaN
    # Far out s (1 - s) is 0 while x u' grows without bound: keep their product from becoming 0 * inf.
    cdef real tail = s * rest
    return s if tail == 0 else s + x * tail * <real> 2 * du


cdef void gelu_forward_span(real *x, Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *y = <real *> task.array[1]
    cdef Py_ssize_t i
    for i in range(begin, end):
        y[i] = gelu_value(x[i])


cdef void gelu_backward_span(real *dy, Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *x = <real *> task.array[1]
    cdef real *dx = <real *> task.array[2]
    cdef Py_ssize_t i
    for i in range(begin, end):
        dx[i] = dy[i] * gelu_slope(x[i])


cdef void gelu_erf_forward_span(real *x, Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *y = <real *> task.array[1]
    if real is float:
        tg_gelu_erf_forward_float(x + begin, y + begin, end - begin)
    else:
        tg_gelu_erf_forward_double(x + begin, y + begin, end - begin)


cdef void gelu_erf_backward_span(real *dy, Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *x = <real *> task.array[1]
    cdef real *dx = <real *> task.array[2]
    if real is float:
        tg_gelu_erf_backward_float(dy + begin, x + begin, dx + begin, end - begin)
    else:
        tg_gelu_erf_backward_double(dy + begin, x + begin, dx + begin, end - begin)


cdef object map_elements(Rows single, Rows double_, tuple inputs, out=None):
    """Run an elementwise kernel over all the inputs' elements into `out`, or a new array of their shape."""
    cdef Task task
    if out is None:
        out = numpy.empty_like(inputs[0])
    give(&task, inputs + (out,))
    run(&task, single, double_, out, out.size, SPAN)
    return out


def gelu_forward(x):
    """x, any shape -> y of that shape."""
    return map_elements(<Rows> gelu_forward_span[float], <Rows> gelu_forward_span[double], (x,))


def gelu_backward(dy, x, out=None):
    """dy, x of one shape -> dx, in `out` if there is one, which may be dy."""
    return map_elements(<Rows> gelu_backward_span[float], <Rows> gelu_backward_span[double], (dy, x), out)


def gelu_erf_forward(x):
    """x, any shape -> y of that shape."""
    return map_elements(<Rows> gelu_erf_forward_span[float], <Rows> gelu_erf_forward_span[double], (x,))


def gelu_erf_backward(dy, x, out=None):
    """dy, x of one shape -> dx, in `out` if there is one, which may be dy."""
    return map_elements(<Rows> gelu_erf_backward_span[float], <Rows> gelu_erf_backward_span[double], (dy, x), out)
