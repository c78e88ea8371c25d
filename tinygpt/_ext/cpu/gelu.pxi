# GELU and its derivative for one element, in the tanh form: for gelu.pyx and bias_gelu.pyx. Constants are cast to
# `real`, because Cython treats a bare 1 as a double, which would make the loop twice as slow.

cdef double GELU_A = 0.79788456080286535588  # sqrt(2 / pi)
cdef double GELU_B = 0.044715
cdef double LEAST = -40  # gelu is 0 below; the clamp keeps -inf from giving -inf / inf


cdef inline real gelu_value(real x) noexcept nogil:
    x = <real> LEAST if x < <real> LEAST else x  # a NaN passes through
    cdef real u = <real> GELU_A * (x + <real> GELU_B * x * x * x)
    return x / (<real> 1 + vexp(<real> -2 * u))


cdef inline real gelu_slope(real x) noexcept nogil:
    """d gelu / dx = s + x s (1 - s) 2 u', with s = sigmoid(2u) = 1 / (1 + e). 1 - s is computed as e s, to avoid
    cancellation."""
    cdef real square = x * x
    cdef real u = <real> GELU_A * (x + <real> GELU_B * square * x)
    cdef real e = vexp(<real> -2 * u)
    cdef real s = <real> 1 / (<real> 1 + e)
    cdef real rest = e * s
    cdef real du = <real> GELU_A * (<real> 1 + <real> 3 * <real> GELU_B * square)
    rest = rest if rest < <real> 1 else <real> 1  # 1 also if e is infinite, where e s = inf * 0 is NaN
    # For large |x|, s (1 - s) is 0 while x u' grows without bound: keep their product from becoming 0 * inf.
    cdef real tail = s * rest
    return s if tail == 0 else s + x * tail * <real> 2 * du
