/* One team of threads for the extension's loops and for the matrix products of NumPy's OpenBLAS.
 *
 * Two teams on the same cores fight: idle threads of one spin on the cores that the other needs, and a
 * product that takes 0.6 ms takes 6. OpenBLAS can run its jobs on somebody else's threads, so here it is
 * given these. See pool.c for how, and for what can go wrong.
 */
#ifndef TINYGPT_POOL_H
#define TINYGPT_POOL_H

#include <stddef.h>

/* Work on the indices begin .. end - 1. */
typedef void (*tg_body)(void *task, ptrdiff_t begin, ptrdiff_t end);

/* Call body on chunks of `grain` indices that together cover 0 .. n - 1, on all threads; return when all are
 * done. Chunks have fixed borders and may run in any order on any thread: a body whose chunks do not
 * depend on one another gives the same result on any number of threads. */
void tg_parallel_for(tg_body body, void *task, ptrdiff_t n, ptrdiff_t grain);

/* Ask for a number of threads; returns how many there are (fewer when the system refuses to start them). */
int tg_set_num_threads(int count);
int tg_get_num_threads(void);

/* Run OpenBLAS's jobs on these threads. `library` is the path of a loaded library that depends on it.
 * Returns 1 when it is done, 0 when the BLAS in use has no such door (then it is left alone). */
int tg_adopt_blas(const char *library);

/* Element (i, j) is at data[i * row + j * column]; one of the two steps is 1, and the other one is no shorter than what it
 * steps over. */
struct tg_strided {
    const float *data;
    ptrdiff_t row, column;
};

/* c (M x N) = a (M x K) . b (K x N), or += it, by that BLAS, on the calling thread alone: between tg_blas_enter and
 * tg_blas_leave. The rows of c are c_row apart. tg_blas_enter returns 0 where there is no such BLAS, or where its integers
 * don't hold `largest`; then there is nothing to leave. */
int tg_blas_enter(ptrdiff_t largest);
void tg_blas_multiply(ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, struct tg_strided a, struct tg_strided b, float *c,
                      ptrdiff_t c_row, int add);
void tg_blas_leave(void);

#endif
