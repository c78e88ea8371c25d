/* pool.h says what this is for.
 *
 * A region is one call of tg_parallel_for or one parallel matrix product. Each thread has a share, a contiguous range
 * of the region's chunks, and gets the same share every time, so that it finds in its own cache what it wrote in the
 * operation before. A thread that has finished its share steals chunks from the ends of the other shares, so a worker
 * that is slow to wake costs little: the caller has a share too, and waits only for chunks that have been taken.
 *
 * A share is one 64-bit number (end << 32 | next chunk), and a thread takes a chunk by compare-and-swap. A region is
 * over when all its chunks are done, and then all its shares are empty. That makes a late thread harmless: it finds
 * either no chunk, or a chunk of the region that is open now.
 *
 * Idle workers spin for SPIN_NANOSECONDS, which spans the gap between two operations of a training step, then sleep on
 * a condition variable.
 *
 * The system may put two of the threads on one core while others are idle, in the first seconds of a process above all.
 * Then each has half of it, or the worker waits for the caller to use up its time. A worker that finds itself on the core
 * of a thread before it moves away. One that has missed several regions can't find out, since it does not run: the caller
 * sends it away (Linux only).
 *
 * Cases that need care, each with a test:
 * - OpenBLAS's jobs wait for one another, so all must run at the same time: a region of `count` jobs needs `count`
 *   threads. OpenBLAS is told how many there are; if it still asks for more, extra threads are started for that
 *   product.
 * - After fork() the workers are gone: the child forgets them and starts its own with its first region.
 * - A loop inside a loop, or two Python threads in a loop at the same time: the later loop runs on its caller alone. A
 *   second Python thread in a product waits its turn.
 * - The system refuses to start a thread: the team stays smaller. If that happens in the middle of a product, in a
 *   forked child, which inherits the number of jobs but no threads, the process prints a message and aborts.
 */
#define _GNU_SOURCE
#include "pool.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

enum { MAX_THREADS = 256 };
static const int64_t SPIN_NANOSECONDS = 200000;
/* In a forked child the system may refuse to start the threads that a product needs. Retry for five seconds. */
enum { MOST_REFUSALS = 500 };
static const struct timespec refusal_pause = {0, 10000000};

static pthread_mutex_t region_lock = PTHREAD_MUTEX_INITIALIZER; /* held by the caller during a region */
static pthread_mutex_t sleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;

static _Atomic int wanted = 1;  /* threads asked for, the caller included */
static int started = 0;         /* workers that exist */
static _Thread_local int inside = 0;

/* 128 bytes, two cache lines, for each share: processors fetch lines in pairs, and shares must not share a pair (false
 * sharing). joined: the last region that the thread has taken part in. */
static struct { _Alignas(128) _Atomic uint64_t chunks; _Atomic uint32_t joined; } shares[MAX_THREADS];
static _Alignas(128) _Atomic uint32_t regions = 0; /* regions opened so far: a change wakes the spinning workers */
static _Atomic int team = 1;                       /* threads that may take part in the current region */
static _Atomic int sleepers = 0;
static _Alignas(128) _Atomic uint32_t chunks_done = 0;

/* The current region's work: written before the shares, read after a chunk was taken. */
static tg_body region_body;
static void *region_task;
static ptrdiff_t region_n, region_grain;

/* NumPy's OpenBLAS, if it runs on these threads. Its size arguments are 64-bit or 32-bit, depending on the build. */
typedef void (*gemm_64)(int, int, int, int64_t, int64_t, int64_t, float, const float *, int64_t, const float *, int64_t,
                        float, float *, int64_t);
typedef void (*gemm_32)(int, int, int, int, int, int, float, const float *, int, const float *, int, float, float *, int);
static gemm_64 blas_gemm_64 = NULL;
static gemm_32 blas_gemm_32 = NULL;
static int (*blas_set_num_threads)(int) = NULL;
static int *blas_num_threads = NULL; /* OpenBLAS's own variable */
static int blas_most = 0;            /* the largest number that OpenBLAS was ever told */
static pthread_mutex_t blas_lock = PTHREAD_MUTEX_INITIALIZER;
static int blas_users = 0; /* products running as blocks of ours, each block on one thread */

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* Take a chunk of a share: the first one if it is the thread's own, otherwise the last one. False if it is empty. */
static int take_chunk(_Atomic uint64_t *share, int own, uint32_t *chunk) {
    uint64_t seen = atomic_load_explicit(share, memory_order_acquire);
    for (;;) {
        const uint32_t next = (uint32_t)seen, end = (uint32_t)(seen >> 32);
        if (next >= end) return 0;
        const uint64_t left = own ? seen + 1 : seen - ((uint64_t)1 << 32);
        *chunk = own ? next : end - 1;
        if (atomic_compare_exchange_weak_explicit(share, &seen, left, memory_order_acquire, memory_order_acquire))
            return 1;
    }
}

/* Take chunks until none is left, starting with thread `number`'s own share. The chunks are counted locally and
 * added to the shared counter once, because a cache line that all threads write to is slow. */
static void take_chunks(int number, int members) {
    uint32_t chunk, done = 0;
    for (int i = 0; i < members; i++)
        while (take_chunk(&shares[(number + i) % members].chunks, i == 0, &chunk)) {
            const ptrdiff_t begin = (ptrdiff_t)chunk * region_grain;
            const ptrdiff_t end = begin + region_grain < region_n ? begin + region_grain : region_n;
            region_body(region_task, begin, end);
            done++;
        }
    if (done) atomic_fetch_add_explicit(&chunks_done, done, memory_order_release);
}

/* The core that each thread ran on when it last began its share of a region. Threads write only when it has changed. */
static _Atomic int cores[MAX_THREADS] = {[0 ... MAX_THREADS - 1] = -1};
static _Atomic int moves = 0, sendings = 0;

struct pause { /* between two moves */
    int64_t since, length;
};

#ifdef __linux__
/* Nanoseconds. A move that has LASTED was worth it, and the pause after the next is short again. Otherwise it is doubled,
 * since other processes occupy the cores. */
enum { SHORTEST_PAUSE = 1000000, LONGEST_PAUSE = 32000000, LASTED = 50000000 };
enum { MISSED = 4 }; /* regions, after which a worker is taken to wait for a core */

static _Atomic pid_t threads[MAX_THREADS]; /* the system's numbers of the workers */

static void note_thread(int number) { atomic_store(&threads[number], (pid_t)syscall(SYS_gettid)); }
static void forget_threads(void) {
    for (int i = 0; i < MAX_THREADS; i++) atomic_store(&threads[i], 0);
}

/* Whether the pause is over. If so, the next one begins. */
static int may_move(struct pause *pause) {
    const int64_t time = now(), passed = time - pause->since;
    if (passed < pause->length) return 0;
    pause->length = passed > LASTED ? SHORTEST_PAUSE : 2 * pause->length;
    if (pause->length > LONGEST_PAUSE) pause->length = LONGEST_PAUSE;
    pause->since = time;
    return 1;
}

/* Take the cores `taken` from a thread (0: this one), which moves it at once if it is on one of them, and give them back:
 * afterwards the system places it as before. False if it has no other cores. */
static int move_away(pid_t thread, const cpu_set_t *taken) {
    cpu_set_t allowed, others;
    if (sched_getaffinity(thread, sizeof allowed, &allowed) != 0) return 0; /* more cores than a cpu_set_t holds */
    CPU_XOR(&others, &allowed, taken);
    CPU_AND(&others, &others, &allowed); /* allowed and not taken */
    if (CPU_COUNT(&others) == 0 || sched_setaffinity(thread, sizeof others, &others) != 0) return 0;
    sched_setaffinity(thread, sizeof allowed, &allowed);
    atomic_fetch_add_explicit(thread ? &sendings : &moves, 1, memory_order_relaxed);
    return 1;
}

static void note_core(int number, int core) {
    if (atomic_load_explicit(&cores[number], memory_order_relaxed) != core)
        atomic_store_explicit(&cores[number], core, memory_order_relaxed);
}

/* Leave a core that a thread with a smaller number is on. */
static void leave_shared_core(int number, struct pause *pause) {
    const int core = sched_getcpu();
    cpu_set_t taken;
    CPU_ZERO(&taken);
    for (int i = 0; i < number; i++) {
        const int other = atomic_load_explicit(&cores[i], memory_order_relaxed);
        if (other >= 0) CPU_SET(other, &taken);
    }
    const int shared = core >= 0 && CPU_ISSET(core, &taken);
    if (!shared || (may_move(pause) && move_away(0, &taken))) note_core(number, sched_getcpu());
}

/* Send the workers that have missed several regions away from the caller's core. Called with region_lock held. */
static void send_away(int members, uint32_t region) {
    static struct pause pause = {0, SHORTEST_PAUSE};
    const int core = sched_getcpu();
    if (core < 0 || !may_move(&pause)) return;
    cpu_set_t taken;
    CPU_ZERO(&taken);
    CPU_SET(core, &taken);
    for (int i = 1; i < members; i++) {
        const pid_t thread = atomic_load(&threads[i]);
        if (thread && region - atomic_load_explicit(&shares[i].joined, memory_order_relaxed) > MISSED)
            move_away(thread, &taken);
    }
}
#else
enum { SHORTEST_PAUSE = 0, MISSED = 4 };
static void note_core(int number, int core) { (void)number, (void)core; }
static void note_thread(int number) { (void)number; }
static void forget_threads(void) {}
static void leave_shared_core(int number, struct pause *pause) { (void)number, (void)pause; }
static void send_away(int members, uint32_t region) { (void)members, (void)region; }
static int sched_getcpu(void) { return -1; }
#endif

int tg_moves(void) { return atomic_load(&moves); }
int tg_sendings(void) { return atomic_load(&sendings); }

static void *worker(void *argument) {
    const int number = (int)(intptr_t)argument; /* 1, 2, ... : the caller is 0 */
    struct pause pause = {0, SHORTEST_PAUSE};
    uint32_t last = 0;
    note_thread(number);
    inside = 1;
    int64_t idle_since = now();
    for (unsigned turn = 0;; turn++) {
        const uint32_t seen = atomic_load_explicit(&regions, memory_order_acquire);
        if (seen != last) {
            const int members = atomic_load_explicit(&team, memory_order_relaxed);
            if (number < members) {
                atomic_store_explicit(&shares[number].joined, seen, memory_order_relaxed);
                leave_shared_core(number, &pause);
                take_chunks(number, members);
            }
            last = seen;
            idle_since = now();
            continue;
        }
        relax();
        if (turn % 64 != 0 || now() - idle_since < SPIN_NANOSECONDS) continue;
        pthread_mutex_lock(&sleep_lock);
        atomic_fetch_add(&sleepers, 1);
        while (atomic_load(&regions) == last) pthread_cond_wait(&wake, &sleep_lock);
        atomic_fetch_sub(&sleepers, 1);
        pthread_mutex_unlock(&sleep_lock);
        idle_since = now();
    }
    return NULL;
}

/* Tell OpenBLAS how many jobs to split its products into: one while any product runs as blocks of ours. If possible,
 * this writes its variable, since in a forked child its function would also restart its own threads, which are not
 * needed, and would end the process if the system refused them. */
static void tell_blas(int change) {
    if (!blas_set_num_threads) return;
    pthread_mutex_lock(&blas_lock);
    blas_users += change;
    const int count = blas_users ? 1 : wanted;
    if (blas_num_threads && count <= blas_most)
        *blas_num_threads = count;
    else
        blas_set_num_threads(blas_most = count);
    pthread_mutex_unlock(&blas_lock);
}

/* Start the missing workers. Called with region_lock held. */
static void start_workers(void) {
    while (started < wanted - 1) {
        pthread_t thread;
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        pthread_attr_setstacksize(&attributes, 8u << 20); /* OpenBLAS keeps buffers on the stack */
        int failed = pthread_create(&thread, &attributes, worker, (void *)(intptr_t)(started + 1));
        pthread_attr_destroy(&attributes);
        if (failed) {
            wanted = started + 1;
            tell_blas(0);
            return;
        }
        started++;
    }
}

/* Open a region, work in it, wait until it is over. Called with region_lock held. */
static void run_region(tg_body body, void *task, ptrdiff_t n, ptrdiff_t grain, uint32_t chunks) {
    const int members = wanted;
    region_body = body;
    region_task = task;
    region_n = n;
    region_grain = grain;
    atomic_store_explicit(&chunks_done, 0, memory_order_relaxed);
    atomic_store_explicit(&team, members, memory_order_relaxed);
    note_core(0, sched_getcpu());
    const uint32_t sharers = chunks < (uint32_t)members ? chunks : (uint32_t)members; /* other shares stay empty */
    const uint32_t region = atomic_load_explicit(&regions, memory_order_relaxed);
    int missed = 0;
    for (uint32_t i = 0; i < sharers; i++) {
        missed |= i > 0 && region - atomic_load_explicit(&shares[i].joined, memory_order_relaxed) > MISSED;
        const uint64_t next = (uint64_t)chunks * i / sharers, end = (uint64_t)chunks * (i + 1) / sharers;
        atomic_store_explicit(&shares[i].chunks, end << 32 | next, memory_order_release);
    }
    atomic_fetch_add(&regions, 1);
    if (atomic_load(&sleepers) > 0) {
        pthread_mutex_lock(&sleep_lock);
        pthread_cond_broadcast(&wake);
        pthread_mutex_unlock(&sleep_lock);
    }
    if (missed) send_away(members, region);
    inside++;
    take_chunks(0, members);
    inside--;
    for (unsigned turn = 1; atomic_load_explicit(&chunks_done, memory_order_acquire) < chunks; turn++) {
        relax();
        if (turn % 4096 == 0) sched_yield(); /* more threads than cores: let the last chunk's owner run */
    }
}

void tg_parallel_for(tg_body body, void *task, ptrdiff_t n, ptrdiff_t grain) {
    if (n <= 0) return;
    if (grain < 1) grain = 1;
    ptrdiff_t most = 1 << 30; /* chunks are counted in 32 bits */
    if (n / grain >= most) grain = n / most + 1;
    uint32_t chunks = (uint32_t)((n + grain - 1) / grain);
    if (chunks > 1 && wanted > 1 && !inside && pthread_mutex_trylock(&region_lock) == 0) {
        start_workers();
        run_region(body, task, n, grain, chunks);
        pthread_mutex_unlock(&region_lock);
        return;
    }
    for (ptrdiff_t begin = 0; begin < n; begin += grain) /* the same chunks, in order, on this thread */
        body(task, begin, begin + grain < n ? begin + grain : n);
}

/* OpenBLAS ------------------------------------------------------------------------------------------------ */

typedef void (*blas_job)(int, void *, int);
struct product {
    blas_job job;
    char *data;
    size_t element;
    int argument;
    int index; /* of an extra thread's job */
};

static void product_jobs(void *task, ptrdiff_t begin, ptrdiff_t end) {
    const struct product *p = task;
    for (ptrdiff_t i = begin; i < end; i++) p->job((int)i, p->data + (size_t)i * p->element, p->argument);
}

static void *extra_thread(void *task) {
    const struct product *p = task;
    product_jobs(task, p->index, p->index + 1);
    return NULL;
}

/* Run all jobs at the same time, on threads started for them. That is slow, but the only correct way if the team is too
 * small, or if the product was called from inside a region. */
static void run_on_extra_threads(const struct product *p, int count) {
    pthread_t *threads = malloc(sizeof(pthread_t) * (size_t)count);
    struct product *each = malloc(sizeof(struct product) * (size_t)count);
    if (!threads || !each) abort(); /* with fewer threads than jobs, the jobs would wait forever */
    for (int i = 1; i < count; i++) {
        each[i] = *p;
        each[i].index = i;
        for (int refusals = 0; pthread_create(&threads[i], NULL, extra_thread, &each[i]) != 0; refusals++) {
            if (refusals == MOST_REFUSALS) {
                fputs("tinygpt: the system refuses the threads that a matrix product needs: raise the limit on processes "
                      "(ulimit -u), or set TINYGPT_NUM_THREADS=1\n", stderr);
                abort(); /* the jobs that did start wait for the others: there is no way back */
            }
            nanosleep(&refusal_pause, NULL);
        }
    }
    product_jobs((void *)p, 0, 1);
    for (int i = 1; i < count; i++) pthread_join(threads[i], NULL);
    free(each);
    free(threads);
}

static void run_product(int sync, blas_job job, int count, size_t element, void *data, int argument) {
    (void)sync; /* returning when all jobs are done is correct for both values */
    struct product p = {job, data, element, argument, 0};
    if (count <= 1) {
        product_jobs(&p, 0, count);
        return;
    }
    if (!inside) {
        pthread_mutex_lock(&region_lock);
        start_workers();
        if (count <= wanted) {
            run_region(product_jobs, &p, count, 1, (uint32_t)count);
            pthread_mutex_unlock(&region_lock);
            return;
        }
        pthread_mutex_unlock(&region_lock);
    }
    run_on_extra_threads(&p, count);
}

static void *find_symbol(void *library, const char *const *names) {
    for (; *names; names++) {
        void *symbol = dlsym(library, *names);
        if (symbol) return symbol;
    }
    return NULL;
}

int tg_adopt_blas(const char *path) {
    static const char *const callback_names[] = {"scipy_openblas_set_threads_callback_function64_",
                                                 "scipy_openblas_set_threads_callback_function",
                                                 "openblas_set_threads_callback_function64_",
                                                 "openblas_set_threads_callback_function", NULL};
    static const char *const count_names[] = {"scipy_openblas_set_num_threads64_", "scipy_openblas_set_num_threads",
                                              "openblas_set_num_threads64_", "openblas_set_num_threads", NULL};
    static const char *const parallel_names[] = {"scipy_openblas_get_parallel64_", "scipy_openblas_get_parallel",
                                                 "openblas_get_parallel64_", "openblas_get_parallel", NULL};
    static const char *const gemm_64_names[] = {"scipy_cblas_sgemm64_", "cblas_sgemm64_", NULL};
    static const char *const gemm_32_names[] = {"scipy_cblas_sgemm", "cblas_sgemm", NULL};
    void *library = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
    if (!library) return 0;
    void *set_callback = find_symbol(library, callback_names);
    void *set_count = find_symbol(library, count_names);
    void *get_parallel = find_symbol(library, parallel_names);
    if (!set_callback || !set_count || !get_parallel) return 0;
    if (((int (*)(void))get_parallel)() != 1) return 0; /* 1: OpenBLAS with its own pthreads */
    blas_set_num_threads = (int (*)(int))set_count;
    ((void (*)(void *))set_callback)((void *)run_product);
    blas_gemm_64 = (gemm_64)find_symbol(library, gemm_64_names);
    if (!blas_gemm_64) blas_gemm_32 = (gemm_32)find_symbol(library, gemm_32_names);
    blas_num_threads = dlsym(library, "blas_cpu_number");
    tell_blas(0);
    return 1;
}

int tg_blas_enter(ptrdiff_t largest) {
    if (!blas_gemm_64 && (!blas_gemm_32 || largest > INT32_MAX)) return 0;
    tell_blas(+1);
    return 1;
}

void tg_blas_leave(void) { tell_blas(-1); }

void tg_blas_multiply(ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, struct tg_strided a, struct tg_strided b, float *c,
                      ptrdiff_t c_row, int add) {
    enum { ROWS_FIRST = 101, AS_IT_IS = 111, TRANSPOSED = 112 }; /* constants of cblas.h */
    const int a_way = a.column == 1 ? AS_IT_IS : TRANSPOSED, b_way = b.column == 1 ? AS_IT_IS : TRANSPOSED;
    const ptrdiff_t a_step = a.column == 1 ? a.row : a.column, b_step = b.column == 1 ? b.row : b.column;
    const float keep = add ? 1.0f : 0.0f;
    if (blas_gemm_64)
        blas_gemm_64(ROWS_FIRST, a_way, b_way, M, N, K, 1.0f, a.data, a_step, b.data, b_step, keep, c, c_row);
    else
        blas_gemm_32(ROWS_FIRST, a_way, b_way, (int)M, (int)N, (int)K, 1.0f, a.data, (int)a_step, b.data, (int)b_step,
                     keep, c, (int)c_row);
}

/* Threads ------------------------------------------------------------------------------------------------- */

static void before_fork(void) { pthread_mutex_lock(&region_lock); }
static void after_fork_in_parent(void) { pthread_mutex_unlock(&region_lock); }
static void after_fork_in_child(void) {
    pthread_mutex_t fresh_mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t fresh_condition = PTHREAD_COND_INITIALIZER;
    region_lock = fresh_mutex;
    sleep_lock = fresh_mutex;
    wake = fresh_condition;
    started = 0;
    forget_threads(); /* their numbers are those of the parent's */
    blas_lock = fresh_mutex;
    blas_users = 0; /* those threads are gone */
    atomic_store(&sleepers, 0);
}

int tg_set_num_threads(int count) {
    static int registered = 0;
    if (count < 1) count = 1;
    if (count > MAX_THREADS) count = MAX_THREADS;
    if (inside) return wanted;
    pthread_mutex_lock(&region_lock);
    if (!registered) {
        pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
        registered = 1;
    }
    wanted = count;
    start_workers();
    count = wanted;
    pthread_mutex_unlock(&region_lock);
    tell_blas(0);
    return count;
}

int tg_get_num_threads(void) { return wanted; }
