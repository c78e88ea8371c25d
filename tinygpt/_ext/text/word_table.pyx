# GPT-2's words and their ids: tinygpt/tokenizers/word_cache.py says in Python what is computed here.
#
# A text is an array of code points, cut into chunks. `find` divides the chunks among the threads, without the GIL: each
# splits its chunk into words and looks them up. `add` takes the words that are not there, with their ids or to be merged
# here, and `settle` looks up again what was missing. Nothing is added while threads read, so that they need no locks; the
# caller makes sure that one text at a time is encoded.
#
# `found` has a number for each word of a chunk, from the chunk's first code point on: the word's number in the table,
# or, for a word that is not there, its negative length.

from libc.stdint cimport int32_t, uint8_t
from libc.stdlib cimport malloc, realloc
from libc.string cimport memcmp

cdef enum:  # the classes of characters, as in word_cache.py
    SPACE = 3
    AWKWARD = 4

cdef enum:
    LONGEST = 256  # bytes of a word that is merged here: the time grows with the square

cdef struct Word:
    uint64_t hash
    int64_t codes, ids  # where they begin
    int32_t length, count

cdef struct Merge:
    int32_t left, right  # two tokens side by side; left -1: an empty slot
    int32_t rank, token  # when they are merged, and to what

cdef struct Table:
    Merge *merges  # a hash table, with linear probing
    Py_ssize_t n_merges  # its slots, a power of two
    int32_t bytes[256]  # the token of each byte
    Word *words
    uint32_t *codes
    int32_t *ids
    int32_t *slots  # a hash table with linear probing: numbers of words, or -1
    Py_ssize_t n_words, n_codes, n_ids
    Py_ssize_t room_words, room_codes, room_ids, n_slots

cdef struct Chunks:
    Table *table
    const uint32_t *codes
    const uint8_t *classes
    const int64_t *ends
    int32_t *found
    int64_t *words  # of each chunk; -1 where a character is awkward
    int64_t *new
    int64_t *tokens
    const int64_t *starts
    int64_t *out


cdef void *grown(void *memory, Py_ssize_t *room, Py_ssize_t needed, size_t size) except NULL:
    """Memory for `needed` elements or more; `room` says how many there are."""
    if memory != NULL and needed <= room[0]:
        return memory
    cdef Py_ssize_t wanted = max(needed, 2 * room[0], 1024)
    memory = realloc(memory, wanted * size)
    if memory == NULL:
        raise MemoryError
    room[0] = wanted
    return memory


cdef inline uint64_t hash_of(const uint32_t *codes, Py_ssize_t length) noexcept nogil:
    cdef uint64_t hash = <uint64_t> length
    cdef Py_ssize_t i
    for i in range(length):
        hash = (hash ^ codes[i]) * <uint64_t> 0x9E3779B97F4A7C15
    return hash ^ (hash >> 32)


cdef int32_t looked_up(Table *table, const uint32_t *codes, Py_ssize_t length) noexcept nogil:
    """The number of a word, or -1."""
    cdef uint64_t hash = hash_of(codes, length)
    cdef Py_ssize_t slot
    cdef int32_t number
    cdef Word *word
    if table.n_slots == 0:
        return -1
    slot = <Py_ssize_t> (hash & <uint64_t> (table.n_slots - 1))
    while True:
        number = table.slots[slot]
        if number < 0:
            return -1
        word = &table.words[number]
        if word.hash == hash and word.length == length:
            if memcmp(table.codes + word.codes, codes, length * sizeof(uint32_t)) == 0:
                return number
        slot = (slot + 1) & (table.n_slots - 1)


cdef void take_slot(Table *table, int32_t number) noexcept:
    cdef Py_ssize_t slot = <Py_ssize_t> (table.words[number].hash & <uint64_t> (table.n_slots - 1))
    while table.slots[slot] >= 0:
        slot = (slot + 1) & (table.n_slots - 1)
    table.slots[slot] = number


cdef int spread(Table *table, Py_ssize_t n_slots) except -1:
    """Give the hash table `n_slots` slots, a power of two."""
    cdef Py_ssize_t number
    cdef void *slots = realloc(table.slots, n_slots * sizeof(int32_t))
    if slots == NULL:
        raise MemoryError
    table.slots, table.n_slots = <int32_t *> slots, n_slots
    memset(table.slots, 0xFF, n_slots * sizeof(int32_t))  # -1
    for number in range(table.n_words):
        take_slot(table, <int32_t> number)
    return 0


# Merges ----------------------------------------------------------------------------------------------


cdef inline Merge *merge_of(Table *table, int32_t left, int32_t right) noexcept nogil:
    """The slot of this pair, or the empty one that it would take."""
    cdef uint64_t hash = ((<uint64_t> <uint32_t> left << 32) | <uint32_t> right) * <uint64_t> 0x9E3779B97F4A7C15
    cdef Py_ssize_t slot = <Py_ssize_t> ((hash >> 32) & <uint64_t> (table.n_merges - 1))
    cdef Merge *merge
    while True:
        merge = &table.merges[slot]
        if merge.left < 0 or merge.left == left and merge.right == right:
            return merge
        slot = (slot + 1) & (table.n_merges - 1)


cdef Py_ssize_t merged(Table *table, int32_t *ids, Py_ssize_t n) noexcept nogil:
    """Merge n <= LONGEST tokens in place, the lowest rank first, and of equal ranks the leftmost. Returns how many are
    left."""
    cdef Merge *pairs[LONGEST]  # of ids[i] and ids[i + 1]
    cdef Py_ssize_t i, place
    for i in range(n - 1):
        pairs[i] = merge_of(table, ids[i], ids[i + 1])
    while True:
        place = -1
        for i in range(n - 1):
            if pairs[i].left >= 0 and (place < 0 or pairs[i].rank < pairs[place].rank):
                place = i
        if place < 0:
            return n
        ids[place] = pairs[place].token
        n -= 1
        for i in range(place + 1, n):
            ids[i] = ids[i + 1]
        for i in range(place + 1, n - 1):
            pairs[i] = pairs[i + 1]
        if place > 0:
            pairs[place - 1] = merge_of(table, ids[place - 1], ids[place])
        if place < n - 1:
            pairs[place] = merge_of(table, ids[place], ids[place + 1])


# Words -----------------------------------------------------------------------------------------------


cdef inline Py_ssize_t contraction(const uint32_t *codes, Py_ssize_t left) noexcept nogil:
    """The length of 's, 't, 're, 've, 'm, 'll or 'd at the beginning, or 0."""
    cdef uint32_t first, second
    if left < 2 or codes[0] != c"'":
        return 0
    first, second = codes[1], codes[2] if left > 2 else 0
    if first == c"s" or first == c"t" or first == c"m" or first == c"d":
        return 2
    if (first == c"r" or first == c"v") and second == c"e" or first == c"l" and second == c"l":
        return 3
    return 0


cdef inline Py_ssize_t word_length(const uint32_t *codes, const uint8_t *classes, Py_ssize_t left) noexcept nogil:
    """The length of the word at the beginning of `left` code points, or -1 where a character is awkward."""
    cdef Py_ssize_t place = contraction(codes, left)
    cdef uint8_t kind
    if place:
        return place
    if codes[0] == c" " and left > 1 and classes[codes[1]] != SPACE:
        place = 1
    kind = classes[codes[place]]
    if kind == AWKWARD:
        return -1
    place += 1
    while place < left and classes[codes[place]] == kind:
        place += 1
    if kind == SPACE and place < left and place > 1:
        return place - 1  # \s+(?!\S) leaves the last one, which may belong to the next word
    return place


cdef void find_chunks(void *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef Chunks *p = <Chunks *> task
    cdef Py_ssize_t chunk, place, length
    cdef int32_t *found
    cdef int32_t number
    for chunk in range(begin, end):
        place = p.ends[chunk - 1] if chunk else 0
        found = p.found + place
        p.words[chunk] = p.new[chunk] = p.tokens[chunk] = 0
        while place < p.ends[chunk]:
            length = word_length(p.codes + place, p.classes, p.ends[chunk] - place)
            if length < 0:
                p.words[chunk] = -1
                break
            number = looked_up(p.table, p.codes + place, length)
            if number >= 0:
                p.tokens[chunk] += p.table.words[number].count
            else:
                p.new[chunk] += 1
            found[p.words[chunk]] = number if number >= 0 else -<int32_t> length
            p.words[chunk] += 1
            place += length


cdef void settle_chunks(void *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Look up what was missing; `new` counts what still is."""
    cdef Chunks *p = <Chunks *> task
    cdef Py_ssize_t chunk, place, word
    cdef int32_t *found
    cdef int32_t number
    for chunk in range(begin, end):
        place = p.ends[chunk - 1] if chunk else 0
        found = p.found + place
        for word in range(p.words[chunk] if p.new[chunk] else 0):
            if found[word] < 0:
                number = looked_up(p.table, p.codes + place, -found[word])
                if number >= 0:
                    p.new[chunk] -= 1
                    p.tokens[chunk] += p.table.words[number].count
                    place -= found[word]
                    found[word] = number
                    continue
                place -= found[word]
            else:
                place += p.table.words[found[word]].length


cdef void copy_chunks(void *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef Chunks *p = <Chunks *> task
    cdef Py_ssize_t chunk, word, i
    cdef int32_t *found
    cdef int64_t *out
    cdef Word *its
    for chunk in range(begin, end):
        found = p.found + (p.ends[chunk - 1] if chunk else 0)
        out = p.out + p.starts[chunk]
        for word in range(p.words[chunk]):
            its = &p.table.words[found[word]]
            for i in range(its.count):
                out[i] = p.table.ids[its.ids + i]
            out += its.count


cdef class WordTable:
    """Words and their ids. All arrays are C-contiguous and of the types that `find` makes."""

    cdef Table table

    def __init__(self, tokens_of_bytes=None, merges=None):
        """tokens_of_bytes: int32 (256,), the token of each byte; merges: int32 (M, 3), left, right and what they make, in
        the order of their ranks. Without them `add` needs the ids of each word."""
        cdef Py_ssize_t i
        cdef Merge *slot
        cdef int32_t *rows
        if merges is None:
            return
        free(self.table.merges)
        self.table.n_merges = 16
        while self.table.n_merges < 2 * len(merges):
            self.table.n_merges *= 2
        self.table.merges = <Merge *> malloc(self.table.n_merges * sizeof(Merge))
        if self.table.merges == NULL:
            raise MemoryError
        memset(self.table.merges, 0xFF, self.table.n_merges * sizeof(Merge))
        memcpy(self.table.bytes, memory(tokens_of_bytes), sizeof(self.table.bytes))
        rows = <int32_t *> memory(merges)
        for i in range(len(merges)):
            slot = merge_of(&self.table, rows[3 * i], rows[3 * i + 1])
            slot[0] = Merge(left=rows[3 * i], right=rows[3 * i + 1], rank=<int32_t> i, token=rows[3 * i + 2])

    def __dealloc__(self):
        free(self.table.merges)
        free(self.table.words)
        free(self.table.codes)
        free(self.table.ids)
        free(self.table.slots)

    def __len__(self):
        return self.table.n_words

    @property
    def characters(self):
        """Of all words together."""
        return self.table.n_codes

    @property
    def merges(self):
        """Whether words are merged here."""
        return self.table.merges != NULL

    def clear(self):
        self.table.n_words = self.table.n_codes = self.table.n_ids = 0
        if self.table.n_slots:
            memset(self.table.slots, 0xFF, self.table.n_slots * sizeof(int32_t))

    def add(self, list words, list ids):
        """Words that are not there, each once, and the ids of each, a list of int; None: to be merged here, if it has at
        most LONGEST bytes."""
        cdef bytes codes, data
        cdef list its
        cdef Py_ssize_t i, j, n
        cdef Word *word
        for i in range(len(words)):
            codes, data = (<str?> words[i]).encode("utf-32-le"), words[i].encode()
            its, n = ids[i], len(data) if ids[i] is None else len(ids[i])
            if its is None and (n > LONGEST or self.table.merges == NULL):
                raise ValueError("this word needs its ids")
            if 2 * (self.table.n_words + 1) > self.table.n_slots:
                spread(&self.table, max(2 * self.table.n_slots, 4096))
            self.reserve(len(codes) // 4, n)
            word = &self.table.words[self.table.n_words]
            word.codes, word.length = self.table.n_codes, <int32_t> (len(codes) // 4)
            word.ids = self.table.n_ids
            memcpy(self.table.codes + word.codes, <char *> codes, len(codes))
            for j in range(n):
                self.table.ids[word.ids + j] = self.table.bytes[<uint8_t> data[j]] if its is None else its[j]
            word.count = <int32_t> (merged(&self.table, self.table.ids + word.ids, n) if its is None else n)
            word.hash = hash_of(self.table.codes + word.codes, word.length)
            take_slot(&self.table, <int32_t> self.table.n_words)
            self.table.n_words += 1
            self.table.n_codes += word.length
            self.table.n_ids += word.count

    cdef int reserve(self, Py_ssize_t n_codes, Py_ssize_t n_ids) except -1:
        """Make room for one more word."""
        cdef Table *t = &self.table
        t.words = <Word *> grown(t.words, &t.room_words, t.n_words + 1, sizeof(Word))
        t.codes = <uint32_t *> grown(t.codes, &t.room_codes, t.n_codes + n_codes, sizeof(uint32_t))
        t.ids = <int32_t *> grown(t.ids, &t.room_ids, t.n_ids + n_ids, sizeof(int32_t))
        return 0

    cdef Chunks chunks(self, codes, ends, found, counts) except *:
        cdef int64_t *rows = <int64_t *> memory(counts)
        cdef Py_ssize_t n = len(ends)
        return Chunks(
            table=&self.table, codes=<uint32_t *> memory(codes), classes=NULL, ends=<int64_t *> memory(ends),
            found=<int32_t *> memory(found), words=rows, new=rows + n, tokens=rows + 2 * n, starts=NULL, out=NULL
        )

    def find(self, codes, classes, ends):
        """Split and look up. codes: a text in UTF-32, bytes; classes: of every character, uint8 (0x110000,); ends: of
        the chunks, int64 (K,), each with at least one character.

        Returns `found`, int32, and of each chunk the number of its words (-1 if a character is awkward), of those that
        are not there, and of the ids of the others: int64 (3, K).
        """
        found = numpy.empty(len(codes) // 4, numpy.int32)
        counts = numpy.empty((3, len(ends)), numpy.int64)
        cdef Chunks p = self.chunks(codes, ends, found, counts)
        cdef Py_ssize_t n = len(ends)
        p.classes = <uint8_t *> memory(classes)
        with nogil:
            tg_parallel_for(find_chunks, &p, n, 1)
        return found, counts

    def missing(self, ends, found, counts):
        """Where the missing words are: [(begin, end)]."""
        cdef Chunks p = self.chunks(None, ends, found, counts)
        cdef Py_ssize_t chunk, place, word
        cdef int32_t *numbers
        cdef list spans = []
        for chunk in range(len(ends)):
            place = p.ends[chunk - 1] if chunk else 0
            numbers = p.found + place
            for word in range(p.words[chunk] if p.new[chunk] else 0):
                if numbers[word] < 0:
                    spans.append((place, place - numbers[word]))
                    place -= numbers[word]
                else:
                    place += self.table.words[numbers[word]].length
        return spans

    def settle(self, codes, ends, found, counts):
        """Look up again what was missing, and count it."""
        cdef Chunks p = self.chunks(codes, ends, found, counts)
        cdef Py_ssize_t n = len(ends)
        with nogil:
            tg_parallel_for(settle_chunks, &p, n, 1)

    def copy(self, ends, found, counts, starts, out):
        """Write the ids of each chunk to out[starts[chunk]:], int64; nothing may be missing."""
        cdef Chunks p = self.chunks(None, ends, found, counts)
        cdef Py_ssize_t n = len(ends)
        if any(counts[1]):
            raise ValueError("there are words without ids")
        p.starts, p.out = <int64_t *> memory(starts), <int64_t *> memory(out)
        with nogil:
            tg_parallel_for(copy_chunks, &p, n, 1)
