# Rounding weights to four bits (four_bits_round.h). The products with them are among those of decode_block.pyx.

cdef extern from "four_bits_round.h" nogil:
    cdef struct tg_rounding:
        const float *weights
        Py_ssize_t K, N
        const float *steps
        int candidates
        uint32_t *words
        uint16_t *scales
    void tg_round_columns(const tg_rounding *rounding)


def round_columns(weight, steps):
    """weight (K, N), steps (candidates,) -> words (K / 8, N), scales (K / 32, N)."""
    cdef tg_rounding t
    K, N = weight.shape
    if K % 32 or N % 16 or weight.dtype != numpy.float32 or steps.dtype != numpy.float32:
        return NotImplemented
    words, scales = numpy.empty((K // 8, N), numpy.uint32), numpy.empty((K // 32, N), numpy.uint16)
    t.weights, t.steps, t.K, t.N, t.candidates = <float *> memory(weight), <float *> memory(steps), K, N, len(steps)
    t.words, t.scales = <uint32_t *> memory(words), <uint16_t *> memory(scales)
    with nogil:
        tg_round_columns(&t)
    return words, scales
