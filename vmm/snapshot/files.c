#include "vmm/snapshot/files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "vmm/base/log.h"
#include "vmm/base/whole_file.h"
#include "vmm/snapshot/mark.h"
#include "vmm/snapshot/pages.h"

#define OPEN_FLAGS (O_RDWR | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)

/* Behind a path: what is written before it is renamed to that. One that a create was ended over is
 * the next one's. */
#define TEMPORARY ".mayfly-new"

/* One of the two files while it is made. */
struct half {
    const char *path;
    const char *what;     /* in errors */
    bool can_be_replaced; /* by rename(2) */
    bool exists;
    struct stat old; /* of what is there */
    int old_fd;      /* the same; -1: nothing is */
    char *temporary; /* NULL: written in place, or not yet made */
    int fd;          /* what is written; old_fd where that is in place */
};

static int fail_half(struct error *e, int os_errno, const char *verb, const struct half *h)
{
    return fail_os(e, os_errno, "Cannot perform %s on the %s backing file", verb, h->what);
}

/* No symbolic link, whose target is meant; nothing that is mounted, as a single file may be. */
static bool is_replaceable(const char *path)
{
    struct statx st;

    if (statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_TYPE, &st) < 0)
        return errno == ENOENT;
    return S_ISREG(st.stx_mode) && !(st.stx_attributes & STATX_ATTR_MOUNT_ROOT);
}

/* Looks at what there is, as whom it belongs to must allow it to be written; changes nothing. */
static int half_open(struct half *h, const char *what, const char *path, struct error *e)
{
    *h = (struct half){ .path = path, .what = what, .fd = -1 };
    h->old_fd = open(path, OPEN_FLAGS);
    if (h->old_fd < 0 && (errno != ENOENT || !*path)) /* no name can be given to a new one */
        return fail_half(e, errno, "open", h);
    if (h->old_fd >= 0 && fstat(h->old_fd, &h->old) < 0)
        return fail_half(e, errno, "open", h);
    if (S_ISFIFO(h->old.st_mode))
        return fail_half(e, ENXIO, "open", h);
    h->exists = h->old_fd >= 0;
    h->can_be_replaced = is_replaceable(path);
    return 0;
}

static void half_close(struct half *h)
{
    if (h->temporary)
        unlink(h->temporary);
    free(h->temporary);
    if (h->fd != h->old_fd)
        close_fdp(&h->fd);
    close_fdp(&h->old_fd);
}

static bool is_same_file(const struct stat *a, const struct stat *b)
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

/* 0, or -errno; -EEXIST: it is the other half. */
static int make_temporary(struct half *h, const struct half *other)
{
    autofree char *path = NULL;
    autofd int fd = -1;
    int ret;

    if (asprintf(&path, "%s" TEMPORARY, h->path) < 0)
        return -ENOMEM;
    if (strcmp(path, other->path) == 0)
        return -EEXIST;
    fd = open(path, OPEN_FLAGS | O_CREAT | O_NOFOLLOW, 0666);
    if (fd < 0)
        return -errno;
    ret = check_other(fd, other);
    if (ret < 0)
        return ret;
    if (flock(fd, LOCK_EX | LOCK_NB) < 0)
        return -errno;
    ret = is_named(fd, path);
    if (ret <= 0)
        return ret < 0 ? ret : -EAGAIN;
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
    return fail_half(e, -ret, "open", h);
}

/* Opens what is to be written: a new file, or where nothing new can be beside the old one, but that
 * can be written itself, that. */
static int half_begin(struct half *h, const struct half *other, struct error *e)
{
    int ret = h->can_be_replaced ? make_temporary(h, other) : -EBUSY;

    if (ret == -EBUSY || ret == -ENAMETOOLONG ||
        ((ret == -EACCES || ret == -EPERM || ret == -EROFS) && h->exists)) {
        h->can_be_replaced = false;
        h->fd = h->exists ? h->old_fd : open(h->path, OPEN_FLAGS | O_CREAT, 0666);
        ret = h->fd < 0 || fstat(h->fd, &h->old) < 0 ? -errno : check_other(h->fd, other);
    }
    return ret < 0 ? fail_open(e, ret, h, other) : 0;
}

static int sync_half(const struct half *h, bool wanted, struct error *e)
{
    return wanted && fsync(h->fd) < 0 ? fail_half(e, errno, "sync_all", h) : 0;
}

/* Makes the names in the half's directory last. Where it may not be read, the file's own fsync has
 * to do. */
static int sync_directory(const struct half *h, bool wanted, struct error *e)
{
    autofree char *path = NULL;
    autofd int fd = -1;
    char *slash;

    if (!wanted || !h->can_be_replaced)
        return 0;
    path = strdup(h->path);
    BUG_ON(!path);
    slash = strrchr(path, '/');
    if (slash)
        slash[slash == path] = '\0';
    // NOLINTNEXTLINE(clang-analyzer-unix.Malloc): autofree
    fd = open(slash ? path : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 && errno == EACCES)
        return sync_half(h, true, e);
    return fd < 0 || fsync(fd) < 0 ? fail_half(e, errno, "sync_all", h) : 0;
}

struct pair {
    const struct snapshot_files *f;
    struct half state, memory;
    const void *bytes; /* of the state */
    size_t count;
    struct snapshot_memory *m;
    const struct page_set *set;
    struct snapshot_mark mark; /* of the memory file to be */
    bool is_full, merges;      /* merges: into pages that are there */
    bool has_marks;            /* the file system of memory does */
    bool is_mapped;            /* guest memory is mapped from the old memory file */
};

static int write_state(const struct pair *p, struct error *e)
{
    const uint8_t *at = p->bytes;
    size_t left = p->count;

    while (left) {
        const ssize_t done = write(p->state.fd, at, left);

        if (done == 0 || (done < 0 && errno != EINTR))
            return fail_os(e, done ? errno : EIO, "Cannot serialize the microVM state: IO Error");
        if (done > 0) {
            at += done;
            left -= (size_t)done;
        }
    }
    return sync_half(&p->state, p->f->sync, e);
}

/* Where there are no marks, old memory with some of the new is refused for its lack of a state. */
static int take_old_state_away(const struct pair *p, struct error *e)
{
    const struct half *s = &p->state;

    if (p->has_marks || !s->exists)
        return 0;
    if (s->can_be_replaced ? unlink(s->path) < 0 : ftruncate(s->fd, 0) < 0)
        return fail_half(e, errno, "truncate", s);
    return s->can_be_replaced ? sync_directory(s, p->f->sync, e) : sync_half(s, p->f->sync, e);
}

static int put_mark(struct pair *p, bool is_merging, struct error *e)
{
    struct snapshot_mark mark = p->mark;
    int ret;

    mark.is_merging = is_merging;
    ret = snapshot_mark_set(p->memory.fd, &mark);
    p->has_marks = ret != -EOPNOTSUPP;
    if (ret == 0 && is_merging)
        p->m->torn = p->mark.name;
    return ret < 0 && p->has_marks ? fail_half(e, -ret, "fsetxattr", &p->memory) : 0;
}

/* The file that memory is mapped from has what a Full need not write. */
static int rest_of_full(const struct pair *p)
{
    return p->is_full && p->m->source == SNAPSHOT_SOURCE_FILE ? p->m->file_fd : -1;
}

static int find_mapped(struct pair *p, struct error *e)
{
    struct stat st;

    if (!p->memory.exists || p->m->source != SNAPSHOT_SOURCE_FILE)
        return 0;
    if (fstat(p->m->file_fd, &st) < 0)
        return fail_half(e, errno, "open", &p->memory);
    p->is_mapped = is_same_file(&st, &p->memory.old);
    return 0;
}

static int resize(const struct pair *p, off_t bytes, struct error *e)
{
    return ftruncate(p->memory.fd, bytes) < 0 ? fail_half(e, errno, "truncate", &p->memory) : 0;
}

/* The file that has pages which are not written still has all of them: behind its end are none,
 * which looks like a hole. */
static int check_length(const struct pair *p, int fd, struct error *e)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        return fail_os(e, errno, "Cannot write memory file: fstat");
    if ((uint64_t)st.st_size < snapshot_memory_bytes(p->m))
        return fail(e, ERR_HOST,
                    "Cannot write memory file: the file that the rest of it is in was cut off");
    return 0;
}

static int write_memory(const struct pair *p, int base, struct error *e)
{
    const int ret = snapshot_pages_write(p->memory.fd, p->m->mem, p->set, base);

    if (ret < 0)
        return fail_os(e, -ret, "Cannot write memory file");
    if (check_length(p, base >= 0 ? base : p->memory.fd, e) < 0)
        return -1;
    return sync_half(&p->memory, p->f->sync, e);
}

/* Beside the old one, of which a Diff then takes the pages that it does not have. */
static int write_new_file(struct pair *p, struct error *e)
{
    if (resize(p, (off_t)snapshot_memory_bytes(p->m), e) < 0 || put_mark(p, false, e) < 0)
        return -1;
    return write_memory(p, p->merges ? p->memory.old_fd : rest_of_full(p), e);
}

/* What makes an unfinished file known as one is on the disk before it becomes one, and what it then
 * is, before that is said. */
static int write_old_file(struct pair *p, struct error *e)
{
    const bool keeps = p->merges || p->is_mapped;

    if (sync_half(&p->memory, p->f->sync, e) < 0 || take_old_state_away(p, e) < 0)
        return -1;
    if (!keeps && (resize(p, 0, e) < 0 || resize(p, (off_t)snapshot_memory_bytes(p->m), e) < 0))
        return -1;
    if (write_memory(p, keeps ? -1 : rest_of_full(p), e) < 0)
        return -1;
    if (p->has_marks && put_mark(p, false, e) < 0)
        return -1;
    return sync_half(&p->memory, p->f->sync, e);
}

static void share_again(const struct pair *p)
{
    if (p->is_mapped && flock(p->m->file_fd, LOCK_SH | LOCK_NB) < 0)
        log_error("The file that guest memory is mapped from is no longer locked: %s",
                  os_error_text(errno));
}

/* Keeps everybody else's hands, and mappings, off the memory file. The VM's own lock is on the
 * descriptor that it is mapped by. */
static int lock_old_file(const struct pair *p, struct error *e)
{
    int os_errno;

    if (flock(p->is_mapped ? p->m->file_fd : p->memory.fd, LOCK_EX | LOCK_NB) == 0)
        return 0;
    os_errno = errno;
    share_again(p); /* a lock that can't be changed is lost (flock(2)) */
    if (os_errno == EAGAIN)
        return fail(e, ERR_STATE,
                    "Cannot perform flock on the memory backing file: another microVM is mapped "
                    "from it, or is writing it");
    return fail_half(e, os_errno, "flock", &p->memory);
}

/* What has changed belongs on top of what it has changed since. */
static int judge_base(struct pair *p, struct error *e)
{
    const struct snapshot_memory *m = p->m;
    char found[UUID_TEXT], wanted[UUID_TEXT];
    struct snapshot_mark mark;
    const int ret = snapshot_mark_get(p->memory.old_fd, &mark);

    if (ret < 0)
        return fail_half(e, -ret, "fgetxattr", &p->memory);
    if (!mark.is_there) {
        log_warn("The memory backing file has no mark (%s): taken for what the diff is to",
                 SNAPSHOT_MARK);
        p->mark.is_whole = true;
        return 0;
    }
    p->mark.is_whole = mark.is_whole;
    if (mark.is_legible && (uuid_equal(&mark.name, &m->torn) ||
                            (!mark.is_merging && (uuid_equal(&mark.name, &m->base) ||
                                                  uuid_equal(&mark.name, &m->last)))))
        return 0;
    uuid_text(&mark.name, found);
    uuid_text(&m->base, wanted);
    return fail(e, ERR_INVALID,
                "Cannot write memory file: it is of snapshot %s, and the diff is to snapshot %s",
                mark.is_legible ? found : "?", wanted);
}

/* A Diff that goes into pages that are there. False: no marks, but there can be a new file. */
static int merge(struct pair *p, bool *is_done, struct error *e)
{
    struct half *h = &p->memory;
    int ret;

    h->fd = h->old_fd;
    if (judge_base(p, e) < 0 || lock_old_file(p, e) < 0)
        return -1;
    ret = put_mark(p, true, e);
    *is_done = p->has_marks || !h->can_be_replaced;
    if (ret == 0 && *is_done)
        ret = write_old_file(p, e);
    else
        h->fd = -1;
    share_again(p);
    return ret;
}

static int make_memory(struct pair *p, struct error *e)
{
    struct half *h = &p->memory;
    bool is_done = false;
    int ret;

    if (p->merges && merge(p, &is_done, e) < 0)
        return -1;
    if (is_done)
        return 0;
    if (half_begin(h, &p->state, e) < 0)
        return -1;
    if (h->temporary)
        return write_new_file(p, e);
    if (!S_ISREG(h->old.st_mode)) /* a device of memory, say */
        return resize(p, (off_t)snapshot_memory_bytes(p->m), e) < 0
                   ? -1
                   : fail_half(e, EINVAL, "truncate", h);
    if (lock_old_file(p, e) < 0)
        return -1;
    ret = put_mark(p, true, e) < 0 ? -1 : write_old_file(p, e);
    share_again(p);
    return ret;
}

static int rename_half(struct half *h, struct error *e)
{
    if (rename(h->temporary, h->path) < 0)
        return fail_half(e, errno, "rename", h);
    free(h->temporary);
    h->temporary = NULL;
    return 0;
}

/* Memory first: what has the new memory and the old state is refused. */
static int commit(struct pair *p, struct error *e)
{
    if (p->memory.temporary) {
        if (take_old_state_away(p, e) < 0 || rename_half(&p->memory, e) < 0)
            return -1;
        p->m->torn = p->mark.name;
        if (sync_directory(&p->memory, p->f->sync, e) < 0)
            return -1;
    }
    if (!p->state.temporary) {
        if (S_ISREG(p->state.old.st_mode) && ftruncate(p->state.fd, 0) < 0)
            return fail_half(e, errno, "truncate", &p->state);
        return write_state(p, e);
    }
    return rename_half(&p->state, e) < 0 ? -1 : sync_directory(&p->state, p->f->sync, e);
}

static int write_pair(struct pair *p, struct error *e)
{
    int ret;

    if (half_open(&p->state, "snapshot", p->f->state_path, e) < 0 ||
        half_open(&p->memory, "memory", p->f->memory_path, e) < 0 || find_mapped(p, e) < 0)
        return -1;
    ret = p->state.exists ? check_other(p->state.old_fd, &p->memory) : 0;
    if (ret < 0)
        return fail_open(e, ret, &p->memory, &p->state);
    if (half_begin(&p->state, &p->memory, e) < 0)
        return -1;
    if (p->state.temporary && write_state(p, e) < 0)
        return -1;
    p->merges = p->merges && p->memory.exists && S_ISREG(p->memory.old.st_mode) &&
                ((uint64_t)p->memory.old.st_size == snapshot_memory_bytes(p->m) || p->is_mapped);
    return make_memory(p, e) < 0 ? -1 : commit(p, e);
}

int snapshot_files_write(const struct snapshot_files *f, struct snapshot_memory *m,
                         enum snapshot_kind kind, const struct uuid *name, const void *state,
                         size_t bytes, struct error *e)
{
    struct page_set set = { 0 };
    struct pair p = {
        .f = f,
        .state.fd = -1,
        .state.old_fd = -1,
        .memory.fd = -1,
        .memory.old_fd = -1,
        .bytes = state,
        .count = bytes,
        .m = m,
        .set = &set,
        .mark = { .is_whole = kind == SNAPSHOT_FULL || m->is_whole, .name = *name },
        .is_full = kind == SNAPSHOT_FULL,
        .merges = kind == SNAPSHOT_DIFF && !m->is_whole,
    };
    int ret = snapshot_memory_pages(m, kind, &set, e);

    if (!ret)
        ret = write_pair(&p, e);
    if (!ret)
        snapshot_memory_written(m, &set, name);
    half_close(&p.state);
    half_close(&p.memory);
    free(set.words);
    return ret;
}

int snapshot_files_read_state(const char *path, uint8_t **state, size_t *bytes, struct error *e)
{
    autofd int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    autofree uint8_t *text = NULL;
    struct stat st;
    ssize_t n;

    if (fd < 0 || fstat(fd, &st) < 0)
        return fail_os(e, errno, "Failed to open snapshot file");
    if (S_ISDIR(st.st_mode))
        return fail_os(e, EISDIR, "Failed to load snapshot state from file: IO Error");
    if (S_ISREG(st.st_mode) ? st.st_size > SNAPSHOT_STATE_BYTES : S_ISCHR(st.st_mode))
        return fail(e, ERR_INVALID, "Snapshot size exceeds limit of %u bytes",
                    SNAPSHOT_STATE_BYTES);
    if (!S_ISREG(st.st_mode))
        return fail(e, ERR_INVALID,
                    "Failed to load snapshot state from file: it is no regular file");
    text = malloc((size_t)st.st_size + 1);
    BUG_ON(!text);
    n = whole_file_read(fd, (char *)text, (size_t)st.st_size);
    if (n < 0)
        return fail_os(e, (int)-n, "Failed to load snapshot state from file: IO Error");
    if (n < 8)
        return fail(e, ERR_INVALID,
                    "Failed to load snapshot state from file: IO Error: File too short to contain "
                    "CRC");
    *bytes = (size_t)n;
    *state = text;
    text = NULL;
    return 0;
}

static int judge_mark(int fd, const struct uuid *name, struct error *e)
{
    static const char prefix[] = "Failed to load guest memory";
    char found[UUID_TEXT], wanted[UUID_TEXT];
    struct snapshot_mark mark;
    const int ret = snapshot_mark_get(fd, &mark);

    if (ret < 0)
        return fail_os(e, -ret, "%s: its mark (%s)", prefix, SNAPSHOT_MARK);
    if (!mark.is_there) {
        log_warn("The memory file has no mark (%s): taken for that of the state", SNAPSHOT_MARK);
        return 0;
    }
    uuid_text(&mark.name, found);
    uuid_text(name, wanted);
    if (!mark.is_legible)
        return fail(e, ERR_INVALID, "%s: its mark (%s) is not one of ours", prefix, SNAPSHOT_MARK);
    if (mark.is_merging)
        return fail(e, ERR_INVALID,
                    "%s: its file is unfinished: writing snapshot %s into it was cut off", prefix,
                    found);
    if (!uuid_equal(&mark.name, name))
        return fail(e, ERR_INVALID, "%s: its file is of snapshot %s, the state of snapshot %s",
                    prefix, found, wanted);
    if (!mark.is_whole)
        return fail(e, ERR_INVALID,
                    "%s: its file has only what changed since another snapshot, and must be merged "
                    "into that one's first",
                    prefix);
    return 0;
}

int snapshot_files_open_memory(const char *path, const struct uuid *name, uint64_t bytes,
                               struct error *e)
{
    autofd int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    struct stat st;

    if (fd < 0)
        return fail_os(e, errno, "Failed to load guest memory");
    if (flock(fd, LOCK_SH | LOCK_NB) < 0) {
        if (errno == EAGAIN)
            return fail(e, ERR_STATE, "Failed to load guest memory: its file is being written");
        return fail_os(e, errno, "Failed to load guest memory: its file can't be locked");
    }
    if (fstat(fd, &st) < 0)
        return fail_os(e, errno, "Failed to load guest memory: its file can't be looked at");
    if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size < bytes)
        return fail(e, ERR_INVALID,
                    "Failed to restore guest memory: Total sum of memory regions exceeds largest "
                    "possible file offset");
    return judge_mark(fd, name, e) < 0 ? -1 : take_fd(&fd);
}
