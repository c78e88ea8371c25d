# GELU for the CPU, both forms. The mathematics is in tinygpt/ops/gelu.py.
#
# Memory-bound: 8 bytes per element forward and 12 backward in float32. The tanh form is computed as x * sigmoid(2u)
# (gelu.pxi), which equals x/2 * (1 + tanh u) and needs one exponential and one division, with no cancellation. The erf
# form is in gelu_erf.h.

TAKES_BFLOAT16.update(["gelu_forward", "gelu_backward", "gelu_erf_forward", "gelu_erf_backward"])

cdef extern from "gelu_erf.h" nogil:
    void tg_make_pieces()
    void tg_gelu_erf_forward_float(const float *x, float *y, Py_ssize_t n)
    void tg_gelu_erf_forward_double(const double *x, double *y, Py_ssize_t n)
    void tg_gelu_erf_backward_float(const float *dy, const float *x, float *dx, Py_ssize_t n)
    void tg_gelu_erf_backward_double(const double *dy, const double *x, double *dx, Py_ssize_t n)

tg_make_pieces()

cdef struct Gelu:
    void *dy  # backward
    void *x
    void *out


cdef void gelu_forward_span(real *kind, Gelu *p, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *x = <real *> p.x
    cdef real *y = <real *> p.out
    cdef Py_ssize_t i
    for i in range(begin, end):
        y[i] = gelu_value(x[i])


cdef void gelu_backward_span(real *kind, Gelu *p, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *dy = <real *> p.dy
    cdef real *x = <real *> p.x
    cdef real *dx = <real *> p.out
    cdef Py_ssize_t i
    for i in range(begin, end):
        dx[i] = dy[i] * gelu_slope(x[i])


cdef void gelu_erf_forward_span(real *kind, Gelu *p, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *x = <real *> p.x
    cdef real *y = <real *> p.out
    if real is float:
        tg_gelu_erf_forward_float(x + begin, y + begin, end - begin)
    else:
        tg_gelu_erf_forward_double(x + begin, y + begin, end - begin)


cdef void gelu_erf_backward_span(real *kind, Gelu *p, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef real *dy = <real *> p.dy
    cdef real *x = <real *> p.x
    cdef real *dx = <real *> p.out
    if real is float:
        tg_gelu_erf_backward_float(dy + begin, x + begin, dx + begin, end - begin)
    else:
        tg_gelu_erf_backward_double(dy + begin, x + begin, dx + begin, end - begin)


cdef object run_gelu(Rows single, Rows double_, dy, x, out):
    """Run one of these functions over all elements, into `out` or a new array of x's shape."""
    if out is None:
        out = numpy.empty_like(x)
    cdef Gelu p = Gelu(dy=memory(dy), x=memory(x), out=memory(out))
    cdef NarrowTask narrow = narrow_task(single, &p, sizeof(p))
    if x.itemsize == 2:
        add_narrow(&narrow, &p.dy, dy, 1, True, False)
        add_narrow(&narrow, &p.x, x, 1, True, False)
        add_narrow(&narrow, &p.out, out, 1, False, True)
        run_narrow(&narrow, out.size, SPAN)
    else:
        run(&p, single, double_, out, out.size, SPAN)
    return out


def gelu_forward(x):
    """x, any shape -> y of that shape."""
    return run_gelu(<Rows> gelu_forward_span[float], <Rows> gelu_forward_span[double], None, x, None)


def gelu_backward(dy, x, out=None):
    """dy, x of the same shape -> dx, in `out` if given, which may be dy."""
    return run_gelu(<Rows> gelu_backward_span[float], <Rows> gelu_backward_span[double], dy, x, out)


def gelu_erf_forward(x):
    """x, any shape -> y of that shape."""
    return run_gelu(<Rows> gelu_erf_forward_span[float], <Rows> gelu_erf_forward_span[double], None, x, None)


def gelu_erf_backward(dy, x, out=None):
    """dy, x of the same shape -> dx, in `out` if given, which may be dy."""
    return run_gelu(<Rows> gelu_erf_backward_span[float], <Rows> gelu_erf_backward_span[double], dy, x, out)
