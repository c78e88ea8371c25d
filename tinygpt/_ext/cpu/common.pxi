# What every kernel here needs: a Task that carries pointers into the threads, and `run`.
#
# A kernel is two functions. `<name>_rows` does the work on rows begin .. end - 1 without Python; `<name>` makes the
# output arrays, fills a Task and calls `run`, which picks the float or the double version of `_rows` and calls
# it on all threads. tinygpt.kernel has already made the arrays contiguous, of one floating type, and not empty.

from cpython.buffer cimport PyBUF_STRIDES, PyBuffer_Release, PyObject_GetBuffer
from libc.math cimport INFINITY, exp, log, sqrt
from libc.stdint cimport int64_t, uint32_t, uint64_t
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
    int tg_adopt_blas(const char *library)

cdef extern from "vmath.h" nogil:
    float tg_expf(float x)
    double tg_exp(double x)
    void tg_mask_float(float *mask, Py_ssize_t count, uint64_t row, uint32_t threshold, float kept, uint64_t seed,
                       uint64_t stream)
    void tg_mask_double(double *mask, Py_ssize_t count, uint64_t row, uint32_t threshold, double kept, uint64_t seed,
                        uint64_t stream)

    double tg_hidden_one()
    double tg_exp_minus(double rest)
    double tg_less_then_more(double a, double b, double c)

cdef extern from "norm.h" nogil:
    double tg_sum_float(float *x, Py_ssize_t n)
    double tg_sum_double(double *x, Py_ssize_t n)
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

cdef extern from "attention.h" nogil:
    float tg_largest_float(const float *x, Py_ssize_t n, float top)
    double tg_largest_double(const double *x, Py_ssize_t n, double top)

# The first pointer is passed by its type, which is how Cython knows whether `real` is float or double.
ctypedef void (*Rows)(void *first, Task *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil

cdef struct Task:
    Rows rows
    void *array[12]
    Py_ssize_t size[4]
    double scalar[8]
    uint64_t seed, stream

# Below this many bytes of work a loop is faster on one thread: waking the others takes a few microseconds.
cdef Py_ssize_t ALONE = 32768


cdef inline real vexp(real x) noexcept nogil:
    """exp in a form that the compiler turns into vector code."""
    if real is float:
        return tg_expf(x)
    else:
        return tg_exp(x)


cdef inline void dropout_mask(real *mask, Py_ssize_t count, uint64_t row, Task *task, double p) noexcept nogil:
    """The factors 0 or 1 / (1 - p) of one row, from tinygpt/random.py's words."""
    cdef double level = p * 4294967296.0 + 0.5
    cdef uint32_t threshold = 4294967295u if level >= 4294967295.0 else <uint32_t> level
    if real is float:
        tg_mask_float(mask, count, row, threshold, <float> (1.0 / (1.0 - p)), task.seed, task.stream)
    else:
        tg_mask_double(mask, count, row, threshold, 1.0 / (1.0 - p), task.seed, task.stream)


cdef int give(Task *task, tuple arrays) except -1:
    """Put the arrays' addresses into the task; None becomes NULL. The arrays must outlive the task."""
    cdef Py_buffer view
    cdef int i = 0
    for array in arrays:
        if array is None:
            task.array[i] = NULL
        else:
            PyObject_GetBuffer(array, &view, PyBUF_STRIDES)
            task.array[i] = view.buf
            PyBuffer_Release(&view)
        i += 1
    return 0


cdef void run_rows(void *argument, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef Task *task = <Task *> argument
    task.rows(task.array[0], task, begin, end)


cdef void run(Task *task, Rows single, Rows double_, object like, Py_ssize_t n, Py_ssize_t grain) noexcept:
    """Call the version for `like`'s type on chunks of `grain` of n rows, on all threads, without the GIL."""
    task.rows = single if like.itemsize == 4 else double_
    with nogil:
        tg_parallel_for(run_rows, task, n, grain)


# Arrays of many sizes in one region: small ones would otherwise cost a start of the threads each. Every array has a task,
# whose size[0] is its number of elements and size[3] the number of its first span among the spans of all.
cdef struct Tasks:
    Task *each
    Py_ssize_t count, span


cdef void run_spans(void *argument, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Spans begin .. end - 1 of all tasks' spans."""
    cdef Tasks *tasks = <Tasks *> argument
    cdef Py_ssize_t low = 0, high = tasks.count, middle, at
    cdef Task *task
    while high - low > 1:  # the task that span `begin` belongs to
        middle = (low + high) // 2
        if tasks.each[middle].size[3] <= begin:
            low = middle
        else:
            high = middle
    while begin < end:
        task = tasks.each + low
        at = (begin - task.size[3]) * tasks.span
        if at >= task.size[0]:
            low += 1
            continue
        task.rows(task.array[0], task, at, min(at + tasks.span, task.size[0]))
        begin += 1


cdef void run_each(Task *each, Py_ssize_t count, Py_ssize_t span) noexcept:
    """Call each task's `rows` on its elements, `span` of them at a time, all tasks on all threads at once."""
    cdef Tasks tasks = Tasks(each, count, span)
    cdef Py_ssize_t i, spans = 0
    for i in range(count):
        each[i].size[3] = spans
        spans += (each[i].size[0] + span - 1) // span
    with nogil:
        tg_parallel_for(run_spans, &tasks, spans, spans // 512 + 1)


cdef Task *tasks_for(Py_ssize_t count) except NULL:
    """Memory for so many tasks; the caller frees it."""
    cdef Task *tasks = <Task *> calloc(count, sizeof(Task))
    if tasks == NULL:
        raise MemoryError(f"no memory for {count} tasks")
    return tasks


cdef inline Py_ssize_t grain_of(Py_ssize_t n, Py_ssize_t row_bytes) noexcept nogil:
    """Rows in a chunk: the same on any number of threads, at least ALONE bytes, at most 64 chunks or so."""
    cdef Py_ssize_t least = ALONE // (row_bytes if row_bytes > 0 else 1) + 1
    cdef Py_ssize_t share = n // 64 + 1
    return share if share > least else least


cdef bint out_of_range(ids, Py_ssize_t V, int64_t ignored=0) except -1:
    """True if some id is neither one of 0 .. V - 1 nor the ignored one: no business of a fast body."""
    cdef Task task
    cdef int64_t *id
    cdef Py_ssize_t n = ids.size, i
    cdef bint wrong = False
    give(&task, (ids,))
    id = <int64_t *> task.array[0]
    for i in range(n):
        wrong |= (id[i] < 0 or id[i] >= V) and id[i] != ignored
    return wrong
