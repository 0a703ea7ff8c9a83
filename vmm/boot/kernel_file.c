#include "vmm/boot/kernel_file.h"

#include <errno.h>
#include <unistd.h>

bool kernel_file_read(const struct kernel_file *f, uint64_t offset, void *dst, size_t n)
{
    uint8_t *to = dst;

    if (offset > f->bytes || n > f->bytes - offset)
        return false;
    while (n) {
        ssize_t got = pread(f->fd, to, n, (off_t)offset);

        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        to += got;
        offset += (uint64_t)got;
        n -= (size_t)got;
    }
    return true;
}
