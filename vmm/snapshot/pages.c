#include "vmm/snapshot/pages.h"

#include "vmm/snapshot/sparse.h"

/* Where a page lies, and how many follow it in the same region. */
static uint8_t *host_of_page(const struct guest_mem *mem, uint64_t page, uint64_t *behind)
{
    const struct gmem_region *r = mem->regions;

    while (page >= r->bytes / GMEM_PAGE_BYTES)
        page -= r++->bytes / GMEM_PAGE_BYTES;
    *behind = r->bytes / GMEM_PAGE_BYTES - page;
    return r->host + page * GMEM_PAGE_BYTES;
}

static int write_pages(int fd, const struct guest_mem *mem, uint64_t page, uint64_t count)
{
    int ret = 0;

    while (count && !ret) {
        uint64_t n;
        uint8_t *host = host_of_page(mem, page, &n);

        if (n > count)
            n = count;
        ret = sparse_write(fd, host, n * GMEM_PAGE_BYTES, page * GMEM_PAGE_BYTES);
        page += n;
        count -= n;
    }
    return ret;
}

static int copy_rest(const struct snapshot_chain *rest, int to, uint64_t page, uint64_t end)
{
    int ret = 0;

    for (unsigned i = 0; rest && i < rest->count && !ret; i++)
        ret = sparse_copy(rest->fds[i], to, (off_t)(page * GMEM_PAGE_BYTES),
                          (off_t)(end * GMEM_PAGE_BYTES));
    return ret;
}

/* The first page from `page` on that is in the set, or is not; `end` if none before is. */
static uint64_t next_page(const struct page_set *set, uint64_t page, uint64_t end, bool is_in)
{
    while (page < end) {
        const uint64_t word = is_in ? set->words[page / 64] : ~set->words[page / 64];
        const uint64_t rest = word >> page % 64;

        if (rest) {
            page += (unsigned)__builtin_ctzll(rest);
            return page < end ? page : end;
        }
        page = (page / 64 + 1) * 64;
    }
    return end;
}

int snapshot_pages_write(int fd, const struct guest_mem *mem, const struct page_set *set,
                         const struct snapshot_chain *rest, uint64_t from, uint64_t to)
{
    int ret = 0;

    while (from < to && !ret) {
        const uint64_t first = next_page(set, from, to, true);
        const uint64_t end = next_page(set, first, to, false);

        ret = copy_rest(rest, fd, from, first);
        if (!ret)
            ret = write_pages(fd, mem, first, end - first);
        from = end;
    }
    return ret;
}
