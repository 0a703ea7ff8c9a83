#include "vmm/snapshot/files.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

/* All of it, at an offset. 0 or -errno. */
static int write_whole(int fd, const void *from, uint64_t bytes, uint64_t offset)
{
    const uint8_t *at = from;

    while (bytes) {
        ssize_t done = pwrite(fd, at, bytes, (off_t)offset);

        if (done < 0 && errno != EINTR)
            return -errno;
        if (done > 0) {
            at += done;
            offset += (uint64_t)done;
            bytes -= (uint64_t)done;
        }
    }
    return 0;
}

static int write_memory(const char *path, const struct snapshot_memory *m, struct error *e)
{
    autofd int fd = open(path, O_WRONLY | O_CREAT | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0666);
    uint64_t offset = 0;

    if (fd < 0)
        return fail_os(e, errno, "Cannot perform open on the memory backing file");
    if (ftruncate(fd, (off_t)snapshot_memory_bytes(m)) < 0)
        return fail_os(e, errno, "Cannot perform truncate on the memory backing file");
    for (unsigned i = 0; i < m->mem->region_count; i++) {
        const struct gmem_region *r = &m->mem->regions[i];
        int ret = write_whole(fd, r->host, r->bytes, offset);

        if (ret < 0)
            return fail_os(e, -ret, "Cannot write memory file");
        offset += r->bytes;
    }
    return 0;
}

int snapshot_files_write(const struct snapshot_files *f, struct snapshot_memory *m,
                         enum snapshot_kind kind, const struct snapshot_uuid *name,
                         const void *state, size_t bytes, struct error *e)
{
    autofd int fd =
        open(f->state_path, O_WRONLY | O_CREAT | O_TRUNC | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0666);
    int ret;

    (void)kind;
    (void)name;
    if (fd < 0)
        return fail_os(e, errno, "Cannot perform open on the snapshot backing file");
    ret = write_whole(fd, state, bytes, 0);
    if (ret < 0)
        return fail_os(e, -ret, "Cannot serialize the microVM state: IO Error");
    return write_memory(f->memory_path, m, e);
}

int snapshot_files_read_state(const char *path, uint8_t **state, size_t *bytes, struct error *e)
{
    autofd int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    autofree uint8_t *text = NULL;
    struct stat st;
    size_t n = 0;

    if (fd < 0 || fstat(fd, &st) < 0)
        return fail_os(e, errno, "Failed to open snapshot file");
    if (S_ISDIR(st.st_mode))
        return fail_os(e, EISDIR, "Failed to load snapshot state from file: IO Error");
    if (!S_ISREG(st.st_mode))
        return fail(e, ERR_INVALID,
                    "Failed to load snapshot state from file: it is no regular file");
    if (st.st_size < 8)
        return fail(e, ERR_INVALID,
                    "Failed to load snapshot state from file: IO Error: File too short to contain "
                    "CRC");
    if (st.st_size > SNAPSHOT_STATE_BYTES)
        return fail(e, ERR_INVALID, "Snapshot size exceeds limit of %u bytes",
                    SNAPSHOT_STATE_BYTES);
    text = malloc((size_t)st.st_size);
    BUG_ON(!text);
    while (n < (size_t)st.st_size) {
        ssize_t got = pread(fd, text + n, (size_t)st.st_size - n, (off_t)n);

        if (got < 0 && errno != EINTR)
            return fail_os(e, errno, "Failed to load snapshot state from file: IO Error");
        if (got == 0)
            break; /* it was made shorter meanwhile: what is missing is noticed by its reader */
        if (got > 0)
            n += (size_t)got;
    }
    *bytes = n;
    *state = text;
    text = NULL;
    return 0;
}

int snapshot_files_open_memory(const char *path, const struct snapshot_uuid *name, uint64_t bytes,
                               struct error *e)
{
    autofd int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    struct stat st;

    (void)name;
    if (fd < 0)
        return fail_os(e, errno, "Failed to load guest memory");
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || (uint64_t)st.st_size < bytes)
        return fail(e, ERR_INVALID,
                    "Failed to restore guest memory: Total sum of memory regions exceeds largest "
                    "possible file offset");
    if (flock(fd, LOCK_SH | LOCK_NB) < 0)
        return fail_os(e, errno, "Failed to load guest memory: its file is being written");
    return take_fd(&fd);
}
