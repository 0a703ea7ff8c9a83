#include "virtio/block_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "vmm/log.h"

static int refuse(struct error *e, int os_errno, const char *path)
{
    return fail(e, ERR_HOST,
                "Virtio backend error: Error manipulating the backing file: %s (os error %d) %s",
                strerror(os_errno), os_errno, path);
}

int block_file_open(struct block_file *f, const char *path, bool is_read_only, struct error *e)
{
    /* Non-blocking, so that a FIFO does not wait for a peer; it means nothing for files. */
    autofd int fd = open(path, (is_read_only ? O_RDONLY : O_RDWR) | O_NONBLOCK | O_CLOEXEC);
    char id[64];
    struct stat st;
    off_t bytes;

    f->fd = -1;
    if (fd < 0)
        return refuse(e, errno, path);
    bytes = lseek(fd, 0, SEEK_END);
    if (bytes < 0 || fstat(fd, &st) < 0)
        return refuse(e, errno, path);
    if (S_ISDIR(st.st_mode))
        return refuse(e, EISDIR, path);
    if (bytes % BLOCK_SECTOR_BYTES)
        log_warn("Disk %s: %lld bytes are not whole sectors of %u; the guest can't reach the rest",
                 path, (long long)bytes, BLOCK_SECTOR_BYTES);
    *f = (struct block_file){
        .is_read_only = is_read_only,
        .sectors = (uint64_t)bytes / BLOCK_SECTOR_BYTES,
    };
    snprintf(id, sizeof(id), "%llu%llu%llu", (unsigned long long)st.st_dev,
             (unsigned long long)st.st_rdev, (unsigned long long)st.st_ino);
    memcpy(f->id, id, strnlen(id, sizeof(f->id)));
    f->fd = take_fd(&fd);
    return 0;
}

void block_file_close(struct block_file *f)
{
    close_fdp(&f->fd);
    f->fd = -1;
}

int block_file_sync(const struct block_file *f)
{
    return fdatasync(f->fd) < 0 ? -errno : 0;
}
