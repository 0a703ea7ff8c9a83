#include "vmm/base/whole_file.h"

#include <errno.h>
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
