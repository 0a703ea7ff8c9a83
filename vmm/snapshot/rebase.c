#include "vmm/snapshot/rebase.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "vmm/snapshot/mark.h"
#include "vmm/snapshot/sparse.h"

struct rebase_file {
    const char *what;
    int fd;
    struct stat st;
    struct snapshot_mark mark;
};

static int open_rebase_file(struct rebase_file *h, const char *path, int flags, int lock,
                            struct error *e)
{
    int ret;

    h->fd = open(path, flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (h->fd < 0 || fstat(h->fd, &h->st) < 0)
        return fail_os(e, errno, "Could not open %s file", h->what);
    if (!S_ISREG(h->st.st_mode))
        return fail(e, ERR_INVALID, "Could not open %s file: it is no regular file", h->what);
    if (flock(h->fd, lock | LOCK_NB) < 0)
        return errno == EAGAIN ? fail(e, ERR_STATE, "The %s file is in use by a microVM", h->what)
                               : fail_os(e, errno, "Could not lock %s file", h->what);
    ret = snapshot_mark_get(h->fd, &h->mark);
    if (ret < 0)
        return fail_os(e, -ret, "Could not read the mark of the %s file", h->what);
    if (h->mark.is_there && !h->mark.is_legible)
        return fail(e, ERR_INVALID, "The mark of the %s file is none that mayfly makes", h->what);
    return 0;
}

static int judge_files(const struct rebase_file *memory, const struct rebase_file *diff,
                       struct error *e)
{
    if (memory->st.st_size != diff->st.st_size)
        return fail(e, ERR_INVALID, "The memory file has %lld bytes, and the diff file %lld",
                    (long long)memory->st.st_size, (long long)diff->st.st_size);
    if (!sparse_has_pages(diff->fd))
        return fail(e, ERR_HOST, "The diff file's file system keeps no holes as small as a page");
    if (diff->mark.is_merging)
        return fail(e, ERR_INVALID, "The diff file was not written to its end");
    if (memory->mark.is_merging &&
        !(diff->mark.is_there && uuid_equal(&memory->mark.name, &diff->mark.name)))
        return fail(e, ERR_INVALID, "Another diff was not written to its end into the memory file");
    return 0;
}

/* A file of which nothing says what it is has no mark in the end either. */
static int set_mark(const struct rebase_file *memory, const struct rebase_file *diff,
                    bool is_merging)
{
    struct snapshot_mark mark = {
        .is_whole = !memory->mark.is_there || memory->mark.is_whole,
        .is_merging = is_merging,
        .name = diff->mark.name,
        .is_based = memory->mark.is_based,
        .base = memory->mark.base,
    };
    struct error e;
    int ret;

    if (is_merging && !diff->mark.is_there && uuid_make(&mark.name, &e) < 0)
        return -e.os_errno;
    if (is_merging || diff->mark.is_there)
        ret = snapshot_mark_set(memory->fd, &mark);
    else
        ret = fremovexattr(memory->fd, SNAPSHOT_MARK) < 0 && errno != ENODATA ? -errno : 0;
    return ret == -EOPNOTSUPP ? 0 : ret;
}

static int rebase(struct rebase_file *memory, struct rebase_file *diff, const char *memory_path,
                  const char *diff_path, struct error *e)
{
    int ret;

    if (open_rebase_file(memory, memory_path, O_RDWR, LOCK_EX, e) < 0 ||
        open_rebase_file(diff, diff_path, O_RDONLY, LOCK_SH, e) < 0 ||
        judge_files(memory, diff, e) < 0)
        return -1;
    ret = set_mark(memory, diff, true);
    if (ret < 0 || fsync(memory->fd) < 0)
        return fail_os(e, ret < 0 ? -ret : errno, "Could not mark the memory file");
    ret = sparse_copy(diff->fd, memory->fd, 0, diff->st.st_size);
    if (ret < 0)
        return fail_os(e, -ret, "Could not copy the diff file");
    if (fsync(memory->fd) < 0)
        return fail_os(e, errno, "Could not write the memory file");
    ret = set_mark(memory, diff, false);
    if (ret < 0 || fsync(memory->fd) < 0)
        return fail_os(e, ret < 0 ? -ret : errno, "Could not mark the memory file");
    return 0;
}

int snapshot_rebase(const char *memory_path, const char *diff_path, struct error *e)
{
    struct rebase_file memory = { .what = "memory", .fd = -1 }, diff = { .what = "diff", .fd = -1 };
    int ret = rebase(&memory, &diff, memory_path, diff_path, e);

    close_fdp(&memory.fd);
    close_fdp(&diff.fd);
    return ret;
}
