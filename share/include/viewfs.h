/* System calls that exist in no kernel, and that a module of viewfs answers (docs/calls.md).
 *
 *     long viewfs_call(long number, ...);
 *
 * As syscall(2): up to six arguments, each as wide as a register; -1 and errno if the call failed. A number from
 * VIEWFS_FIRST_CALL on that no module answers, and every one outside of a view, is ENOSYS.
 */
#ifndef VIEWFS_H
#define VIEWFS_H

#include <errno.h>
#include <unistd.h>

#define VIEWFS_FIRST_CALL 1000

#ifdef __cplusplus
extern "C" {
#endif

extern long syscall(long number, ...); /* where <unistd.h> hides it */

#ifdef __cplusplus
}
#endif

#define viewfs_call(...) viewfs_call_(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)
#define viewfs_call_(number, a, b, c, d, e, f, ...) \
    syscall((number), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

/* Is there anybody who answers this call? (It is made, with no arguments.) */
static inline int viewfs_has_call(long number)
{
    return syscall(number, 0L, 0L, 0L, 0L, 0L, 0L) != -1 || errno != ENOSYS;
}

#endif
