# Normalisation of rows, forward and backward, shared by layer_norm.pyx and residual_layer_norm.pyx. The mathematics is
# in tinygpt/ops/layer_norm.py, the loops over one row are in norm.h.

cdef extern from "norm.h" nogil:
    double tg_square_deviations_float(float *x, Py_ssize_t n, double mean)
    double tg_square_deviations_double(double *x, Py_ssize_t n, double mean)
    float tg_quarter_float(float near)
    double tg_quarter_double(double near)
    void tg_normalized_float(const float *x, const float *weight, const float *bias, float *y, Py_ssize_t n,
                             float quarter, float scale, float rest)
    void tg_normalized_double(const double *x, const double *weight, const double *bias, double *y, Py_ssize_t n,
                              double quarter, double scale, double rest)
    void tg_norm_sums_float(float *dy, float *x, float *weight, Py_ssize_t n, float quarter, float scale, float rest,
                            double *shift, double *stretch)
    void tg_norm_sums_double(double *dy, double *x, double *weight, Py_ssize_t n, double quarter, double scale,
                             double rest, double *shift, double *stretch)

cdef enum:
    NEAR = 4  # rows processed together, few enough to stay in the L1 cache between the steps; divides BLOCK


cdef inline real quarter(real near) noexcept nogil:
    """A quarter of `near`, the first part of a mean, for `norm_of`."""
    if real is float:
        return tg_quarter_float(near)
    else:
        return tg_quarter_double(near)


cdef inline real norm_of(real x, real quarter, real scale, real rest) noexcept nogil:
    """(x - mean) * rstd, given quarter = near / 4, scale = 4 rstd, rest = -rest * rstd: see TG_NORM in norm.h."""
    return (x * <real> 0.25 - quarter) * scale + rest


cdef inline void normalize_rows(real *x, Py_ssize_t rows, real *weight, real *bias, real *y, real *mean, real *rstd,
                                Py_ssize_t C, double eps) noexcept nogil:
    """Up to NEAR rows: y = (x - mean) * rstd * weight + bias. Each step of a row depends on the one before, so every
    step is done for all of the rows before the next step. mean has two numbers per row, near and rest."""
    cdef Py_ssize_t row
    cdef double scale
    cdef real rest
    cdef double exact[NEAR]
    cdef double squares[NEAR]
    for row in range(rows):
        exact[row] = row_sum(x + row * C, C) / C
    for row in range(rows):
        if real is float:
            squares[row] = tg_square_deviations_float(x + row * C, C, exact[row])
        else:
            squares[row] = tg_square_deviations_double(x + row * C, C, exact[row])
    for row in range(rows):
        mean[2 * row] = <real> exact[row]
        mean[2 * row + 1] = <real> (exact[row] - mean[2 * row])
        squares[row] = 1.0 / sqrt(squares[row] / C + eps)
        rstd[row] = <real> squares[row]
    for row in range(rows):
        scale, rest = 4 * squares[row], <real> (-mean[2 * row + 1] * squares[row])
        if real is float:
            tg_normalized_float(x + row * C, weight, bias, y + row * C, C, quarter(mean[2 * row]), <real> scale, rest)
        else:
            tg_normalized_double(x + row * C, weight, bias, y + row * C, C, quarter(mean[2 * row]), scale, rest)


cdef inline void normalize_row_backward(real *dy, real *x, real *weight, real *mean, real rstd, real *dx, real *add,
                                        Py_ssize_t C) noexcept nogil:
    """One row: dx = add + rstd * (dnorm - mean(dnorm) - norm * mean(dnorm * norm))."""
    cdef Py_ssize_t j
    cdef double shift = 0, stretch = 0
    cdef real norm, a, b, near = quarter(mean[0]), scale = 4 * rstd, rest = -mean[1] * rstd
    if real is float:
        tg_norm_sums_float(dy, x, weight, C, near, scale, rest, &shift, &stretch)
    else:
        tg_norm_sums_double(dy, x, weight, C, near, scale, rest, &shift, &stretch)
    a = <real> (shift / C)
    b = <real> (stretch / C)
    if add != NULL:
        for j in range(C):
            norm = norm_of(x[j], near, scale, rest)
            dx[j] = add[j] + rstd * (dy[j] * weight[j] - a - norm * b)
    else:
        for j in range(C):
            norm = norm_of(x[j], near, scale, rest)
            dx[j] = rstd * (dy[j] * weight[j] - a - norm * b)


cdef inline void add_weight_gradients(real *dy, real *x, real *mean, real *rstd, Py_ssize_t rows, double *dweight,
                                      double *dbias, Py_ssize_t C) noexcept nogil:
    """dweight += sum(dy * norm), dbias += sum(dy), over rows that are still in the cache. Four rows are added up before
    the sums in double precision are read and written."""
    cdef Py_ssize_t row = 0, j
    cdef real *g
    cdef real *v
    cdef real near[4]
    cdef real scale[4]
    cdef real rest[4]
    cdef int i
    while row + 4 <= rows:
        g, v = dy + row * C, x + row * C
        for i in range(4):
            near[i], scale[i] = quarter(mean[2 * (row + i)]), 4 * rstd[row + i]
            rest[i] = -mean[2 * (row + i) + 1] * rstd[row + i]
        for j in range(C):
            dweight[j] += ((g[j] * norm_of(v[j], near[0], scale[0], rest[0])
                            + g[C + j] * norm_of(v[C + j], near[1], scale[1], rest[1]))
                           + (g[2 * C + j] * norm_of(v[2 * C + j], near[2], scale[2], rest[2])
                              + g[3 * C + j] * norm_of(v[3 * C + j], near[3], scale[3], rest[3])))
        if dbias != NULL:
            for j in range(C):
                dbias[j] += (g[j] + g[C + j]) + (g[2 * C + j] + g[3 * C + j])
        row += 4
    while row < rows:
        g, v = dy + row * C, x + row * C
        near[0], scale[0], rest[0] = quarter(mean[2 * row]), 4 * rstd[row], -mean[2 * row + 1] * rstd[row]
        for j in range(C):
            dweight[j] += g[j] * norm_of(v[j], near[0], scale[0], rest[0])
        if dbias != NULL:
            for j in range(C):
                dbias[j] += g[j]
        row += 1
