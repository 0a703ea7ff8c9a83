#include "vmm/base/whole_file.h"

#include <errno.h>
#include <sys/uio.h>
#include <unistd.h>

ssize_t whole_file_read(int fd, char *bytes, size_t room)
{
    size_t have = 0;
    ssize_t n = 1;

    while (have < room && n != 0) {
        n = read(fd, bytes + have, room - have);
        if (n < 0 && errno != EINTR)
            return -errno;
        if (n > 0)
            have += (size_t)n;
    }
    return (ssize_t)have;
}

int whole_file_read_at(int fd, void *bytes, size_t n, uint64_t offset)
{
    while (n) {
        const ssize_t got = pread(fd, bytes, n, (off_t)offset);

        if (got == 0 || (got < 0 && errno != EINTR))
            return got ? -errno : -ENODATA;
        if (got > 0) {
            bytes = (uint8_t *)bytes + got;
            offset += (uint64_t)got;
            n -= (size_t)got;
        }
    }
    return 0;
}

int whole_file_write_at(int fd, const void *bytes, size_t n, uint64_t offset)
{
    while (n) {
        const struct iovec v = { (void *)bytes, n };
        const ssize_t done = pwritev(fd, &v, 1, (off_t)offset);

        if (done == 0 || (done < 0 && errno != EINTR))
            return done ? -errno : -EIO;
        if (done > 0) {
            bytes = (const uint8_t *)bytes + done;
            offset += (uint64_t)done;
            n -= (size_t)done;
        }
    }
    return 0;
}
