#include "virtio/block_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>

#include "vmm/base/log.h"

/* Not fail_path(): Firecracker puts the space also before a path that is empty. */
static int block_file_refuse(struct error *e, int os_errno, const char *path)
{
    return fail(e, ERR_HOST,
                "Virtio backend error: Error manipulating the backing file: %s (os error %d) %s",
                os_error_text(os_errno), os_errno, path);
}

/* The unit of st_blocks, whatever the file system's own is. */
#define STAT_BLOCK_BYTES 512u

/* A page, unless the file system has a better one. Some network file systems name megabytes. */
static uint32_t unit_of(const struct stat *st)
{
    uint64_t unit = (uint64_t)st->st_blksize;

    if (unit < BLOCK_SECTOR_BYTES || unit > 65536 || (unit & (unit - 1)))
        return 4096;
    return (uint32_t)unit;
}

/* The host opens a device that it keeps from being written for writing all the same, and fails each
 * write. */
static bool is_writable_device(int fd)
{
    int is_read_only = 0;

    return ioctl(fd, BLKROGET, &is_read_only) < 0 || !is_read_only;
}

/* Non-blocking, so that a FIFO does not wait for a peer. Of a file it asks whether somebody has a
 * lease on it, as a VM has on its kernel and initrd (vmm/boot/image_guard.h): that is waited for.
 */
static int open_disk(const char *path, bool is_read_only)
{
    const int flags = (is_read_only ? O_RDONLY : O_RDWR) | O_NOCTTY | O_CLOEXEC;
    int fd = open(path, flags | O_NONBLOCK);

    return fd < 0 && errno == EWOULDBLOCK ? open(path, flags) : fd;
}

static void identify(struct block_file *f, const struct stat *st)
{
    char id[64];

    snprintf(id, sizeof(id), "%llu%llu%llu", (unsigned long long)st->st_dev,
             (unsigned long long)st->st_rdev, (unsigned long long)st->st_ino);
    memset(f->id, 0, sizeof(f->id));
    memcpy(f->id, id, strnlen(id, sizeof(f->id)));
}

/* A file in memory waits for a disk no more than the guest's own memory does. (A device says by
 * this where its node lies, which is in memory, too.) Of others the host is asked by reading a
 * byte; writing has to be tried with what the guest writes. */
static int nowait_flags(int fd, bool is_device)
{
    const struct iovec byte = { &(char){ 0 }, 1 };
    struct statfs fs;

    if (!is_device && fstatfs(fd, &fs) == 0 && fs.f_type == TMPFS_MAGIC)
        return 0;
    return preadv2(fd, &byte, 1, 0, RWF_NOWAIT) < 0 && errno == EOPNOTSUPP ? BLOCK_FILE_WAITS
                                                                           : RWF_NOWAIT;
}

int block_file_open(struct block_file *f, const char *path, bool is_read_only, struct error *e)
{
    autofd int fd = open_disk(path, is_read_only);
    struct stat st;
    off_t bytes;

    *f = (struct block_file){ .fd = -1 };
    if (fd < 0)
        return block_file_refuse(e, errno, path);
    bytes = lseek(fd, 0, SEEK_END);
    if (bytes < 0 || fstat(fd, &st) < 0)
        return block_file_refuse(e, errno, path);
    if (S_ISDIR(st.st_mode))
        return block_file_refuse(e, EISDIR, path);
    if (S_ISBLK(st.st_mode) && !is_read_only && !is_writable_device(fd))
        return block_file_refuse(e, EROFS, path);
    /* io_uring would fail what it can't do at once. */
    if (fcntl(fd, F_SETFL, 0) < 0)
        return block_file_refuse(e, errno, path);
    if (bytes % BLOCK_SECTOR_BYTES)
        log_warn("Disk %s: %lld bytes are not whole sectors of %u; the guest can't reach the rest",
                 path, (long long)bytes, BLOCK_SECTOR_BYTES);
    *f = (struct block_file){
        .read_flags = nowait_flags(fd, !S_ISREG(st.st_mode)),
        .is_read_only = is_read_only,
        .is_thin =
            S_ISREG(st.st_mode) && (uint64_t)st.st_blocks * STAT_BLOCK_BYTES < (uint64_t)st.st_size,
        .unit_bytes = unit_of(&st),
        .sectors = (uint64_t)bytes / BLOCK_SECTOR_BYTES,
    };
    f->write_flags = f->read_flags;
    identify(f, &st);
    f->path = strdup(path);
    BUG_ON(!f->path);
    f->fd = take_fd(&fd);
    return 0;
}

/* What the guest writes to is its own file, which tells two disks of one base apart; its space was
 * never promised, either. Which sectors it has is written, too, and so waited for. */
int block_file_put_overlay(struct block_file *f, const struct drive_config *d, struct error *e)
{
    struct stat st;

    if (block_overlay_open(&f->overlay, d, f->fd, f->sectors, e) < 0)
        return -1;
    if (fstat(block_overlay_fd(f->overlay), &st) == 0) {
        identify(f, &st);
        f->unit_bytes = unit_of(&st);
    }
    f->is_read_only = false;
    f->is_thin = true;
    f->write_flags = BLOCK_FILE_WAITS;
    if (f->read_flags != RWF_NOWAIT)
        f->read_flags = BLOCK_FILE_WAITS;
    return 0;
}

void block_file_close(struct block_file *f)
{
    block_overlay_close(f->overlay);
    f->overlay = NULL;
    close_fdp(&f->fd);
    f->fd = -1;
    free(f->path);
    f->path = NULL;
}

void block_file_drop(struct block_file *f)
{
    if (f->overlay)
        block_overlay_drop(f->overlay);
    f->overlay = NULL;
    block_file_close(f);
}

int block_file_sync(const struct block_file *f)
{
    int ret;

    if (f->overlay)
        return block_overlay_sync(f->overlay);
    do
        ret = fdatasync(f->fd);
    while (ret < 0 && errno == EINTR);
    return ret < 0 ? -errno : 0;
}

int block_file_zero_mode(const struct block_file *f, bool may_deallocate)
{
    return FALLOC_FL_KEEP_SIZE |
           (f->is_thin && may_deallocate ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
}

int block_file_fallocate(const struct block_extent *x, int mode)
{
    return fallocate(x->fd, mode, (off_t)x->offset, (off_t)x->bytes) < 0 ? -errno : 0;
}
