#include "vmm/snapshot/prefetch.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mman.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "vmm/base/log.h"
#include "vmm/snapshot/working_set.h"

/* How many pages are asked about, whether their file is cached. */
#define SAMPLES 32u

struct prefetch {
    struct guest_mem mem; /* where it was laid out; who owns it may move */
    struct working_set set;
    const char *source; /* in the log */
};

/* Whether the page cache has the files' pages, by samples. A file system that can't tell has no
 * disk that is worth the question. */
static bool is_cached(const struct snapshot_chain *files, const struct working_set *set)
{
    const uint32_t step = set->count / SAMPLES + 1;

    for (uint32_t i = 0; i < set->count; i += step) {
        const off_t at = (off_t)(set->runs[i].page * GMEM_PAGE_BYTES);
        char byte;
        const struct iovec v = { &byte, sizeof(byte) };

        if (preadv2(snapshot_chain_file(files, at), &v, 1, at, RWF_NOWAIT) < 0 && errno == EAGAIN)
            return false;
    }
    return true;
}

/* Lays a run's contents over its pages. 0 or -errno. */
static int map_contents(const struct guest_mem *m, int fd, uint64_t page, uint64_t count,
                        uint64_t offset)
{
    for (uint64_t n; count; page += n, count -= n, offset += n * GMEM_PAGE_BYTES) {
        uint8_t *host = gmem_page_host_(m, page, &n);

        n = n < count ? n : count;
        if (mmap(host, n * GMEM_PAGE_BYTES, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, fd, (off_t)offset) == MAP_FAILED)
            return -errno;
    }
    return 0;
}

/* All of them; runs that touch each other are one mapping. What can't be is left as it is. */
static void map_all_contents(const struct guest_mem *m, const struct working_set *set, int fd)
{
    uint64_t offset = set->contents, count;
    int ret = 0;

    for (uint32_t i = 0; i < set->count && ret == 0; offset += count * GMEM_PAGE_BYTES) {
        const uint64_t page = set->runs[i].page;

        for (count = 0; i < set->count && set->runs[i].page == page + count; i++)
            count += set->runs[i].count;
        ret = map_contents(m, fd, page, count, offset);
    }
    if (ret < 0)
        log_warn("Not all of the working set is mapped: %s", os_error_text(-ret));
    for (unsigned i = 0; i < m->region_count; i++)
        if (madvise(m->regions[i].host, m->regions[i].bytes, MADV_DONTDUMP) < 0)
            log_warn("Guest memory may come into a core dump: %s", os_error_text(errno));
}

static int read_set(struct prefetch *p, int fd, const struct uuid *name, struct error *e)
{
    if (fd < 0)
        return fail_os(e, errno, "cannot be opened");
    if (p->mem.hugetlb)
        return fail(e, ERR_INVALID, "guest memory has huge pages of 2 MiB");
    return working_set_read(&p->set, fd, name, gmem_pages(&p->mem), e);
}

struct prefetch *prefetch_open(const struct guest_mem *mem, const struct snapshot_chain *files,
                               const char *path, const struct uuid *name)
{
    autofd int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    struct prefetch *p = calloc(1, sizeof(*p));
    struct error e;

    BUG_ON(!p);
    *p = (struct prefetch){ .mem = *mem, .source = "the page cache" };
    if (read_set(p, fd, name, &e) < 0) {
        log_warn("The working set %s is not used: %s", path, e.msg);
        prefetch_close(p);
        return NULL;
    }
    if (!is_cached(files, &p->set)) {
        posix_fadvise(fd, (off_t)p->set.contents, 0, POSIX_FADV_WILLNEED);
        map_all_contents(mem, &p->set, fd);
        p->source = "its file";
    }
    return p;
}

void prefetch_close(struct prefetch *p)
{
    if (p)
        working_set_fini(&p->set);
    free(p);
}

/* 0 or -errno. */
static int populate(const struct guest_mem *m, const struct working_set_run *r)
{
    for (uint64_t done = 0, n; done < r->count; done += n) {
        uint8_t *host = gmem_page_host_(m, r->page + done, &n);

        n = n < r->count - done ? n : r->count - done;
        if (madvise(host, n * GMEM_PAGE_BYTES,
                    r->is_written ? MADV_POPULATE_WRITE : MADV_POPULATE_READ) < 0)
            return -errno;
    }
    return 0;
}

/* What is written comes first: to read beside it may map it, and then it would be mapped twice. */
static int populate_all(const struct prefetch *p)
{
    int ret = 0;

    for (int is_written = 1; is_written >= 0; is_written--)
        for (uint32_t i = 0; i < p->set.count && ret == 0; i++)
            if (p->set.runs[i].is_written == is_written)
                ret = populate(&p->mem, &p->set.runs[i]);
    return ret;
}

void prefetch_finish(struct prefetch *p)
{
    int ret;

    if (!p)
        return;
    ret = populate_all(p);
    if (ret < 0)
        log_warn("Not all of the working set is prefetched: %s", os_error_text(-ret));
    else
        log_info("Prefetched the %llu pages of the working set from %s",
                 (unsigned long long)working_set_pages(&p->set), p->source);
    prefetch_close(p);
}
