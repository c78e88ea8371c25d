// CUDA on the CPU, for tests: enough of it to run the kernels of tinygpt/_ext/cuda/*.cu as C++.
//
// Each CUDA thread is a fiber: a stack of its own, left and entered again at barriers, at warp shuffles and, under the
// random schedule, at many a look at threadIdx. One fiber runs at a time, so results depend on the schedule alone. A
// fiber runs as far as it can before the next one starts: what it does too early, for want of a barrier, it does as
// early as possible. Schedules: 0 takes the warps in order, each as far as it goes; 1 backwards, the threads of a warp
// too; above that random, with the schedule's number as the seed. The blocks of a grid come in these orders, too.
//
// Seen as errors: threads that end, or wait at another barrier, while others wait; shuffles not reached by a whole
// warp; writes beyond the end of an array in shared memory; more shared memory than a block may have; accesses to packs
// at addresses that are no multiple of their size. Shared memory begins as NaN in every block.

#include <dlfcn.h>
#include <math.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <utility>
#include <vector>

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__
#define __align__(n) alignas(n)
#define __syncthreads() emulation::barrier(__LINE__)
#define __syncwarp() emulation::sync_warp(__LINE__)
#define __shfl_xor_sync(mask, value, offset) emulation::shuffle(mask, value, emulation::lane() ^ (offset), __LINE__)
#define __shfl_sync(mask, value, from) emulation::shuffle(mask, value, from, __LINE__)
#define __builtin_assume_aligned(pointer, bytes) emulation::aligned(pointer, bytes, __LINE__)
#define threadIdx (emulation::thread_index())
#define blockIdx (emulation::block_index)
#define blockDim (emulation::block_size)
#define gridDim (emulation::grid_size)

using std::max;
using std::min;

static inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((unsigned long long)a * b) >> 32); }

// IEEE 754 binary16, by way of exact powers of two.
static inline float emulated_widen_float16(unsigned short bits) {
    const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
    float x = exponent == 31 ? (fraction ? NAN : INFINITY)
              : exponent     ? ldexpf((float)(1024 + fraction), exponent - 25)
                             : ldexpf((float)fraction, -24);
    return bits & 0x8000 ? -x : x;
}

static inline unsigned short emulated_narrow_float16(float x) {
    const unsigned short sign = signbit(x) ? 0x8000 : 0;
    x = fabsf(x);
    if (x != x) return sign | 0x7fff;
    if (x >= 65520.0f) return sign | 0x7c00;  // half a step above the largest finite one
    if (x < ldexpf(1.0f, -14)) return sign | (unsigned short)nearbyintf(ldexpf(x, 24));
    int exponent;
    const float mantissa = frexpf(x, &exponent);  // in [0.5, 1)
    const int fraction = (int)nearbyintf(ldexpf(mantissa, 11));  // 1024 .. 2048; the last carries into the exponent
    return sign | (unsigned short)(((exponent + 14) << 10) + fraction - 1024);
}

namespace emulation {

struct Index {
    unsigned x, y, z;
};

constexpr int LANES = 32;
constexpr unsigned MAX_SHARED = 48 * 1024;
constexpr size_t STACK = 128 * 1024, CANARY = 64;

enum State { READY, AT_BARRIER, AT_SHUFFLE, DONE };

struct Copy {
    unsigned char *to;
    const unsigned char *from;  // nullptr: zeros are written
    int bytes;

    void finish() const {
        for (int i = 0; i < bytes; i++) to[i] = from ? from[i] : 0;
    }
};

struct Thread {
    jmp_buf at;
    ucontext_t entry;
    char *stack = nullptr;
    bool started = false;
    State state = DONE;
    int line = 0;
    int shuffles = 0;
    Index index;
    unsigned char slot[2][16];  // what it offers in a shuffle; two, since a neighbour may be one shuffle ahead
    std::vector<std::vector<Copy>> groups;  // of asynchronous copies, the oldest first; to the last one copies are added
};

struct Shared {
    const void *key;
    size_t offset, size;
};

static Index block_index, block_size, grid_size;
static std::vector<Thread *> threads;  // as many as the largest block so far
static int count;                      // threads of this block
static Thread *current;
static int current_number;
static jmp_buf scheduler;
static char message[256];
static void (*call)(void **);
static void **call_arguments;
static std::vector<Shared> shared_arrays;
static size_t shared_used;
alignas(64) static unsigned char shared_bytes[MAX_SHARED + 64 * 1024];
static unsigned dynamic_bytes;
static unsigned schedule;
static uint64_t random_state;

static inline unsigned random_below(unsigned n) {
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return (unsigned)((random_state >> 33) % n);
}

// longjmp as the C library has it. Under AddressSanitizer the name means another one, which knows nothing of fibers.
static void go_to(jmp_buf place) {
    typedef void (*Jump)(jmp_buf, int);
    static void *const library = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);
    static const Jump jump = library ? (Jump)dlsym(library, "_longjmp") : nullptr;
    (jump ? jump : _longjmp)(place, 1);
}

[[gnu::noinline]] static void leave(State state, int line) {
    current->state = state;
    current->line = line;
    if (!_setjmp(current->at)) go_to(scheduler);
}

template <typename... T>
static void fail(const char *format, T... values) {
    if (!message[0]) snprintf(message, sizeof message, format, values...);
    leave(DONE, 0);  // and is never entered again
    abort();
}

static inline const Index &thread_index() {
    if (schedule > 1 && random_below(8) == 0) leave(READY, 0);
    return current->index;
}

static inline int lane() { return current_number % LANES; }

static inline void barrier(int line) { leave(AT_BARRIER, line); }

static inline void sync_warp(int line) {
    current->shuffles++;  // it takes a turn, so that a neighbour's slot is not looked at too late
    leave(AT_SHUFFLE, line);
}

template <typename T>
static T shuffle(unsigned mask, T value, int from, int line) {
    if (mask != 0xffffffffu) fail("line %d: a shuffle of a part of a warp", line);
    if (from < 0 || from >= LANES) fail("line %d: a shuffle from lane %d", line, from);
    const int turn = current->shuffles++ % 2;
    memcpy(current->slot[turn], &value, sizeof value);
    leave(AT_SHUFFLE, line);
    T result;
    memcpy(&result, threads[current_number / LANES * LANES + from]->slot[turn], sizeof result);
    return result;
}

static void *aligned(const void *pointer, size_t bytes, int line) {
    if ((uintptr_t)pointer % bytes)
        fail("line %d: %zu bytes at an address that is no multiple of %zu", line, bytes, bytes);
    return const_cast<void *>(pointer);
}

// The place of an array in shared memory: the same one for all threads of the block.
static void *shared(const void *key, size_t size) {
    for (const Shared &s : shared_arrays)
        if (s.key == key) return shared_bytes + s.offset;
    if (shared_used + size + 2 * CANARY > sizeof shared_bytes) fail("no room for %zu bytes of shared memory", size);
    shared_arrays.push_back({key, shared_used, size});
    unsigned char *place = shared_bytes + shared_used;
    shared_used = (shared_used + size + 2 * CANARY - 1) / CANARY * CANARY;
    return place;
}

static unsigned char *dynamic_shared() {
    static const char key = 0;
    return (unsigned char *)shared(&key, dynamic_bytes);
}

static void check_shared() {
    size_t total = 0;
    for (size_t i = 0; i < shared_arrays.size(); i++) {
        const size_t end = shared_arrays[i].offset + shared_arrays[i].size;
        const size_t next = i + 1 < shared_arrays.size() ? shared_arrays[i + 1].offset : end + CANARY;
        total += shared_arrays[i].size;
        for (size_t j = end; j < next; j++)
            if (shared_bytes[j] != 0xff && !message[0])
                snprintf(message, sizeof message, "a write beyond an array of %zu bytes in shared memory",
                         shared_arrays[i].size);
    }
    if (total > MAX_SHARED && !message[0]) snprintf(message, sizeof message, "%zu bytes of shared memory", total);
}

// Where the kernel will have its variables: what it does not initialise is then NaN, unless the compiler keeps it
// elsewhere.
[[gnu::noinline]] static void poison_stack() {
    volatile unsigned char room[8192];
    memset((void *)room, 0xff, sizeof room);
}

static void run_fiber() {
    for (;;) {
        current->groups.assign(1, {});
        poison_stack();  // last, so that the kernel finds nothing else there
        call(call_arguments);
        leave(DONE, 0);
    }
}

static void make_fiber(Thread *thread) {
    if (!thread->stack)
        thread->stack = (char *)mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    getcontext(&thread->entry);
    thread->entry.uc_stack.ss_sp = thread->stack;
    thread->entry.uc_stack.ss_size = STACK;
    thread->entry.uc_link = nullptr;
    makecontext(&thread->entry, run_fiber, 0);
    thread->started = false;
}

[[gnu::noinline]] static void run(int number) {
    current_number = number;
    current = threads[number];
    if (_setjmp(scheduler)) return;
    if (current->started) go_to(current->at);
    current->started = true;
    setcontext(&current->entry);
}

// Runs the ready threads of a warp once, then lets the warp go on if all of it has come to one shuffle. True: something
// happened.
static bool run_warp(int warp) {
    int order[LANES];
    bool progress = false;
    for (int i = 0; i < LANES; i++) order[i] = schedule == 1 ? LANES - 1 - i : i;
    if (schedule > 1)
        for (int i = LANES - 1; i > 0; i--) std::swap(order[i], order[random_below(i + 1)]);
    for (int i = 0; i < LANES; i++) {
        const int number = warp * LANES + order[i];
        if (threads[number]->state != READY) continue;
        progress = true;
        run(number);
        if (message[0]) return false;
    }
    const Thread *first = threads[warp * LANES];
    for (int i = 0; i < LANES; i++) {
        const Thread *thread = threads[warp * LANES + i];
        if (thread->state != AT_SHUFFLE || thread->line != first->line || thread->shuffles != first->shuffles)
            return progress;
    }
    for (int i = 0; i < LANES; i++) threads[warp * LANES + i]->state = READY;
    return true;
}

static bool all_done() {
    for (int i = 0; i < count; i++)
        if (threads[i]->state != DONE) return false;
    return true;
}

// What keeps the threads of a block from going on: nothing where all wait at one barrier.
static bool pass_barrier() {
    const int line = threads[0]->line;
    for (int i = 0; i < count; i++) {
        const Thread *thread = threads[i];
        if (thread->state == AT_BARRIER && thread->line == line) continue;
        const Thread *waiting = nullptr;
        for (int k = 0; k < count; k++)
            if (threads[k]->state == AT_BARRIER || threads[k]->state == AT_SHUFFLE) waiting = threads[k];
        snprintf(message, sizeof message, "thread %u waits at line %d, which not all of its block or warp reach",
                 waiting->index.x, waiting->line);
        return false;
    }
    for (int i = 0; i < count; i++) threads[i]->state = READY;
    return true;
}

static void run_block() {
    memset(shared_bytes, 0xff, shared_used + CANARY);
    for (int i = 0; i < count; i++) {
        const unsigned x = i % block_size.x, rest = i / block_size.x;
        threads[i]->index = {x, rest % block_size.y, rest / block_size.y};
        threads[i]->state = READY;
        threads[i]->shuffles = 0;
    }
    const int warps = count / LANES;
    while (!message[0] && !all_done()) {
        bool progress = false;
        for (int i = 0; i < warps && !message[0]; i++) {
            const int warp = schedule == 0 ? i : schedule == 1 ? warps - 1 - i : (int)random_below(warps);
            while (run_warp(warp)) {
                progress = true;
                if (schedule > 1 && random_below(4) == 0) break;
            }
        }
        if (!progress && !message[0] && !all_done()) {
            bool ready = false;  // the random schedule may have passed by a warp that could go on
            for (int i = 0; i < count; i++) ready |= threads[i]->state == READY;
            for (int i = 0; i < warps && schedule > 1 && !ready; i++) ready |= run_warp(i);
            if (!ready) pass_barrier();
        }
    }
    check_shared();
}

template <auto kernel>
struct Kernel;

template <typename... Arguments, void (*kernel)(Arguments...)>
struct Kernel<kernel> {
    template <size_t... i>
    static void call_with(void **arguments, std::index_sequence<i...>) {
        kernel(*(Arguments *)arguments[i]...);
    }
    static void call(void **arguments) { call_with(arguments, std::index_sequence_for<Arguments...>()); }
    static bool takes(const size_t *sizes, int n) {
        const size_t own[] = {sizeof(Arguments)...};
        if (n != (int)sizeof...(Arguments)) return false;
        for (int i = 0; i < n; i++)
            if (own[i] != sizes[i]) return false;
        return true;
    }
};

struct Entry {
    void (*call)(void **);
    bool (*takes)(const size_t *, int);
};

// Null, or what went wrong.
static const char *launch(const Entry &kernel, const unsigned *grid, const unsigned *block, unsigned dynamic,
                          unsigned chosen_schedule, void **arguments, const size_t *sizes, int n) {
    message[0] = 0;
    if (!kernel.takes(sizes, n)) return "the arguments do not fit the kernel's parameters in number or size";
    block_size = {block[0], block[1], block[2]};
    grid_size = {grid[0], grid[1], grid[2]};
    count = block[0] * block[1] * block[2];
    if (count % LANES || count == 0 || count > 1024) return "a block must be whole warps, at most 32";
    if (!grid[0] || !grid[1] || !grid[2] || grid[1] > 65535 || grid[2] > 65535)
        return "a grid of a size that CUDA refuses";
    while ((int)threads.size() < count) {
        threads.push_back(new Thread);
        make_fiber(threads.back());
    }
    call = kernel.call;
    call_arguments = arguments;
    schedule = chosen_schedule;
    random_state = schedule * 2654435761u + 1;
    dynamic_bytes = dynamic;
    shared_arrays.clear();
    shared_used = 0;
    memset(shared_bytes, 0xff, sizeof shared_bytes);
    std::vector<unsigned> order(grid[0] * grid[1] * grid[2]);
    for (unsigned i = 0; i < order.size(); i++) order[i] = schedule == 1 ? order.size() - 1 - i : i;
    for (unsigned i = order.size() - 1; schedule > 1 && i > 0; i--) std::swap(order[i], order[random_below(i + 1)]);
    for (unsigned block : order) {
        block_index = {block % grid[0], block / grid[0] % grid[1], block / grid[0] / grid[1]};
        run_block();
        if (!message[0]) continue;
        for (Thread *thread : threads) make_fiber(thread);  // those that stopped half way begin anew
        return message;
    }
    return nullptr;
}

}  // namespace emulation
