#include "vmm/snapshot/chain.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "vmm/base/log.h"
#include "vmm/snapshot/mark.h"
#include "vmm/snapshot/sparse.h"

/* Of the 65530 mappings that a process may have (vm.max_map_count); one that is laid into another
 * makes two more. The second half of them is for pieces that are not small. */
#define MAPPINGS_MAX 16384u
#define SMALL_PAGES  16u

static const char failed[] = "Failed to load guest memory";

static int open_file(const char *path, uint64_t bytes, struct error *e)
{
    autofd int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    struct stat st;

    if (fd < 0)
        return fail_os(e, errno, "%s", failed);
    if (flock(fd, LOCK_SH | LOCK_NB) < 0) {
        if (errno == EAGAIN)
            return fail(e, ERR_STATE, "%s: its file is being written", failed);
        return fail_os(e, errno, "%s: its file can't be locked", failed);
    }
    if (fstat(fd, &st) < 0)
        return fail_os(e, errno, "%s: its file can't be looked at", failed);
    if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size < bytes)
        return fail(e, ERR_INVALID,
                    "Failed to restore guest memory: Total sum of memory regions exceeds largest "
                    "possible file offset");
    return take_fd(&fd);
}

static int fail_name(struct error *e, const struct uuid *found, const char *other,
                     const struct uuid *wanted)
{
    char texts[2][UUID_TEXT];

    uuid_text(found, texts[0]);
    uuid_text(wanted, texts[1]);
    return fail(e, ERR_INVALID, "%s: its file is %s snapshot %s, %s of snapshot %s", failed,
                other[0] == 't' ? "of" : "a layer upon", texts[0], other, texts[1]);
}

/* By itself. */
static int judge_mark(const struct snapshot_mark *mark, bool is_layer, struct error *e)
{
    char found[UUID_TEXT];

    uuid_text(&mark->name, found);
    if (!mark->is_legible)
        return fail(e, ERR_INVALID, "%s: its mark (%s) is not one of ours", failed, SNAPSHOT_MARK);
    if (mark->is_merging)
        return fail(e, ERR_INVALID,
                    "%s: its file is unfinished: writing snapshot %s into it was cut off", failed,
                    found);
    if (!is_layer && !mark->is_whole)
        return fail(e, ERR_INVALID,
                    "%s: its file has only what changed since another snapshot, and is one of the "
                    "`layers` upon that one's, or must be merged into it first",
                    failed);
    if (is_layer && mark->is_whole)
        return fail(e, ERR_INVALID, "%s: its file is no layer, but has all of memory", failed);
    return 0;
}

/* below: the mark of the file below; NULL: there is none. name: that it has to have; NULL: any. */
static int judge_file(const struct snapshot_mark *mark, const struct snapshot_mark *below,
                      const struct uuid *name, struct error *e)
{
    if (!mark->is_there) {
        log_warn("The memory file has no mark (%s): taken for that of the state", SNAPSHOT_MARK);
        return 0;
    }
    if (mark->is_legible && !mark->is_merging && name && !uuid_equal(&mark->name, name))
        return fail_name(e, &mark->name, "the state", name);
    if (judge_mark(mark, below != NULL, e) < 0)
        return -1;
    if (below && below->is_there && mark->is_based && !uuid_equal(&mark->base, &below->name))
        return fail_name(e, &mark->base, "and below it is that", &below->name);
    return 0;
}

static int open_all(struct snapshot_chain *c, const char *const *paths, unsigned count,
                    const struct uuid *name, uint64_t bytes, struct error *e)
{
    struct snapshot_mark marks[1 + SNAPSHOT_LAYERS_MAX];

    for (unsigned i = 0; i < count; i++) {
        int ret = c->fds[i] = open_file(paths[i], bytes, e);

        if (ret >= 0) {
            c->count++;
            ret = snapshot_mark_get(c->fds[i], &marks[i]);
            if (ret < 0)
                ret = fail_os(e, -ret, "%s: its mark (%s)", failed, SNAPSHOT_MARK);
        }
        if (ret >= 0 && i > 0 && !sparse_has_pages(c->fds[i]))
            ret =
                fail(e, ERR_HOST, "%s: its file system keeps no holes as small as a page", failed);
        if (ret >= 0)
            ret = judge_file(&marks[i], i ? &marks[i - 1] : NULL, i == count - 1 ? name : NULL, e);
        if (ret < 0)
            return count > 1 ? fail_within(e, paths[i]) : -1;
    }
    return 0;
}

int snapshot_chain_open(struct snapshot_chain *c, const char *const *paths, unsigned count,
                        const struct uuid *name, uint64_t bytes, struct error *e)
{
    *c = (struct snapshot_chain){ 0 };
    if (open_all(c, paths, count, name, bytes, e) == 0)
        return 0;
    snapshot_chain_close(c);
    return -1;
}

int snapshot_chain_file(const struct snapshot_chain *c, off_t offset)
{
    unsigned i = c->count - 1;

    while (i > 0 && lseek(c->fds[i], offset, SEEK_DATA) != offset)
        i--;
    return c->fds[i];
}

void snapshot_chain_close(struct snapshot_chain *c)
{
    for (unsigned i = 0; i < c->count; i++)
        close_fdp(&c->fds[i]);
    c->count = 0;
}

/* Puts a layer over what there is. */
static int lay(int fd, struct guest_mem *mem, unsigned *mappings, struct error *e)
{
    const off_t bytes = (off_t)(gmem_pages(mem) * GMEM_PAGE_BYTES);
    off_t from = 0, to = 0;
    int ret;

    while ((ret = sparse_find_data(fd, &from, &to, bytes)) > 0) {
        const uint64_t first = (uint64_t)from / GMEM_PAGE_BYTES;
        const uint64_t last = ((uint64_t)to - 1) / GMEM_PAGE_BYTES;
        const bool is_small = last - first < SMALL_PAGES;
        const bool maps = *mappings < (is_small ? MAPPINGS_MAX / 2 : MAPPINGS_MAX);

        *mappings += maps;
        if (gmem_lay_pages(mem, first, last - first + 1, fd, maps, e) < 0)
            return -1;
        from = to;
    }
    return ret < 0 ? fail_os(e, -ret, "cannot tell what a layer of guest memory has") : 0;
}

int snapshot_chain_map(const struct snapshot_chain *c, struct guest_mem *mem, uint64_t mem_size_mib,
                       struct error *e)
{
    unsigned mappings = 0;

    if (gmem_init_file(mem, mem_size_mib, c->fds[0], 0, e) < 0)
        return -1;
    for (unsigned i = 1; i < c->count; i++) {
        if (lay(c->fds[i], mem, &mappings, e) < 0) {
            gmem_fini(mem);
            return -1;
        }
    }
    return 0;
}
