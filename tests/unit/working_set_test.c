/* The record of a working set: what is written is read again, and what is wrong is refused. */
#include "vmm/snapshot/working_set.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmm/base/crc32c.h"

#define MIB   1u
#define PAGES 256u

static struct guest_mem mem;
static struct page_set touched, written;
static struct working_set set, found;
static struct error e;
static int fd;
static const struct uuid name = { { 1, 2, 3 } };

static void add(struct page_set *s, uint64_t page)
{
    s->words[page / 64] |= UINT64_C(1) << page % 64;
}

static void size_sets(uint64_t pages)
{
    touched = (struct page_set){ calloc(pages / 64, 8), pages };
    written = (struct page_set){ calloc(pages / 64, 8), pages };
}

static void set_up(void)
{
    cr_assert_eq(gmem_init(&mem, MIB, HUGE_PAGES_NONE, &e), 0);
    for (uint64_t i = 0; i < PAGES; i++)
        cr_assert_eq(gmem_put(&mem, gpa(i * GMEM_PAGE_BYTES), &i), 0);
    size_sets(PAGES);
    fd = memfd_create("record", 0);
    cr_assert(fd >= 0);
}

static void tear_down(void)
{
    close(fd);
    working_set_fini(&set);
    working_set_fini(&found);
    free(touched.words);
    free(written.words);
    gmem_fini(&mem);
}

TestSuite(working_set, .init = set_up, .fini = tear_down);

/* Pages 3 to 5, of which 4 and 5 were written; 100; and the last. */
static void make_record(void)
{
    static const uint64_t pages[] = { 3, 4, 5, 100, 255 };

    for (unsigned i = 0; i < 5; i++)
        add(&touched, pages[i]);
    add(&written, 4);
    add(&written, 5);
    add(&written, 7); /* by nobody who touched it: not in the set */
    cr_assert_eq(working_set_make(&set, &touched, &written, &e), 0);
    cr_assert_eq(working_set_write(&set, fd, &name, &mem, &e), 0, "%s", e.msg);
}

Test(working_set, is_read_as_it_was_written)
{
    static const struct working_set_run runs[] = {
        { 3, 1, false }, { 4, 2, true }, { 100, 1, false }, { 255, 1, false }
    };
    uint64_t page;

    make_record();
    cr_assert_eq(working_set_read(&found, fd, &name, PAGES, &e), 0, "%s", e.msg);
    cr_assert_eq(found.count, 4);
    for (unsigned i = 0; i < 4; i++)
        cr_assert(found.runs[i].page == runs[i].page && found.runs[i].count == runs[i].count &&
                  found.runs[i].is_written == runs[i].is_written);
    cr_assert_eq(working_set_pages(&found), 5);
    cr_assert_eq(found.contents, 4096);
    for (unsigned i = 0, at = 4096; i < 4; i++)
        for (unsigned n = 0; n < runs[i].count; n++, at += GMEM_PAGE_BYTES) {
            cr_assert_eq(pread(fd, &page, sizeof(page), at), sizeof(page));
            cr_assert_eq(page, runs[i].page + n);
        }
}

Test(working_set, is_of_one_page_at_least)
{
    cr_assert_eq(working_set_make(&set, &touched, &written, &e), -1);
    cr_assert_str_eq(e.msg, "the guest has touched no page");
}

/* Each second page of more than there may be runs: those between come in, too, as read. */
Test(working_set, has_no_more_runs_than_there_may_be)
{
    const uint64_t pages = 4 * WORKING_SET_RUNS_MAX;

    free(touched.words);
    free(written.words);
    size_sets(pages);
    for (uint64_t i = 1; i < pages; i += 2) {
        add(&touched, i);
        if (i % 4 == 1)
            add(&written, i);
    }
    cr_assert_eq(working_set_make(&set, &touched, &written, &e), 0);
    cr_assert_eq(set.count, 1);
    cr_assert_eq(set.runs[0].page, 1);
    cr_assert_eq(working_set_pages(&set), pages - 1);
    cr_assert(!set.runs[0].is_written);
}

static void refused(const char *why)
{
    cr_assert_eq(working_set_read(&found, fd, &name, PAGES, &e), -1);
    cr_assert_str_eq(e.msg, why);
    cr_assert_null(found.runs);
}

Test(working_set, of_another_snapshot_or_memory_is_refused)
{
    const struct uuid other = { { 4 } };

    make_record();
    cr_assert_eq(working_set_read(&found, fd, &other, PAGES, &e), -1);
    cr_assert_str_eq(e.msg, "it is of snapshot 01020300-0000-0000-0000-000000000000, not "
                            "04000000-0000-0000-0000-000000000000");
    cr_assert_eq(working_set_read(&found, fd, &name, PAGES * 2, &e), -1);
    cr_assert_str_eq(e.msg, "it is of a memory of 256 pages, not 512");
}

/* Puts bytes into the file, and makes its checksums right. */
static void put(off_t at, const void *bytes, size_t n)
{
    uint8_t file[64 + 4 * 16];
    uint32_t crc;

    cr_assert_eq(pwrite(fd, bytes, n, at), (ssize_t)n);
    cr_assert_eq(pread(fd, file, sizeof(file), 0), sizeof(file));
    crc = crc32c(file + 64, 4 * 16);
    memcpy(file + 56, &crc, sizeof(crc));
    crc = crc32c(file, 60);
    memcpy(file + 60, &crc, sizeof(crc));
    cr_assert_eq(pwrite(fd, file, sizeof(file), 0), sizeof(file));
}

static void refused_with(off_t at, uint64_t value, size_t n, const char *why)
{
    uint64_t old = 0;

    cr_assert_eq(pread(fd, &old, n, at), (ssize_t)n);
    put(at, &value, n);
    refused(why);
    put(at, &old, n);
}

Test(working_set, each_field_is_judged)
{
    make_record();
    refused_with(0, 'm', 1, "it is none");
    refused_with(8, 2, 2, "its format is 2, not 1");
    refused_with(10, 1, 1, "what must be zero is not");
    refused_with(55, 1, 1, "what must be zero is not");
    refused_with(40, 0, 4, "it has 0 runs of pages, not 1 to 16384");
    refused_with(40, 16385, 4, "it has 16385 runs of pages, not 1 to 16384");
    refused_with(64 + 8, 0, 4, "0 pages from page 3 on can't be run 0 of it");
    refused_with(64 + 8, 2, 4, "2 pages from page 4 on can't be run 1 of it");
    refused_with(64 + 12, 2, 4, "a run of pages has flags that nobody knows");
    refused_with(64 + 48, 256, 8, "1 pages from page 256 on can't be run 3 of it");
    refused_with(64 + 48, UINT64_MAX, 8,
                 "1 pages from page 18446744073709551615 on can't be run 3 of it");
    refused_with(64 + 48 + 8, UINT32_MAX, 4,
                 "4294967295 pages from page 255 on can't be run 3 of it");
    cr_assert_eq(ftruncate(fd, 4096 + 5 * 4096 + 1), 0);
    refused("it has 24577 bytes, not 24576");
    cr_assert_eq(ftruncate(fd, 100), 0);
    refused("it ends too early");
    cr_assert_eq(ftruncate(fd, 0), 0);
    refused("it ends too early");
}

/* Of a bit that is flipped, the sums tell; of one that was meant to be, whatever is accepted lies
 * in guest memory. */
Test(working_set, whatever_bit_is_flipped_nothing_lies_outside_of_memory)
{
    uint8_t byte, other;

    make_record();
    for (unsigned bit = 0; bit < (64 + 4 * 16) * 8; bit++) {
        cr_assert_eq(pread(fd, &byte, 1, bit / 8), 1);
        other = byte ^ (uint8_t)(1u << bit % 8);
        cr_assert_eq(pwrite(fd, &other, 1, bit / 8), 1);
        cr_assert_eq(working_set_read(&found, fd, &name, PAGES, &e), -1, "bit %u", bit);
        put(bit / 8, &other, 1);
        if (working_set_read(&found, fd, &name, PAGES, &e) == 0)
            for (unsigned i = 0; i < found.count; i++)
                cr_assert(found.runs[i].count > 0 &&
                          found.runs[i].page + found.runs[i].count <= PAGES);
        working_set_fini(&found);
        put(bit / 8, &byte, 1);
    }
    cr_assert_eq(working_set_read(&found, fd, &name, PAGES, &e), 0);
}
