#include "vmm/snapshot/pages.h"

#include <string.h>

#include "vmm/base/whole_file.h"
#include "vmm/snapshot/sparse.h"

static int write_pages(int fd, const struct guest_mem *mem, uint64_t page, uint64_t count)
{
    int ret = 0;

    while (count && !ret) {
        uint64_t n;
        uint8_t *host = gmem_page_host_(mem, page, &n);

        if (n > count)
            n = count;
        ret = whole_file_write_at(fd, host, n * GMEM_PAGE_BYTES, page * GMEM_PAGE_BYTES);
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

void snapshot_pages_take(const struct guest_mem *mem, const struct page_set *set, uint8_t *bytes)
{
    for (uint64_t page = 0; (page = next_page(set, page, set->pages, true)) < set->pages; page++) {
        uint64_t behind;

        memcpy(bytes, gmem_page_host_(mem, page, &behind), GMEM_PAGE_BYTES);
        bytes += GMEM_PAGE_BYTES;
    }
}

int snapshot_pages_put(int fd, const struct page_set *set, uint8_t *bytes)
{
    uint64_t page = 0;
    int ret = 0;

    while ((page = next_page(set, page, set->pages, true)) < set->pages && !ret) {
        const uint64_t end = next_page(set, page, set->pages, false);
        const uint64_t n = (end - page) * GMEM_PAGE_BYTES;

        ret = whole_file_write_at(fd, bytes, n, page * GMEM_PAGE_BYTES);
        bytes += n;
        page = end;
    }
    return ret;
}
