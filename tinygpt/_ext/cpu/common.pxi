# Shared by all kernels here: passing pointers to the threads, and `run`.
#
# A kernel is a struct and two functions. The struct holds pointers to its arrays, its sizes and its parameters.
# `<name>_rows` processes rows begin .. end - 1 without Python. `<name>` allocates the outputs, fills the struct and
# calls `run`, which picks the float or the double version of `_rows` and calls it on all threads. tinygpt.kernel has
# already made sure that the arrays are contiguous, of one floating type, and not empty. Code that only some kernels
# share is in the other .pxi files.

from cpython.buffer cimport PyBUF_STRIDES, PyBuffer_Release, PyObject_GetBuffer
from libc.math cimport INFINITY, exp, log, sqrt
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

import numpy

ctypedef fused real:
    float
    double

cdef extern from "pool.h" nogil:
    ctypedef void (*tg_body)(void *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil
    void tg_parallel_for(tg_body body, void *task, Py_ssize_t n, Py_ssize_t grain)
    int tg_set_num_threads(int count)
    int tg_get_num_threads()
    int tg_moves()
    int tg_sendings()
    int tg_adopt_blas(const char *library)

cdef extern from "vmath.h" nogil:
    float tg_expf(float x)
    double tg_exp(double x)

# The first argument is always NULL: only its type matters, which tells Cython whether `real` is float or double. The
# second one is the kernel's struct.
ctypedef void (*Rows)(void *kind, void *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil

# The argument that tg_parallel_for passes to the threads.
cdef struct Region:
    Rows rows
    void *task

# A loop over fewer bytes than this is faster on one thread: waking the others takes a few microseconds.
cdef Py_ssize_t ALONE = 32768

# The cost of an element of a row for `grain_of`, in bytes: one pass over float32, about two passes, drawing a random
# number.
cdef enum:
    PLAIN = 4
    TWICE = 8
    RANDOM = 16


cdef inline real vexp(real x) noexcept nogil:
    """exp in a form that the compiler can vectorise."""
    if real is float:
        return tg_expf(x)
    else:
        return tg_exp(x)


cdef void *memory(array) except? NULL:
    """The address of an array's first element, NULL for None. The array must outlive the struct that stores it."""
    cdef Py_buffer view
    if array is None:
        return NULL
    PyObject_GetBuffer(array, &view, PyBUF_STRIDES)
    PyBuffer_Release(&view)
    return view.buf


cdef void run_rows(void *argument, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef Region *region = <Region *> argument
    region.rows(NULL, region.task, begin, end)


cdef void run(void *task, Rows single, Rows double_, object like, Py_ssize_t n, Py_ssize_t grain) noexcept:
    """Call the version for `like`'s dtype on all n rows, in chunks of `grain` rows, on all threads, without the GIL."""
    cdef Region region
    region.rows = single if like.itemsize == 4 else double_
    region.task = task
    with nogil:
        tg_parallel_for(run_rows, &region, n, grain)


cdef inline Py_ssize_t grain_of(Py_ssize_t n, Py_ssize_t row_bytes) noexcept nogil:
    """Rows per chunk: independent of the number of threads, at least ALONE bytes, at most about 64 chunks."""
    cdef Py_ssize_t least = ALONE // (row_bytes if row_bytes > 0 else 1) + 1
    cdef Py_ssize_t share = n // 64 + 1
    return share if share > least else least


cdef bint out_of_range(ids, Py_ssize_t V, int64_t ignored=0) except -1:
    """True if some id is neither in 0 .. V - 1 nor the ignored one. Such cases are left to the reference."""
    cdef int64_t *id = <int64_t *> memory(ids)
    cdef Py_ssize_t n = ids.size, i
    cdef bint wrong = False
    for i in range(n):
        wrong |= (id[i] < 0 or id[i] >= V) and id[i] != ignored
    return wrong
