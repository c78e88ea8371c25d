/* One thread pool, shared by the extension's loops and the matrix products of NumPy's OpenBLAS.
 *
 * Two pools on the same cores slow each other down: idle threads of one spin on the cores that the other needs, and a
 * product that takes 0.6 ms alone takes 6 ms. OpenBLAS can run its jobs on threads that the caller provides, so it is
 * given these. pool.c says how, and what can go wrong.
 */
#ifndef TINYGPT_POOL_H
#define TINYGPT_POOL_H

#include <stddef.h>

/* Process the indices begin .. end - 1. */
typedef void (*tg_body)(void *task, ptrdiff_t begin, ptrdiff_t end);

/* Call body on chunks of `grain` indices that together cover 0 .. n - 1, on all threads; return when all are done.
 * The chunk boundaries do not depend on the number of threads, but chunks may run in any order on any thread. So if the
 * chunks are independent, the result is the same on any number of threads. */
void tg_parallel_for(tg_body body, void *task, ptrdiff_t n, ptrdiff_t grain);

/* Set the number of threads; returns the actual number, which is smaller if the system refuses to start them. */
int tg_set_num_threads(int count);
int tg_get_num_threads(void);

/* How often a worker has left a core that it shared with another thread of the team. */
int tg_moves(void);

/* How often the caller has sent a worker that did not get to run away from its own core. */
int tg_sendings(void);

/* Make OpenBLAS run its jobs on these threads. `library` is the path of a loaded library that depends on OpenBLAS.
 * Returns 1 on success, 0 if the BLAS in use does not support it (it is then left alone). */
int tg_adopt_blas(const char *library);

/* Element (i, j) is at data[i * row + j * column]. One of the two strides is 1; the other is at least the length of the
 * rows or columns that it separates. */
struct tg_strided {
    const float *data;
    ptrdiff_t row, column;
};

/* c (M x N) = a (M x K) . b (K x N), or c += a . b, by that BLAS, on the calling thread alone; only between
 * tg_blas_enter and tg_blas_leave. The rows of c are c_row apart. tg_blas_enter returns 0 if no such BLAS was
 * adopted or if its integers cannot hold `largest`; then tg_blas_leave must not be called. */
int tg_blas_enter(ptrdiff_t largest);
void tg_blas_multiply(ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, struct tg_strided a, struct tg_strided b, float *c,
                      ptrdiff_t c_row, int add);
void tg_blas_leave(void);

#endif
