#include "vmm/snapshot/half.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

/* As many symbolic links as the kernel follows. */
#define LINKS_MAX 40

int half_fail(struct error *e, int os_errno, const char *verb, const struct half *h)
{
    return fail_os(e, os_errno, "Cannot perform %s on the %s backing file", verb, h->what);
}

static char *directory_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *name = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");

    BUG_ON(!name);
    return name;
}

/* In a sticky directory that is somebody else's, only what is one's own. */
static bool may_rename(const char *path, const struct stat *file)
{
    autofree char *directory = directory_of(path);
    const uid_t user = geteuid();
    struct stat st;

    // NOLINTNEXTLINE(clang-analyzer-unix.Malloc): autofree
    return file->st_uid == user || stat(directory, &st) < 0 || !(st.st_mode & S_ISVTX) ||
           st.st_uid == user;
}

/* Where a link leads to what is not there yet. Then that is made, as any other new file is. */
static char *follow_links(const char *path)
{
    char target[PATH_MAX], *at = strdup(path);

    // NOLINTNEXTLINE(clang-analyzer-unix.Malloc): autofree
    for (unsigned hops = 0; at && hops < LINKS_MAX; hops++) {
        autofree char *link = at;
        const ssize_t n = readlink(at, target, sizeof(target));
        const char *slash = strrchr(at, '/');

        if (n < 0 || n == sizeof(target)) {
            link = NULL;
            break;
        }
        if (asprintf(&at, "%.*s%.*s", *target == '/' || !slash ? 0 : (int)(slash + 1 - at), at,
                     (int)n, target) < 0)
            at = NULL;
    }
    return at;
}

/* No symbolic link, whose target is meant; nothing that is mounted, as a single file may be. */
static bool is_replaceable(const char *path)
{
    struct statx st;

    if (statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_TYPE, &st) < 0)
        return errno == ENOENT;
    return S_ISREG(st.stx_mode) && !(st.stx_attributes & STATX_ATTR_MOUNT_ROOT);
}

int half_open(struct half *h, const char *what, const char *path, struct error *e)
{
    *h = (struct half){ .what = what, .fd = -1 };
    h->old_fd = open(path, SNAPSHOT_OPEN_FLAGS);
    if (h->old_fd < 0 && (errno != ENOENT || !*path)) /* no name can be given to a new one */
        return half_fail(e, errno, "open", h);
    if (h->old_fd >= 0 && fstat(h->old_fd, &h->old) < 0)
        return half_fail(e, errno, "open", h);
    if (S_ISFIFO(h->old.st_mode))
        return half_fail(e, ENXIO, "open", h);
    h->exists = h->old_fd >= 0;
    h->path = h->exists ? strdup(path) : follow_links(path);
    BUG_ON(!h->path);
    h->can_be_replaced = is_replaceable(h->path) && (!h->exists || may_rename(path, &h->old));
    return 0;
}

void half_close(struct half *h)
{
    if (h->is_made)
        unlink(h->path);
    if (h->temporary)
        unlink(h->temporary);
    free(h->temporary);
    free(h->path);
    if (h->fd != h->old_fd)
        close_fdp(&h->fd);
    close_fdp(&h->old_fd);
}

bool is_same_file(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* Whether a descriptor is of what a path names; -errno: that can't be told. After a lock: whoever
 * held that before may have renamed it. */
static int is_named(int fd, const char *path)
{
    struct stat ours, named;

    if (fstat(fd, &ours) < 0)
        return -errno;
    if (stat(path, &named) < 0)
        return errno == ENOENT ? 0 : -errno;
    return is_same_file(&ours, &named);
}

/* 0 where a descriptor is not of what the other half is written to, or replaces; else -EEXIST, or
 * -errno: that can't be told. */
static int check_other(int fd, const struct half *other)
{
    struct stat ours, written;
    const int ret = is_named(fd, other->path);

    if (ret != 0)
        return ret < 0 ? ret : -EEXIST;
    if (other->fd < 0)
        return 0;
    if (fstat(fd, &ours) < 0 || fstat(other->fd, &written) < 0)
        return -errno;
    return is_same_file(&ours, &written) ? -EEXIST : 0;
}

int half_open_temporary(const char *path, const struct half *other)
{
    autofd int fd = open(path, SNAPSHOT_OPEN_FLAGS | O_CREAT | O_NOFOLLOW, 0666);
    struct stat st;
    int ret;

    if (fd < 0)
        return -errno;
    ret = other ? check_other(fd, other) : 0;
    if (ret < 0)
        return ret;
    if (fstat(fd, &st) < 0)
        return -errno;
    if (!may_rename(path, &st))
        return -EBUSY;
    if (flock(fd, LOCK_EX | LOCK_NB) < 0)
        return -errno;
    ret = is_named(fd, path);
    if (ret <= 0)
        return ret < 0 ? ret : -EAGAIN;
    return take_fd(&fd);
}

/* 0, or -errno; -EEXIST: it is the other half. */
static int make_temporary(struct half *h, const struct half *other)
{
    autofree char *path = NULL;
    autofd int fd = -1;

    if (asprintf(&path, "%s" SNAPSHOT_TEMPORARY, h->path) < 0)
        return -ENOMEM;
    if (strcmp(path, other->path) == 0)
        return -EEXIST;
    fd = half_open_temporary(path, other);
    if (fd < 0)
        return fd;
    if (ftruncate(fd, 0) < 0 || (h->exists && fchmod(fd, h->old.st_mode & 0777) < 0))
        return -errno;
    h->fd = take_fd(&fd);
    h->temporary = path;
    path = NULL;
    return 0;
}

static int fail_open(struct error *e, int ret, const struct half *h, const struct half *other)
{
    if (ret == -EEXIST)
        return fail(e, ERR_INVALID,
                    "Cannot perform open on the %s backing file: it is the %s backing file, too",
                    h->what, other->what);
    if (ret == -EAGAIN)
        return fail(e, ERR_STATE,
                    "Cannot perform open on the %s backing file: another microVM is writing it",
                    h->what);
    return half_fail(e, -ret, "open", h);
}

int half_begin(struct half *h, const struct half *other, struct error *e)
{
    int ret = h->can_be_replaced ? make_temporary(h, other) : -EBUSY;

    if (ret == -EBUSY || ret == -ENAMETOOLONG ||
        ((ret == -EACCES || ret == -EPERM || ret == -EROFS) && h->exists)) {
        h->can_be_replaced = false;
        h->fd = h->exists ? h->old_fd : open(h->path, SNAPSHOT_OPEN_FLAGS | O_CREAT, 0666);
        h->is_made = !h->exists && h->fd >= 0;
        ret = h->fd < 0 || fstat(h->fd, &h->old) < 0 ? -errno : check_other(h->fd, other);
    }
    return ret < 0 ? fail_open(e, ret, h, other) : 0;
}

int half_sync(const struct half *h, bool wanted, struct error *e)
{
    return wanted && fsync(h->fd) < 0 ? half_fail(e, errno, "sync_all", h) : 0;
}

/* Makes the names in the half's directory last. Where it may not be read, the file's own fsync has
 * to do. */
int half_sync_directory(const struct half *h, bool wanted, struct error *e)
{
    autofree char *path = NULL;
    autofd int fd = -1;

    if (!wanted || !h->can_be_replaced)
        return 0;
    path = directory_of(h->path);
    // NOLINTNEXTLINE(clang-analyzer-unix.Malloc): autofree
    fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 && errno == EACCES)
        return half_sync(h, true, e);
    return fd < 0 || fsync(fd) < 0 ? half_fail(e, errno, "sync_all", h) : 0;
}

int half_check_other(const struct half *h, const struct half *other, struct error *e)
{
    const int ret = h->exists ? check_other(h->old_fd, other) : 0;

    return ret < 0 ? fail_open(e, ret, other, h) : 0;
}

int half_rename(struct half *h, struct error *e)
{
    if (rename(h->temporary, h->path) < 0)
        return half_fail(e, errno, "rename", h);
    free(h->temporary);
    h->temporary = NULL;
    return 0;
}
