# The dropout mask, recomputed from its seed and stream wherever it is needed: tinygpt/random.py.

cdef extern from "vmath.h" nogil:
    void tg_mask_float(float *mask, Py_ssize_t count, uint64_t row, uint32_t threshold, float kept, uint64_t seed,
                       uint64_t stream)
    void tg_mask_double(double *mask, Py_ssize_t count, uint64_t row, uint32_t threshold, double kept, uint64_t seed,
                        uint64_t stream)

cdef struct Dropout:
    double p
    uint64_t seed, stream, first_row


cdef inline void dropout_mask(real *mask, Py_ssize_t count, uint64_t row, Dropout *dropout) noexcept nogil:
    """The dropout factors of one row, 0 or 1 / (1 - p), from the words of tinygpt/random.py. The first row of the arrays
    has the words of row `first_row`."""
    cdef double p = dropout.p
    cdef double level = p * 4294967296.0 + 0.5
    cdef uint32_t threshold = 4294967295u if level >= 4294967295.0 else <uint32_t> level
    if real is float:
        tg_mask_float(mask, count, dropout.first_row + row, threshold, <float> (1.0 / (1.0 - p)), dropout.seed,
                      dropout.stream)
    else:
        tg_mask_double(mask, count, dropout.first_row + row, threshold, 1.0 / (1.0 - p), dropout.seed, dropout.stream)
