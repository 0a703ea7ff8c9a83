#include "vmm/snapshot/files.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "vmm/base/log.h"
#include "vmm/base/whole_file.h"
#include "vmm/snapshot/half.h"
#include "vmm/snapshot/mark.h"
#include "vmm/snapshot/pages.h"
#include "vmm/snapshot/sparse.h"

struct snapshot_pair {
    struct snapshot_files f;
    struct half state, memory;
    const void *bytes; /* of the state; NULL: they are not known yet */
    size_t count;
    struct snapshot_memory *m;
    struct snapshot_mark mark; /* of the memory file to be */
    struct snapshot_chain old; /* memory's old file, as one that has the rest of the pages */
    const struct snapshot_chain *rest; /* what has those that are not written; NULL: nothing */
    int mapped_fd;            /* by which guest memory is mapped from the old file; -1: it isn't */
    bool is_full, merges;     /* merges: into pages that are there */
    bool has_marks;           /* the file system of memory does */
    off_t pushed, pushed_end; /* what is on its way to the disk */
    bool is_locked;           /* the old file, by whatever descriptor */
};

static int write_state(const struct snapshot_pair *p, struct error *e)
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
    return half_sync(&p->state, p->f.sync, e);
}

/* Where there are no marks, old memory with some of the new is refused for its lack of a state. */
static int take_old_state_away(const struct snapshot_pair *p, struct error *e)
{
    const struct half *s = &p->state;

    if (p->has_marks || !s->exists)
        return 0;
    if (s->can_be_replaced ? unlink(s->path) < 0 : ftruncate(s->fd, 0) < 0)
        return half_fail(e, errno, "truncate", s);
    return s->can_be_replaced ? half_sync_directory(s, p->f.sync, e) : half_sync(s, p->f.sync, e);
}

static int put_mark(struct snapshot_pair *p, bool is_merging, struct error *e)
{
    struct snapshot_mark mark = p->mark;
    int ret;

    mark.is_merging = is_merging;
    ret = snapshot_mark_set(p->memory.fd, &mark);
    p->has_marks = ret != -EOPNOTSUPP;
    if (ret == 0 && is_merging)
        p->m->torn = p->mark.name;
    return ret < 0 && p->has_marks ? half_fail(e, -ret, "fsetxattr", &p->memory) : 0;
}

/* The files that memory is mapped from have what a Full need not write. */
static const struct snapshot_chain *rest_of_full(const struct snapshot_pair *p)
{
    return p->is_full && p->m->source == SNAPSHOT_SOURCE_FILE ? &p->m->files : NULL;
}

static int find_mapped(struct snapshot_pair *p, struct error *e)
{
    struct stat st;

    for (unsigned i = 0; p->memory.exists && i < p->m->files.count; i++) {
        if (fstat(p->m->files.fds[i], &st) < 0)
            return half_fail(e, errno, "open", &p->memory);
        if (is_same_file(&st, &p->memory.old))
            p->mapped_fd = p->m->files.fds[i];
    }
    return 0;
}

/* Of a file that others lie upon only its own pages would be right. */
static int check_chain(const struct snapshot_pair *p, struct error *e)
{
    const struct snapshot_chain *files = &p->m->files;

    if (p->mapped_fd < 0 || files->count == 1 ||
        (p->merges && p->mapped_fd == files->fds[files->count - 1]))
        return 0;
    return fail(e, ERR_STATE,
                "Cannot perform open on the memory backing file: guest memory is mapped from it, "
                "and from `layers` upon it");
}

static int resize(const struct snapshot_pair *p, off_t bytes, struct error *e)
{
    return ftruncate(p->memory.fd, bytes) < 0 ? half_fail(e, errno, "truncate", &p->memory) : 0;
}

/* A file that has pages which are not written still has all of them: behind its end are none,
 * which looks like a hole. */
static int check_length(const struct snapshot_pair *p, int fd, struct error *e)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        return fail_os(e, errno, "Cannot write memory file: fstat");
    if ((uint64_t)st.st_size < snapshot_memory_bytes(p->m))
        return fail(e, ERR_HOST,
                    "Cannot write memory file: the file that the rest of it is in was cut off");
    return 0;
}

static int check_lengths(const struct snapshot_pair *p, struct error *e)
{
    int ret = p->rest ? 0 : check_length(p, p->memory.fd, e);

    for (unsigned i = 0; p->rest && i < p->rest->count && !ret; i++)
        ret = check_length(p, p->rest->fds[i], e);
    return ret;
}

/* By its holes a layer is known. */
static int check_holes(const struct snapshot_pair *p, struct error *e)
{
    if (p->mark.is_whole || sparse_has_pages(p->memory.fd))
        return 0;
    return fail(e, ERR_HOST,
                "Cannot write memory file: its file system keeps no holes as small as a page");
}

/* Beside the old one, of which a Diff then takes the pages that it does not have. */
static int begin_new_file(struct snapshot_pair *p, struct error *e)
{
    p->old = (struct snapshot_chain){ .fds = { p->memory.old_fd }, .count = 1 };
    p->rest = p->merges ? &p->old : rest_of_full(p);
    if (check_holes(p, e) < 0 || resize(p, (off_t)snapshot_memory_bytes(p->m), e) < 0)
        return -1;
    return put_mark(p, false, e);
}

/* What makes an unfinished file known as one is on the disk before it becomes one. */
static int begin_old_file(struct snapshot_pair *p, struct error *e)
{
    const bool keeps = p->merges || p->mapped_fd >= 0;

    p->rest = keeps ? NULL : rest_of_full(p);
    if (check_holes(p, e) < 0 || half_sync(&p->memory, p->f.sync, e) < 0 ||
        take_old_state_away(p, e) < 0)
        return -1;
    if (keeps)
        return 0;
    return resize(p, 0, e) < 0 ? -1 : resize(p, (off_t)snapshot_memory_bytes(p->m), e);
}

static void share_again(struct snapshot_pair *p)
{
    if (p->is_locked && p->mapped_fd >= 0 && flock(p->mapped_fd, LOCK_SH | LOCK_NB) < 0)
        log_error("The file that guest memory is mapped from is no longer locked: %s",
                  os_error_text(errno));
    p->is_locked = false;
}

/* Keeps everybody else's hands, and mappings, off the memory file. The VM's own lock is on the
 * descriptor that it is mapped by. */
static int lock_old_file(struct snapshot_pair *p, struct error *e)
{
    int os_errno;

    p->is_locked = true;
    if (flock(p->mapped_fd >= 0 ? p->mapped_fd : p->memory.fd, LOCK_EX | LOCK_NB) == 0)
        return 0;
    os_errno = errno;
    share_again(p); /* a lock that can't be changed is lost (flock(2)) */
    if (os_errno == EAGAIN)
        return fail(e, ERR_STATE,
                    "Cannot perform flock on the memory backing file: another microVM is mapped "
                    "from it, or is writing it");
    return half_fail(e, os_errno, "flock", &p->memory);
}

/* What has changed belongs on top of what it has changed since. */
static int judge_base(struct snapshot_pair *p, struct error *e)
{
    const struct snapshot_memory *m = p->m;
    char found[UUID_TEXT], wanted[UUID_TEXT];
    struct snapshot_mark mark;
    const int ret = snapshot_mark_get(p->memory.old_fd, &mark);

    if (ret < 0)
        return half_fail(e, -ret, "fgetxattr", &p->memory);
    if (!mark.is_there) {
        log_warn("The memory backing file has no mark (%s): taken for what the diff is to",
                 SNAPSHOT_MARK);
        p->mark.is_whole = true;
        return 0;
    }
    p->mark.is_whole = mark.is_whole;
    p->mark.is_based = mark.is_based;
    p->mark.base = mark.base;
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
static int begin_merge(struct snapshot_pair *p, bool *is_begun, struct error *e)
{
    struct half *h = &p->memory;

    h->fd = h->old_fd;
    if (judge_base(p, e) < 0 || check_chain(p, e) < 0 || lock_old_file(p, e) < 0 ||
        put_mark(p, true, e) < 0)
        return -1;
    *is_begun = p->has_marks || !h->can_be_replaced;
    if (*is_begun)
        return begin_old_file(p, e);
    share_again(p);
    h->fd = -1;
    return 0;
}

static int begin_memory(struct snapshot_pair *p, struct error *e)
{
    struct half *h = &p->memory;
    bool is_begun = false;

    p->merges = p->merges && h->exists && S_ISREG(h->old.st_mode) &&
                ((uint64_t)h->old.st_size == snapshot_memory_bytes(p->m) || p->mapped_fd >= 0);
    if (p->merges && begin_merge(p, &is_begun, e) < 0)
        return -1;
    if (is_begun)
        return 0;
    if (half_begin(h, &p->state, e) < 0)
        return -1;
    if (h->temporary)
        return begin_new_file(p, e);
    if (!S_ISREG(h->old.st_mode)) /* a device of memory, say */
        return resize(p, (off_t)snapshot_memory_bytes(p->m), e) < 0
                   ? -1
                   : half_fail(e, EINVAL, "truncate", h);
    if (check_chain(p, e) < 0 || lock_old_file(p, e) < 0 || put_mark(p, true, e) < 0)
        return -1;
    return begin_old_file(p, e);
}

/* What a file that was unfinished then is, is on the disk before it is said. */
static int end_memory(struct snapshot_pair *p, struct error *e)
{
    if (check_lengths(p, e) < 0 || half_sync(&p->memory, p->f.sync, e) < 0)
        return -1;
    if (p->memory.temporary)
        return 0;
    if (p->has_marks && put_mark(p, false, e) < 0)
        return -1;
    return half_sync(&p->memory, p->f.sync, e);
}

static int commit_state(struct snapshot_pair *p, struct error *e)
{
    if (p->state.temporary)
        return half_rename(&p->state, e) < 0 ? -1 : half_sync_directory(&p->state, p->f.sync, e);
    if (S_ISREG(p->state.old.st_mode) && ftruncate(p->state.fd, 0) < 0)
        return half_fail(e, errno, "truncate", &p->state);
    return write_state(p, e);
}

/* Memory first: what has the new memory and the old state is refused. */
static int commit(struct snapshot_pair *p, struct error *e)
{
    if (p->memory.temporary) {
        if (take_old_state_away(p, e) < 0 || half_rename(&p->memory, e) < 0)
            return -1;
        p->m->torn = p->mark.name;
        if (half_sync_directory(&p->memory, p->f.sync, e) < 0)
            return -1;
    }
    if (commit_state(p, e) < 0)
        return -1;
    p->memory.is_made = p->state.is_made = false;
    return 0;
}

static int begin_pair(struct snapshot_pair *p, struct error *e)
{
    if (half_open(&p->state, "snapshot", p->f.state_path, e) < 0 ||
        half_open(&p->memory, "memory", p->f.memory_path, e) < 0 || find_mapped(p, e) < 0 ||
        half_check_other(&p->state, &p->memory, e) < 0 || half_begin(&p->state, &p->memory, e) < 0)
        return -1;
    if (p->bytes && p->state.temporary && write_state(p, e) < 0)
        return -1;
    return begin_memory(p, e);
}

static struct snapshot_pair *open_new_pair(const struct snapshot_files *f,
                                           struct snapshot_memory *m, enum snapshot_kind kind,
                                           const struct uuid *name, const void *state, size_t bytes,
                                           struct error *e)
{
    struct snapshot_pair *p = malloc(sizeof(*p));

    BUG_ON(!p);
    *p = (struct snapshot_pair){
        .f = *f,
        .state.fd = -1,
        .state.old_fd = -1,
        .memory.fd = -1,
        .memory.old_fd = -1,
        .bytes = state,
        .count = bytes,
        .m = m,
        .mapped_fd = -1,
        .mark = { .is_whole = kind == SNAPSHOT_FULL || m->is_whole,
                  .name = *name,
                  .is_based = true,
                  .base = m->base },
        .is_full = kind == SNAPSHOT_FULL,
        .merges = kind == SNAPSHOT_DIFF && !m->is_whole,
    };
    if (begin_pair(p, e) == 0)
        return p;
    snapshot_pair_close(p);
    return NULL;
}

struct snapshot_pair *snapshot_pair_begin(const struct snapshot_files *f, struct snapshot_memory *m,
                                          enum snapshot_kind kind, const struct uuid *name,
                                          struct error *e)
{
    return open_new_pair(f, m, kind, name, NULL, 0, e);
}

int snapshot_pair_write(struct snapshot_pair *p, const struct page_set *set, bool is_first,
                        uint64_t from, uint64_t to, struct error *e)
{
    const int ret =
        snapshot_pages_write(p->memory.fd, p->m->mem, set, is_first ? p->rest : NULL, from, to);

    return ret < 0 ? fail_os(e, -ret, "Cannot write memory file") : 0;
}

int snapshot_pair_push(struct snapshot_pair *p, uint64_t from, uint64_t to, struct error *e)
{
    const off_t bytes = p->pushed_end - p->pushed;

    if (!p->f.sync)
        return 0;
    if (bytes && sync_file_range(p->memory.fd, p->pushed, bytes,
                                 SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                                     SYNC_FILE_RANGE_WAIT_AFTER) < 0)
        return half_fail(e, errno, "sync_all", &p->memory);
    p->pushed = (off_t)(from * GMEM_PAGE_BYTES);
    p->pushed_end = (off_t)(to * GMEM_PAGE_BYTES);
    return sync_file_range(p->memory.fd, p->pushed, p->pushed_end - p->pushed,
                           SYNC_FILE_RANGE_WRITE) < 0
               ? half_fail(e, errno, "sync_all", &p->memory)
               : 0;
}

int snapshot_pair_sync(struct snapshot_pair *p, struct error *e)
{
    return half_sync(&p->memory, p->f.sync, e);
}

int snapshot_pair_put(struct snapshot_pair *p, const struct page_set *set, uint8_t *bytes,
                      struct error *e)
{
    const int ret = snapshot_pages_put(p->memory.fd, set, bytes);

    return ret < 0 ? fail_os(e, -ret, "Cannot write memory file") : 0;
}

int snapshot_pair_end(struct snapshot_pair *p, const void *state, size_t bytes, struct error *e)
{
    p->bytes = state;
    p->count = bytes;
    if (p->state.temporary && write_state(p, e) < 0)
        return -1;
    return end_memory(p, e) < 0 ? -1 : commit(p, e);
}

void snapshot_pair_close(struct snapshot_pair *p)
{
    share_again(p);
    half_close(&p->state);
    half_close(&p->memory);
    free(p);
}

int snapshot_files_write(const struct snapshot_files *f, struct snapshot_memory *m,
                         enum snapshot_kind kind, const struct uuid *name, const void *state,
                         size_t bytes, struct error *e)
{
    struct page_set set = { 0 };
    struct snapshot_pair *p = NULL;
    int ret = snapshot_memory_pages(m, kind, &set, e);

    if (!ret)
        p = open_new_pair(f, m, kind, name, state, bytes, e);
    if (!ret)
        ret = p ? snapshot_pair_write(p, &set, true, 0, set.pages, e) : -1;
    if (!ret)
        ret = end_memory(p, e) < 0 ? -1 : commit(p, e);
    if (!ret)
        snapshot_memory_written(m, &set, name);
    if (p)
        snapshot_pair_close(p);
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
