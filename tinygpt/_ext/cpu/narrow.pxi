# Kernels on rows in bfloat16. Their functions know floats and doubles only. `run_narrow` calls the one for floats on a
# few rows at a time: it reads them into floats before and rounds what was written after. Those few rows stay in the L1
# cache, so what goes through memory is 16 bits per number.
#
# A kernel that can do this says so in TAKES_BFLOAT16: then tinygpt.kernel gives it arrays in bfloat16, along with some
# in float32.

cdef extern from "bfloat16.h" nogil:
    void tg_widen(float *out, const uint16_t *x, Py_ssize_t n)
    void tg_narrow(uint16_t *out, const float *x, Py_ssize_t n)

cdef extern from "attention.h" nogil:
    float *tg_memory_float(Py_ssize_t count)
    void tg_return(void *aligned)

TAKES_BFLOAT16 = set()

cdef enum:
    MOST_NARROW = 5  # arrays of a kernel
    TASK_BYTES = 256
    NARROW_SPAN = 2048  # numbers of an array that are processed at a time, if a row has fewer
    NARROW_ROWS = 4  # at least this many rows: NEAR in normalize.pxi

# An array in bfloat16: the place of its pointer in the kernel's struct, the length of a row, whether the kernel reads
# and writes it.
cdef struct Narrow:
    Py_ssize_t place, width
    uint16_t *data
    bint reads, writes

cdef struct NarrowTask:
    Rows rows
    void *task
    Py_ssize_t size, step, numbers
    Narrow each[MOST_NARROW]
    Py_ssize_t start[MOST_NARROW]  # where an array's rows are among the numbers
    int count
    bint failed


cdef NarrowTask narrow_task(Rows single, void *task, Py_ssize_t size) noexcept:
    """For a kernel's function for floats and its struct of `size` bytes. Its arrays are added later."""
    cdef NarrowTask made
    made.rows, made.task, made.size, made.count, made.step, made.numbers, made.failed = single, task, size, 0, 0, 0, False
    return made


cdef void add_narrow(NarrowTask *p, void **pointer, object array, Py_ssize_t width, bint reads, bint writes):
    """Add an array if it is in bfloat16. pointer: its place in the struct. width: the length of a row."""
    if array is None or array.itemsize != 2:
        return
    p.each[p.count] = Narrow(
        place=<char *> pointer - <char *> p.task, width=width, data=<uint16_t *> pointer[0], reads=reads, writes=writes
    )
    p.count += 1


cdef void narrow_rows(void *argument, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef NarrowTask *p = <NarrowTask *> argument
    cdef char task[TASK_BYTES]
    cdef float *numbers = tg_memory_float(p.numbers)
    cdef Narrow *one
    cdef Py_ssize_t first = begin, stop
    cdef int i
    if numbers == NULL:
        p.failed = True
        return
    memcpy(task, p.task, p.size)
    while first < end:
        stop = min(end, first + p.step)
        for i in range(p.count):
            one = &p.each[i]
            (<float **> (task + one.place))[0] = numbers + p.start[i] - first * one.width  # row `first` is at the start
            if one.reads:
                tg_widen(numbers + p.start[i], one.data + first * one.width, (stop - first) * one.width)
        p.rows(NULL, task, first, stop)
        for i in range(p.count):
            one = &p.each[i]
            if one.writes:
                tg_narrow(one.data + first * one.width, numbers + p.start[i], (stop - first) * one.width)
        first = stop
    tg_return(numbers)


cdef int run_narrow(NarrowTask *p, Py_ssize_t n, Py_ssize_t grain) except -1:
    """`run` for such a kernel. An array that is added twice, read and written in place, is one for the kernel too."""
    cdef Py_ssize_t widest = 1
    cdef int i, j
    for i in range(p.count):
        widest = max(widest, p.each[i].width)
    p.step = NARROW_ROWS  # doubled: no group of rows whose sum is rounded by itself lies across two steps
    while 2 * p.step * widest <= NARROW_SPAN:
        p.step *= 2
    for i in range(p.count):
        p.start[i] = p.numbers
        for j in range(i):
            if p.each[j].data == p.each[i].data:
                p.start[i] = p.start[j]
                break
        else:
            p.numbers += (p.step * p.each[i].width + 31) // 16 * 16
    with nogil:
        tg_parallel_for(narrow_rows, p, n, grain)
    if p.failed:
        raise MemoryError("no memory for the floats of a kernel on bfloat16")
    return 0


cdef object statistics_of(x):
    """The dtype of statistics and sums for x: x's own, or float32."""
    return numpy.float32 if x.itemsize == 2 else x.dtype


cdef object wide(array):
    """An array in the form for a kernel that is not a row kernel: bfloat16 is copied to float32. None stays None."""
    return array if array is None or array.itemsize != 2 else array.astype(numpy.float32)
