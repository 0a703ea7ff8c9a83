#include <errno.h>
#include <fcntl.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "virtio/block_layer.h"
#include "vmm/base/whole_file.h"

#define COPY_BYTES 65536u

/* How many of the n bytes at an offset of a file are a hole, or are none: whole sectors. */
static int64_t extent_of(int fd, off_t offset, uint32_t n, bool *is_hole)
{
    off_t end = lseek(fd, offset, SEEK_DATA);

    if (end < 0 && errno == ENXIO) { /* it ends with a hole, or did before */
        end = lseek(fd, 0, SEEK_END);
        if (end >= 0 && end < offset + n)
            return -ENODATA;
    }
    *is_hole = end - offset >= BLOCK_SECTOR_BYTES;
    if (end >= 0 && !*is_hole)
        end = lseek(fd, offset, SEEK_HOLE);
    if (end < 0)
        return -errno;
    end -= offset;
    return end >= n                   ? n
           : end < BLOCK_SECTOR_BYTES ? BLOCK_SECTOR_BYTES
                                      : end / BLOCK_SECTOR_BYTES * BLOCK_SECTOR_BYTES;
}

/* 0 or -errno. */
static int punch_layer(int fd, off_t offset, int64_t n)
{
    int ret;

    do
        ret = fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, n);
    while (ret < 0 && errno == EINTR);
    return ret < 0 ? -errno : 0;
}

/* A part of the host's file system is left to those who can't do without: 0, -ENOSPC or so. */
static int check_room(int fd, int64_t bytes)
{
    struct statfs s;

    if (fstatfs(fd, &s) < 0)
        return -errno;
    return s.f_blocks > 0 && (uint64_t)bytes / (uint64_t)s.f_bsize + s.f_blocks / 16 >= s.f_bavail
               ? -ENOSPC
               : 0;
}

int block_layer_copy(const struct block_layer *top, const struct block_layer *from, uint64_t offset,
                     uint32_t n)
{
    const uint64_t at = block_layer_data(top) + offset;
    uint8_t bytes[COPY_BYTES];
    bool is_hole;
    int64_t count = extent_of(from->fd, (off_t)at, n, &is_hole);
    int ret = -EOPNOTSUPP;

    if (count < 0)
        return (int)count;
    if (is_hole) /* what is there was never told of: it may be anything */
        ret = punch_layer(top->fd, (off_t)at, count);
    if (ret != -EOPNOTSUPP)
        return ret < 0 ? ret : (int)count;
    if (count > COPY_BYTES)
        count = COPY_BYTES;
    ret = check_room(top->fd, count);
    if (ret == 0)
        ret = whole_file_read_at(from->fd, bytes, (size_t)count, at);
    if (ret == 0)
        ret = whole_file_write_at(top->fd, bytes, (size_t)count, at);
    return ret < 0 ? ret : (int)count;
}
