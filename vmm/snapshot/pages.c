#include "vmm/snapshot/pages.h"

#include <errno.h>
#include <sys/uio.h>

/* What is copied at once where the kernel can't copy between two files. */
#define COPY_BYTES (UINT64_C(256) << 10)

/* Where a page lies, and how many follow it in the same region. */
static uint8_t *host_of_page(const struct guest_mem *mem, uint64_t page, uint64_t *behind)
{
    const struct gmem_region *r = mem->regions;

    while (page >= r->bytes / GMEM_PAGE_BYTES)
        page -= r++->bytes / GMEM_PAGE_BYTES;
    *behind = r->bytes / GMEM_PAGE_BYTES - page;
    return r->host + page * GMEM_PAGE_BYTES;
}

// NOLINTNEXTLINE(readability-non-const-parameter): an iovec has none that is const
static int write_run(int fd, uint8_t *from, uint64_t bytes, uint64_t offset)
{
    while (bytes) {
        const struct iovec v = { from, bytes };
        const ssize_t done = pwritev(fd, &v, 1, (off_t)offset);

        if (done == 0 || (done < 0 && errno != EINTR))
            return done ? -errno : -EIO;
        if (done > 0) {
            from += done;
            offset += (uint64_t)done;
            bytes -= (uint64_t)done;
        }
    }
    return 0;
}

static int write_pages(int fd, const struct guest_mem *mem, uint64_t page, uint64_t count)
{
    int ret = 0;

    while (count && !ret) {
        uint64_t n;
        uint8_t *host = host_of_page(mem, page, &n);

        if (n > count)
            n = count;
        ret = write_run(fd, host, n * GMEM_PAGE_BYTES, page * GMEM_PAGE_BYTES);
        page += n;
        count -= n;
    }
    return ret;
}

/* By hand: between file systems, or where one of them can't. */
static int copy_by_hand(int from, int to, off_t offset, uint64_t bytes)
{
    autofree uint8_t *buffer = malloc(COPY_BYTES);

    if (!buffer)
        return -ENOMEM;
    while (bytes) {
        const struct iovec v = { buffer, bytes < COPY_BYTES ? bytes : COPY_BYTES };
        const ssize_t got = preadv(from, &v, 1, offset);
        int ret;

        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 ? -errno : -EIO; /* it was made shorter */
        ret = write_run(to, buffer, (uint64_t)got, (uint64_t)offset);
        if (ret < 0)
            return ret;
        offset += got;
        bytes -= (uint64_t)got;
    }
    return 0;
}

static int copy_data(int from, int to, off_t offset, uint64_t bytes)
{
    while (bytes) {
        off_t in = offset, out = offset;
        const ssize_t done = copy_file_range(from, &in, to, &out, bytes, 0);

        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return copy_by_hand(from, to, offset, bytes);
        offset += done;
        bytes -= (uint64_t)done;
    }
    return 0;
}

int snapshot_pages_copy(int from, int to, off_t offset, off_t end)
{
    while (offset < end) {
        const off_t data = lseek(from, offset, SEEK_DATA);
        off_t hole;
        int ret;

        if (data < 0 && errno == ENXIO)
            return 0;
        if (data < 0)
            return -errno;
        if (data >= end)
            return 0;
        hole = lseek(from, data, SEEK_HOLE);
        if (hole < 0 || hole > end)
            hole = end;
        ret = copy_data(from, to, data, (uint64_t)(hole - data));
        if (ret < 0)
            return ret;
        offset = hole;
    }
    return 0;
}

/* The first page from `page` on that is in the set, or is not; the number of pages if none is. */
static uint64_t next_page(const struct page_set *set, uint64_t page, bool is_in)
{
    while (page < set->pages) {
        const uint64_t word = is_in ? set->words[page / 64] : ~set->words[page / 64];
        const uint64_t rest = word >> page % 64;

        if (rest)
            return page + (unsigned)__builtin_ctzll(rest);
        page = (page / 64 + 1) * 64;
    }
    return set->pages;
}

int snapshot_pages_write(int fd, const struct guest_mem *mem, const struct page_set *set, int base)
{
    uint64_t from, to = 0;
    int ret = 0;

    while (to < set->pages && !ret) {
        const uint64_t gap = to;

        from = next_page(set, to, true);
        to = next_page(set, from, false);
        if (base >= 0)
            ret = snapshot_pages_copy(base, fd, (off_t)(gap * GMEM_PAGE_BYTES),
                                      (off_t)(from * GMEM_PAGE_BYTES));
        if (!ret)
            ret = write_pages(fd, mem, from, to - from);
    }
    return ret;
}
