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

#endif
