# Elementwise loops over arrays of any shape, in spans of SPAN elements; also over many arrays of different sizes in one
# parallel region, because starting the threads for every small array would cost too much.

cdef enum:
    SPAN = 8192  # elements per unit of work

# One of many arrays: the function and its struct, the array's number of elements, and the index of its first span among
# the spans of all arrays.
cdef struct Spans:
    Rows rows
    void *task
    Py_ssize_t size, first

cdef struct ManySpans:
    Spans *each
    Py_ssize_t count


cdef void run_spans(void *argument, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Process spans begin .. end - 1, counted over all arrays."""
    cdef ManySpans *many = <ManySpans *> argument
    cdef Py_ssize_t low = 0, high = many.count, middle, at
    cdef Spans *one
    while high - low > 1:  # the array that span `begin` belongs to
        middle = (low + high) // 2
        if many.each[middle].first <= begin:
            low = middle
        else:
            high = middle
    while begin < end:
        one = many.each + low
        at = (begin - one.first) * SPAN
        if at >= one.size:
            low += 1
            continue
        one.rows(NULL, one.task, at, min(at + SPAN, one.size))
        begin += 1


cdef void run_each(Spans *each, Py_ssize_t count) noexcept:
    """Call each array's `rows` on its spans of elements; all arrays share one parallel region."""
    cdef ManySpans many = ManySpans(each, count)
    cdef Py_ssize_t i, spans = 0
    for i in range(count):
        each[i].first = spans
        spans += (each[i].size + SPAN - 1) // SPAN
    with nogil:
        tg_parallel_for(run_spans, &many, spans, spans // 512 + 1)


cdef void *room_for(Py_ssize_t count, size_t size) except NULL:
    """Memory for `count` structs of `size` bytes; the caller frees it."""
    cdef void *room = calloc(count if count > 0 else 1, size)
    if room == NULL:
        raise MemoryError(f"no memory for {count} tasks")
    return room
