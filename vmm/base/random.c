#include "vmm/base/random.h"

#include <errno.h>
#include <sys/random.h>

/* Requests of up to 256 bytes are served whole; a signal comes only before there are any
 * (getrandom(2)). */
int random_fill(void *bytes, size_t n)
{
    ssize_t got;

    do
        got = getrandom(bytes, n, 0);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return -errno;
    return (size_t)got == n ? 0 : -EIO;
}
