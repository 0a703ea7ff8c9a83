#include "vmm/snapshot/working_set.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "vmm/base/crc32c.h"
#include "vmm/base/whole_file.h"
#include "vmm/snapshot/format.h"

#define MAGIC        "MAYFLYW" /* and its NUL */
#define FORMAT       1u
#define HEADER_BYTES 64u
#define RUN_BYTES    16u

struct header {
    char magic[8];
    uint16_t format;
    uint8_t zero[6];
    struct uuid name;
    uint64_t pages;
    uint32_t runs;
    uint8_t zeroes[12];
    uint32_t runs_crc;
};

void working_set_fini(struct working_set *w)
{
    free(w->runs);
    *w = (struct working_set){ 0 };
}

uint64_t working_set_pages(const struct working_set *w)
{
    uint64_t pages = 0;

    for (uint32_t i = 0; i < w->count; i++)
        pages += w->runs[i].count;
    return pages;
}

static uint64_t contents_of(uint32_t runs)
{
    const uint64_t end = HEADER_BYTES + (uint64_t)runs * RUN_BYTES;

    return (end + GMEM_PAGE_BYTES - 1) & ~(uint64_t)(GMEM_PAGE_BYTES - 1);
}

/* Adds a page to the last run, with those between, or begins another: a page that is written has
 * none in common with one that is not, unless there is a gap to be closed. False: too many runs. */
static bool add_page(struct working_set *w, uint64_t page, bool is_written, uint64_t gap)
{
    struct working_set_run *last = w->count ? &w->runs[w->count - 1] : NULL;

    if (last && page - last->page - last->count <= gap && page - last->page < UINT32_MAX &&
        (gap || last->is_written == is_written)) {
        last->count = (uint32_t)(page - last->page) + 1;
        last->is_written &= is_written;
        return true;
    }
    if (w->count == WORKING_SET_RUNS_MAX)
        return false;
    w->runs[w->count++] = (struct working_set_run){ page, 1, is_written };
    return true;
}

static bool list_pages(struct working_set *w, const struct page_set *touched,
                       const struct page_set *written, uint64_t gap)
{
    w->count = 0;
    for (uint64_t page = 0; page < touched->pages; page++) {
        if (page % 64 == 0 && touched->words[page / 64] == 0)
            page += 63;
        else if (page_set_has(touched, page) &&
                 !add_page(w, page, page_set_has(written, page), gap))
            return false;
    }
    return true;
}

int working_set_make(struct working_set *w, const struct page_set *touched,
                     const struct page_set *written, struct error *e)
{
    uint64_t gap = 0;

    *w = (struct working_set){ .runs = calloc(WORKING_SET_RUNS_MAX, sizeof(*w->runs)) };
    if (!w->runs)
        return fail_os(e, ENOMEM, "the list of its pages");
    while (!list_pages(w, touched, written, gap))
        gap = 2 * gap + 1;
    w->contents = contents_of(w->count);
    return w->count ? 0 : fail(e, ERR_STATE, "the guest has touched no page");
}

/* Both ways. */
static void code_set_header(struct snapshot_coder *c, struct header *h)
{
    snapshot_bytes(c, h->magic, sizeof(h->magic));
    snapshot_u16(c, &h->format);
    snapshot_bytes(c, h->zero, sizeof(h->zero));
    snapshot_bytes(c, &h->name, sizeof(h->name));
    snapshot_u64(c, &h->pages);
    snapshot_u32(c, &h->runs);
    snapshot_bytes(c, h->zeroes, sizeof(h->zeroes));
    snapshot_u32(c, &h->runs_crc);
}

static void code_runs(struct snapshot_coder *c, struct working_set *w)
{
    for (uint32_t i = 0; i < w->count; i++) {
        struct working_set_run *r = &w->runs[i];
        uint32_t flags = r->is_written;

        snapshot_u64(c, &r->page);
        snapshot_u32(c, &r->count);
        snapshot_u32(c, &flags);
        if (flags > 1)
            snapshot_refuse(c, "a run of pages has flags that nobody knows");
        r->is_written = flags == 1;
    }
}

static int write_list(struct working_set *w, int fd, const struct uuid *name, uint64_t pages)
{
    struct header h = { .magic = MAGIC, .format = FORMAT, .name = *name, .pages = pages };
    struct snapshot_coder list = { .bytes = NULL }, header = { .bytes = NULL };
    uint32_t crc;
    int ret;

    code_runs(&list, w);
    h.runs = w->count;
    h.runs_crc = crc32c(list.bytes, list.at);
    code_set_header(&header, &h);
    crc = crc32c(header.bytes, header.at);
    snapshot_u32(&header, &crc);
    BUG_ON(header.at != HEADER_BYTES);
    ret = whole_file_write_at(fd, header.bytes, header.at, 0);
    if (ret == 0)
        ret = whole_file_write_at(fd, list.bytes, list.at, HEADER_BYTES);
    free(list.bytes);
    free(header.bytes);
    return ret;
}

int working_set_write(const struct working_set *w, int fd, const struct uuid *name,
                      const struct guest_mem *memory, struct error *e)
{
    struct working_set list = *w;
    uint64_t at = w->contents;
    int ret = write_list(&list, fd, name, gmem_pages(memory));

    for (uint32_t i = 0; i < w->count && ret == 0; i++) {
        const struct working_set_run *r = &w->runs[i];

        for (uint64_t done = 0, n; done < r->count && ret == 0; done += n) {
            uint8_t *host = gmem_page_host_(memory, r->page + done, &n);

            n = n < r->count - done ? n : r->count - done;
            ret = whole_file_write_at(fd, host, n * GMEM_PAGE_BYTES, at);
            at += n * GMEM_PAGE_BYTES;
        }
    }
    return ret < 0 ? fail_os(e, -ret, "cannot be written") : 0;
}

static int read_exactly(int fd, void *to, size_t bytes, off_t offset, struct error *e)
{
    const ssize_t got = pread(fd, to, bytes, offset);

    if (got < 0)
        return fail_os(e, errno, "cannot be read");
    return (size_t)got < bytes ? fail(e, ERR_INVALID, "it ends too early") : 0;
}

bool working_set_is_in(int fd)
{
    char magic[sizeof(MAGIC)];

    return pread(fd, magic, sizeof(magic), 0) == sizeof(magic) &&
           memcmp(magic, MAGIC, sizeof(magic)) == 0;
}

static int read_header(struct header *h, int fd, struct error *e)
{
    uint8_t bytes[HEADER_BYTES];
    struct snapshot_coder c = { .is_reading = true, .bytes = bytes, .end = sizeof(bytes) };
    uint32_t crc;

    if (read_exactly(fd, bytes, sizeof(bytes), 0, e) < 0)
        return -1;
    code_set_header(&c, h);
    snapshot_u32(&c, &crc);
    if (memcmp(h->magic, MAGIC, sizeof(h->magic)) != 0)
        return fail(e, ERR_INVALID, "it is none");
    if (h->format != FORMAT)
        return fail(e, ERR_INVALID, "its format is %u, not %u", h->format, FORMAT);
    if (crc != crc32c(bytes, HEADER_BYTES - sizeof(crc)))
        return fail(e, ERR_INVALID, "its header has another checksum");
    if (h->runs == 0 || h->runs > WORKING_SET_RUNS_MAX)
        return fail(e, ERR_INVALID, "it has %u runs of pages, not 1 to %u", h->runs,
                    WORKING_SET_RUNS_MAX);
    return 0;
}

static int judge_set_header(const struct header *h, const struct uuid *name, uint64_t pages,
                            struct error *e)
{
    static const uint8_t none[sizeof(h->zeroes)];
    char found[UUID_TEXT], wanted[UUID_TEXT];

    uuid_text(&h->name, found);
    uuid_text(name, wanted);
    if (!uuid_equal(&h->name, name))
        return fail(e, ERR_INVALID, "it is of snapshot %s, not %s", found, wanted);
    if (h->pages != pages)
        return fail(e, ERR_INVALID, "it is of a memory of %llu pages, not %llu",
                    (unsigned long long)h->pages, (unsigned long long)pages);
    if (memcmp(h->zero, none, sizeof(h->zero)) != 0 ||
        memcmp(h->zeroes, none, sizeof(h->zeroes)) != 0)
        return fail(e, ERR_INVALID, "what must be zero is not");
    return 0;
}

static int read_runs(struct working_set *w, int fd, uint32_t expected_crc, struct error *e)
{
    const size_t bytes = (size_t)w->count * RUN_BYTES;
    // NOLINTNEXTLINE(clang-analyzer-optin.portability.UnixAPI): there is one run at least
    autofree uint8_t *list = malloc(bytes);
    struct snapshot_coder c = { .is_reading = true, .bytes = list, .end = bytes };

    w->runs = calloc(w->count, sizeof(*w->runs));
    if (!list || !w->runs)
        // NOLINTNEXTLINE(clang-analyzer-unix.Malloc): autofree
        return fail_os(e, ENOMEM, "the list of its pages");
    if (read_exactly(fd, list, bytes, HEADER_BYTES, e) < 0)
        return -1;
    if (crc32c(list, bytes) != expected_crc)
        return fail(e, ERR_INVALID, "its runs have another checksum");
    code_runs(&c, w);
    return c.trouble ? fail(e, ERR_INVALID, "%s", c.trouble) : 0;
}

static int judge_runs(const struct working_set *w, int fd, uint64_t pages, struct error *e)
{
    uint64_t next = 0, bytes;
    struct stat st;

    for (uint32_t i = 0; i < w->count; i++) {
        const struct working_set_run *r = &w->runs[i];

        if (r->count == 0 || r->page < next || r->page >= pages || r->count > pages - r->page)
            return fail(e, ERR_INVALID, "%u pages from page %llu on can't be run %u of it",
                        r->count, (unsigned long long)r->page, i);
        next = r->page + r->count;
    }
    bytes = w->contents + working_set_pages(w) * GMEM_PAGE_BYTES;
    if (fstat(fd, &st) < 0)
        return fail_os(e, errno, "cannot be looked at");
    if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != bytes)
        return fail(e, ERR_INVALID, "it has %lld bytes, not %llu", (long long)st.st_size,
                    (unsigned long long)bytes);
    return 0;
}

int working_set_read(struct working_set *w, int fd, const struct uuid *name, uint64_t pages,
                     struct error *e)
{
    struct header h;

    *w = (struct working_set){ 0 };
    if (read_header(&h, fd, e) < 0 || judge_set_header(&h, name, pages, e) < 0)
        return -1;
    w->count = h.runs;
    w->contents = contents_of(w->count);
    if (read_runs(w, fd, h.runs_crc, e) == 0 && judge_runs(w, fd, pages, e) == 0)
        return 0;
    working_set_fini(w);
    return -1;
}
