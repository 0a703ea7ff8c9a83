#include "vmm/boot/text.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmm/error.h"

#define MIB        (1u << 20)
#define TEXT_GPA   0x200000u
#define TEXT_BYTES (3u * MIB / 2 + 0x123)
#define PAGES      (4u * MIB / GMEM_PAGE_BYTES)

#define PAGEMAP_OF_FILE (UINT64_C(1) << 61) /* Linux Documentation/admin-guide/mm/pagemap.rst */
#define PAGEMAP_PRESENT (UINT64_C(1) << 63)

static struct guest_mem mem;
static struct loop loop;
static struct error e;
static uint8_t image[TEXT_BYTES];

static void set_up(void)
{
    autofd int fd = memfd_create("text", MFD_CLOEXEC);

    for (size_t i = 0; i < TEXT_BYTES; i++)
        image[i] = (uint8_t)(i * 31 + i / 4096 + 1);
    cr_assert_eq(write(fd, image, TEXT_BYTES), (ssize_t)TEXT_BYTES);
    cr_assert_eq(gmem_init(&mem, 4, HUGE_PAGES_NONE, &e), 0, "%s", e.msg);
    cr_assert_eq(gmem_load_file(&mem, gpa(TEXT_GPA), fd, 0, TEXT_BYTES, &e), 0, "%s", e.msg);
    cr_assert_eq(loop_init(&loop, &e), 0, "%s", e.msg);
}

static void tear_down(void)
{
    loop_fini(&loop);
    gmem_fini(&mem);
}

TestSuite(text, .init = set_up, .fini = tear_down);

/* How many pages of [at, at + bytes) are there and are no file's. */
static unsigned own_pages(uint64_t at, uint64_t bytes)
{
    autofd int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    uintptr_t first = (uintptr_t)(mem.regions[0].host + at) / GMEM_PAGE_BYTES;
    static uint64_t map[PAGES];
    ssize_t n = (ssize_t)(bytes / GMEM_PAGE_BYTES * sizeof(*map));
    unsigned own = 0;

    cr_assert_eq(pread(fd, map, (size_t)n, (off_t)(first * sizeof(*map))), n);
    for (size_t i = 0; i < (size_t)n / sizeof(*map); i++)
        own += (map[i] & (PAGEMAP_PRESENT | PAGEMAP_OF_FILE)) == PAGEMAP_PRESENT;
    return own;
}

static void copy(uint64_t at, uint64_t bytes)
{
    static struct text t; /* the loop may keep it */

    text_init(&t, &mem, gpa(at), bytes);
    text_copy(&t, &loop);
    while (t.timer.fd >= 0)
        cr_assert(loop_turn(&loop, -1));
}

Test(text, has_all_its_whole_pages_to_itself_and_the_same_bytes)
{
    const unsigned pages = TEXT_BYTES / GMEM_PAGE_BYTES;
    uint8_t *now = malloc(TEXT_BYTES);

    cr_assert_eq(own_pages(TEXT_GPA, pages * GMEM_PAGE_BYTES), 0);
    copy(TEXT_GPA, TEXT_BYTES);
    cr_expect_eq(own_pages(TEXT_GPA, pages * GMEM_PAGE_BYTES), pages);
    cr_assert_eq(gmem_read_(&mem, gpa(TEXT_GPA), now, TEXT_BYTES), 0);
    cr_expect_arr_eq(now, image, TEXT_BYTES);
    free(now);
}

Test(text, has_the_pages_to_itself_that_it_has_a_part_of)
{
    copy(TEXT_GPA + 2 * GMEM_PAGE_BYTES - 1, GMEM_PAGE_BYTES + 2);
    cr_expect_eq(own_pages(TEXT_GPA, 6 * GMEM_PAGE_BYTES), 3);
    cr_expect_eq(own_pages(TEXT_GPA + GMEM_PAGE_BYTES, 3 * GMEM_PAGE_BYTES), 3);
}

Test(text, keeps_what_the_guest_wrote)
{
    const uint8_t byte = (uint8_t)~image[5000];
    uint8_t now;

    cr_assert_eq(gmem_put(&mem, gpa(TEXT_GPA + 5000), &byte), 0);
    copy(TEXT_GPA, TEXT_BYTES);
    cr_assert_eq(gmem_get(&mem, gpa(TEXT_GPA + 5000), &now), 0);
    cr_expect_eq(now, byte);
}

Test(text, of_no_bytes_needs_nothing)
{
    copy(TEXT_GPA, 0);
    cr_expect_eq(own_pages(TEXT_GPA, 2 * GMEM_PAGE_BYTES), 0);
    cr_expect_not(loop_turn(&loop, 0));
}

/* As on a host that can't: it ends, and the guest's own faults do the work. */
Test(text, gives_up_where_pages_cannot_be_copied)
{
    copy(4 * MIB, MIB);
    cr_expect_not(loop_turn(&loop, 0));
}
