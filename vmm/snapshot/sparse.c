#include "vmm/snapshot/sparse.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "vmm/base/whole_file.h"

#define PAGE_BYTES 4096

/* What is copied at once where the kernel can't copy between two files. */
#define COPY_BYTES (UINT64_C(256) << 10)

/* By hand: between file systems, or where one of them can't. */
static int copy_by_hand(int from, int to, off_t offset, uint64_t bytes)
{
    autofree uint8_t *buffer = malloc(COPY_BYTES);

    if (!buffer)
        return -ENOMEM;
    while (bytes) {
        const struct iovec v = { buffer, bytes < COPY_BYTES ? bytes : COPY_BYTES };
        const ssize_t got = preadv(from, &v, 1, offset);
        int ret;

        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 ? -errno : -EIO; /* it was made shorter */
        ret = whole_file_write_at(to, buffer, (uint64_t)got, (uint64_t)offset);
        if (ret < 0)
            return ret;
        offset += got;
        bytes -= (uint64_t)got;
    }
    return 0;
}

static int copy_data(int from, int to, off_t offset, uint64_t bytes)
{
    while (bytes) {
        off_t in = offset, out = offset;
        const ssize_t done = copy_file_range(from, &in, to, &out, bytes, 0);

        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return copy_by_hand(from, to, offset, bytes);
        offset += done;
        bytes -= (uint64_t)done;
    }
    return 0;
}

bool sparse_has_pages(int fd)
{
    struct stat st;

    return fstat(fd, &st) == 0 && st.st_blksize <= PAGE_BYTES;
}

int sparse_find_data(int fd, off_t *from, off_t *to, off_t end)
{
    const off_t data = *from < end ? lseek(fd, *from, SEEK_DATA) : end;

    if (data >= end || (data < 0 && errno == ENXIO))
        return 0;
    if (data < 0)
        return -errno;
    *from = data;
    *to = lseek(fd, data, SEEK_HOLE);
    if (*to < 0 || *to > end)
        *to = end;
    return 1;
}

int sparse_copy(int from, int to, off_t offset, off_t end)
{
    off_t hole = offset;
    int ret;

    while ((ret = sparse_find_data(from, &offset, &hole, end)) > 0) {
        ret = copy_data(from, to, offset, (uint64_t)(hole - offset));
        if (ret < 0)
            return ret;
        offset = hole;
    }
    return ret;
}
