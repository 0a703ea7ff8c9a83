#include "vmm/boot/copy_ahead.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmm/base/error.h"

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
    autofd int fd = memfd_create("image", MFD_CLOEXEC);

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

TestSuite(copy_ahead, .init = set_up, .fini = tear_down);

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

static void copy_parts(const struct kernel_image *kernel, const struct initrd *initrd)
{
    static struct copy_ahead c; /* the loop may keep it */

    copy_ahead_init(&c, &mem, kernel, initrd);
    copy_ahead_start(&c, &loop);
    while (c.timer.fd >= 0)
        cr_assert(loop_turn(&loop, -1));
}

static void copy(uint64_t at, uint64_t bytes)
{
    copy_parts(&(struct kernel_image){ .written = { { gpa(at), bytes } } },
               &(struct initrd){ .bytes = 0 });
}

Test(copy_ahead, has_all_its_whole_pages_to_itself_and_the_same_bytes)
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

Test(copy_ahead, has_the_pages_to_itself_that_it_has_a_part_of)
{
    copy(TEXT_GPA + 2 * GMEM_PAGE_BYTES - 1, GMEM_PAGE_BYTES + 2);
    cr_expect_eq(own_pages(TEXT_GPA, 6 * GMEM_PAGE_BYTES), 3);
    cr_expect_eq(own_pages(TEXT_GPA + GMEM_PAGE_BYTES, 3 * GMEM_PAGE_BYTES), 3);
}

Test(copy_ahead, copies_every_part)
{
    struct kernel_image kernel = { .is_bzimage = false };
    struct initrd initrd = { gpa(TEXT_GPA), 1 };

    for (unsigned i = 0; i < IMAGE_PARTS_MAX; i++)
        kernel.written[i] = (struct image_part){ gpa(TEXT_GPA + (2 * i + 3) * GMEM_PAGE_BYTES), 1 };
    copy_parts(&kernel, &initrd);
    cr_expect_eq(own_pages(TEXT_GPA, PAGES / 4 * GMEM_PAGE_BYTES), IMAGE_PARTS_MAX + 1);
}

Test(copy_ahead, takes_an_initrd_as_a_whole_unless_it_is_large)
{
    const struct kernel_image kernel = { .is_bzimage = false };
    struct initrd initrd = { gpa(TEXT_GPA), UNPACKED_BYTES_MAX };
    struct copy_ahead c;

    copy_ahead_init(&c, &mem, &kernel, &initrd);
    cr_assert_eq(c.count, 1);
    cr_expect_eq(c.parts[0].at.v, TEXT_GPA);
    cr_expect_eq(c.parts[0].bytes, UNPACKED_BYTES_MAX);
    initrd.bytes++;
    copy_ahead_init(&c, &mem, &kernel, &initrd);
    cr_expect_eq(c.count, 0);
}

Test(copy_ahead, keeps_what_the_guest_wrote)
{
    const uint8_t byte = (uint8_t)~image[5000];
    uint8_t now;

    cr_assert_eq(gmem_put(&mem, gpa(TEXT_GPA + 5000), &byte), 0);
    copy(TEXT_GPA, TEXT_BYTES);
    cr_assert_eq(gmem_get(&mem, gpa(TEXT_GPA + 5000), &now), 0);
    cr_expect_eq(now, byte);
}

Test(copy_ahead, of_no_bytes_needs_nothing)
{
    copy(TEXT_GPA, 0);
    cr_expect_eq(own_pages(TEXT_GPA, 2 * GMEM_PAGE_BYTES), 0);
    cr_expect_not(loop_turn(&loop, 0));
}

/* As on a host that can't: it ends, and the guest's own faults do the work. */
Test(copy_ahead, gives_up_where_pages_cannot_be_copied)
{
    copy(4 * MIB, MIB);
    cr_expect_not(loop_turn(&loop, 0));
}
