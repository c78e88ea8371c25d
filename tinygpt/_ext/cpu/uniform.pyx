# Uniform random numbers: tinygpt/random.py, with the same words and the same bits.

cdef extern from "vmath.h" nogil:
    enum: TG_MANY
    void tg_random_words(uint32_t *out, uint32_t quad, uint32_t row, uint64_t seed, uint64_t stream)

cdef enum:
    NUMBERS = 512  # in a row of words, which has two for each number, and four for each counter


cdef void uniform_row(double *out, Py_ssize_t count, uint64_t seed, uint64_t stream, uint64_t row) noexcept nogil:
    """The first `count` numbers of a row."""
    cdef uint32_t words[2 * NUMBERS]
    cdef uint32_t quad = 0
    cdef Py_ssize_t i
    cdef uint64_t bits
    while 2 * quad < NUMBERS:
        tg_random_words(words + 4 * quad, quad, <uint32_t> row, seed, stream)
        quad += TG_MANY
    for i in range(count):
        bits = (<uint64_t> words[2 * i] << 32) | words[2 * i + 1]
        out[i] = <double> (bits >> 11) * (1.0 / 9007199254740992.0)  # 2**-53


def fill_uniform(out, uint64_t seed, uint64_t stream, uint64_t first_row):
    """Fill out (N,) float64 with the numbers of `tinygpt.random.Generator.uniform`, from those of a row on.

    On the calling thread, without the GIL: the caller has its own threads.
    """
    cdef double *place = <double *> memory(out)
    cdef Py_ssize_t count = out.size, begin = 0
    with nogil:
        while begin < count:
            uniform_row(place + begin, min(NUMBERS, count - begin), seed, stream, first_row + begin // NUMBERS)
            begin += NUMBERS
