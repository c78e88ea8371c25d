# Maxima, sums of exponentials and their logarithms over rows: for softmax.pyx and cross_entropy.pyx.
#
# The loops over one row are in softmax.h. The steps of a row depend on each other: the maximum, the sum of
# exponentials, its logarithm. So every step is done for TOGETHER short rows before the next step. A long row is read
# from memory once, in pieces of PIECE logits; the maximum and the sum of exponentials of a piece are computed while it
# is in the L1 cache, and the running sum is rescaled when the maximum grows (online softmax).

cdef extern from "attention.h" nogil:
    float tg_largest_float(const float *x, Py_ssize_t n, float top)
    double tg_largest_double(const double *x, Py_ssize_t n, double top)

cdef extern from "vmath.h" nogil:
    double tg_exp_minus(double rest)
    double tg_less_then_more(double a, double b, double c)

cdef extern from "softmax.h" nogil:
    double tg_exp_sum_float(const float *x, float *y, Py_ssize_t n, float shift)
    double tg_exp_sum_double(const double *x, double *y, Py_ssize_t n, double shift)
    void tg_exp_scaled_float(const float *x, const float *add, float *y, Py_ssize_t n, float shift, float factor)
    void tg_exp_scaled_double(const double *x, const double *add, double *y, Py_ssize_t n, double shift, double factor)
    void tg_scale_float(float *y, Py_ssize_t n, float factor)
    void tg_scale_double(double *y, Py_ssize_t n, double factor)
    void tg_deviations_float(const float *x, float *y, Py_ssize_t n, float near, float rest)
    void tg_deviations_double(const double *x, double *y, Py_ssize_t n, double near, double rest)
    double tg_dot_float(const float *a, const float *b, Py_ssize_t n)
    double tg_dot_double(const double *a, const double *b, Py_ssize_t n)
    void tg_weighed_float(const float *x, const float *weight, float *y, Py_ssize_t n, float mean)
    void tg_weighed_double(const double *x, const double *weight, double *y, Py_ssize_t n, double mean)

cdef enum:
    TOGETHER = 8  # rows
    SHORT = 1024  # elements of a short row: TOGETHER rows of this length fit into the L1 cache

cdef Py_ssize_t PIECE = 2048


cdef inline Py_ssize_t after_these(Py_ssize_t row, Py_ssize_t end, Py_ssize_t C) noexcept nogil:
    """The end of the rows that are processed together with `row`."""
    return min(end, row + TOGETHER) if C <= SHORT else row + 1


cdef inline real row_max(real *x, Py_ssize_t n) noexcept nogil:
    if real is float:
        return tg_largest_float(x, n, x[0])
    else:
        return tg_largest_double(x, n, x[0])


cdef inline double exp_sum(real *x, real *y, Py_ssize_t n, real shift) noexcept nogil:
    """The sum of exp(x - shift) over a row; the exponentials go to y, unless that is NULL."""
    if real is float:
        return tg_exp_sum_float(x, y, n, shift)
    else:
        return tg_exp_sum_double(x, y, n, shift)


cdef inline void exp_scaled(real *x, real *add, real *y, Py_ssize_t n, real shift, real factor) noexcept nogil:
    """y = add + exp(x - shift) * factor over a row; add may be NULL."""
    if real is float:
        tg_exp_scaled_float(x, add, y, n, shift, factor)
    else:
        tg_exp_scaled_double(x, add, y, n, shift, factor)


cdef inline void in_two_parts(real top, double log_total, real *lse) noexcept nogil:
    """lse = top + log_total as near and rest: see tinygpt/ops/_two_parts.py."""
    lse[0] = <real> (top + log_total)
    lse[1] = <real> tg_less_then_more(top, lse[0], log_total)


cdef inline void log_sum_exp(real *x, Py_ssize_t n, real *lse) noexcept nogil:
    """log(sum(exp(x))) of a row, in two parts, numerically stable, in one pass over memory."""
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
    """The value to subtract before exp: the maximum, or 0 while all values are -inf, so that exp(-inf - 0) = 0."""
    return <real> 0 if top == <real> -INFINITY else top


cdef inline void log_sum_exps(real *x, Py_ssize_t rows, Py_ssize_t n, real *lse) noexcept nogil:
    """log(sum(exp(x))) in two parts, of up to TOGETHER short rows, each step for all of them, or of one long row."""
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
