#include "vmm/boot/copy_ahead.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "vmm/base/error.h"
#include "vmm/base/log.h"

#define MIB        (1u << 20)
#define TEXT_GPA   0x200000u
#define TEXT_BYTES (3u * MIB / 2 + 0x123)
#define PAGES      (4u * MIB / GMEM_PAGE_BYTES)

#define PAGEMAP_OF_FILE (UINT64_C(1) << 61) /* Linux Documentation/admin-guide/mm/pagemap.rst */
#define PAGEMAP_PRESENT (UINT64_C(1) << 63)

static struct guest_mem mem;
static struct loop loop;
static struct error e;
static int text_fd;
static uint8_t image[TEXT_BYTES];

static void set_up(void)
{
    int fd = text_fd = memfd_create("image", MFD_CLOEXEC);

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

static unsigned holds, releases;

static bool hold(struct copy_ahead *c)
{
    (void)c;
    cr_assert_eq(holds++, releases);
    return true;
}

static void release(struct copy_ahead *c)
{
    (void)c;
    cr_assert_eq(++releases, holds);
}

static void copy_parts(const struct kernel_image *kernel, const struct initrd *initrd)
{
    static struct copy_ahead c; /* the loop may keep it */

    copy_ahead_init(&c, &mem, kernel, initrd, hold, release);
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
    struct initrd initrd = { .start = gpa(TEXT_GPA), .bytes = 1 };

    for (unsigned i = 0; i < IMAGE_PARTS_MAX; i++)
        kernel.written[i] = (struct image_part){ gpa(TEXT_GPA + (2 * i + 3) * GMEM_PAGE_BYTES), 1 };
    copy_parts(&kernel, &initrd);
    cr_expect_eq(own_pages(TEXT_GPA, PAGES / 4 * GMEM_PAGE_BYTES), IMAGE_PARTS_MAX + 1);
}

Test(copy_ahead, takes_an_initrd_as_a_whole_unless_it_is_large)
{
    const struct kernel_image kernel = { .is_bzimage = false };
    struct initrd initrd = { .start = gpa(TEXT_GPA), .bytes = UNPACKED_BYTES_MAX };
    struct copy_ahead c;

    copy_ahead_init(&c, &mem, &kernel, &initrd, hold, release);
    cr_assert_eq(c.count, 1);
    cr_expect_eq(c.parts[0].at.v, TEXT_GPA);
    cr_expect_eq(c.parts[0].bytes, UNPACKED_BYTES_MAX);
    initrd.bytes++;
    copy_ahead_init(&c, &mem, &kernel, &initrd, hold, release);
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

/* From here on: images that are no longer the guest's than until their file changes. */
static char path[] = "/tmp/mayfly-copy-XXXXXX";
static struct copy_ahead ahead; /* the loop may keep it */

#define LATE_GPA 0x100000u /* of a second mapping, of the same bytes */

static int image_file(void)
{
    int writer = mkstemp(path), fd;

    cr_assert_eq(write(writer, image, TEXT_BYTES), (ssize_t)TEXT_BYTES);
    close(writer);
    fd = open(path, O_RDONLY);
    cr_assert_eq(gmem_load_file(&mem, gpa(LATE_GPA), fd, 0, MIB / 2, &e), 0, "%s", e.msg);
    return fd;
}

/* An initrd of that file, so large that the guest is not known to write to it. */
static void start_with(struct image_source source)
{
    const struct kernel_image kernel = { .is_bzimage = false };
    const struct initrd initrd = { .start = gpa(LATE_GPA), .source = source };

    copy_ahead_init(&ahead, &mem, &kernel, &initrd, hold, release);
    copy_ahead_start(&ahead, &loop);
}

static bool are_own(void)
{
    return own_pages(LATE_GPA, MIB / 2) == MIB / 2 / GMEM_PAGE_BYTES;
}

static void overwrite(int fd)
{
    static const uint8_t other[MIB];

    cr_assert_eq(pwrite(fd, other, sizeof(other), 0), (ssize_t)sizeof(other));
}

static void expect_the_image(void)
{
    static uint8_t now[MIB / 2];

    cr_assert_eq(gmem_read_(&mem, gpa(LATE_GPA), now, sizeof(now)), 0);
    cr_expect_arr_eq(now, image, sizeof(now));
}

static void run_the_timer(void)
{
    while (ahead.timer.fd >= 0)
        cr_assert(loop_turn(&loop, -1));
}

Test(copy_ahead, parts_from_a_file_that_may_change)
{
    int fd = image_file(), writer = open(path, O_WRONLY);

    unlink(path);
    start_with((struct image_source){ fd, IMAGE_LOOSE, TEXT_BYTES });
    run_the_timer();
    cr_expect(are_own());
    cr_expect_eq(own_pages(TEXT_GPA, MIB), 0, "from that file only");
    cr_expect_eq(holds, 1);
    overwrite(writer);
    cr_assert_eq(ftruncate(writer, 0), 0);
    expect_the_image();
}

/* A kernel's text, which is copied first, is not copied twice; what lies around it is the rest. */
Test(copy_ahead, parts_from_a_loose_kernel_what_is_written_first)
{
    const struct image_source source = { text_fd, IMAGE_LOOSE, TEXT_BYTES };
    const struct initrd none = { .bytes = 0 };
    struct kernel_image kernel = {
        .source = source,
        .written = { { gpa(TEXT_GPA + 0x2345), MIB / 2 }, { gpa(LATE_GPA), 0x1000 } },
    };

    copy_ahead_init(&ahead, &mem, &kernel, &none, hold, release);
    cr_assert_eq(ahead.count, 3);
    cr_expect_eq(ahead.parts[0].at.v, TEXT_GPA + 0x2000);
    cr_expect_eq(ahead.parts[0].bytes, MIB / 2 + 0x1000);
    cr_expect(ahead.parts[0].is_final);
    cr_expect_not(ahead.parts[1].is_final, "it is mapped from no file");
    cr_expect_eq(ahead.parts[2].at.v, TEXT_GPA);
    cr_expect_eq(ahead.parts[2].bytes, TEXT_BYTES & ~0xfffu);
    kernel =
        (struct kernel_image){ .source = source, .written = { { gpa(TEXT_GPA), TEXT_BYTES } } };
    copy_ahead_init(&ahead, &mem, &kernel, &none, hold, release);
    cr_expect_eq(ahead.count, 1);
    copy_ahead_start(&ahead, &loop);
    run_the_timer();
    cr_expect_eq(holds, 2);
    cr_assert_eq(ftruncate(text_fd, 0), 0);
    cr_assert_eq(gmem_read_(&mem, gpa(TEXT_GPA), image, TEXT_BYTES), 0);
}

Test(copy_ahead, copies_nothing_of_a_file_that_cannot_change)
{
    int fd = image_file();

    unlink(path);
    start_with((struct image_source){ fd, IMAGE_FIXED, TEXT_BYTES });
    cr_expect_not(loop_turn(&loop, 0));
    cr_expect_eq(own_pages(LATE_GPA, MIB / 2), 0);
    cr_expect_eq(ahead.timer.fd, -1);
}

static int try_to_write(void)
{
    return open(path, O_WRONLY | O_TRUNC | O_NONBLOCK);
}

static struct image_source leased_file(void)
{
    struct image_source source = image_guard_take(image_file());
    struct statfs fs;

    cr_assert_eq(fstatfs(source.fd, &fs), 0);
    if (fs.f_type != EXT4_SUPER_MAGIC && fs.f_type != TMPFS_MAGIC)
        cr_skip_test("/tmp is on a file system whose leases are not trusted");
    cr_assert_eq(source.guard, IMAGE_LEASED);
    return source;
}

Test(copy_ahead, parts_from_a_leased_file_when_somebody_wants_to_write_and_then_lets_him)
{
    int writer;

    start_with(leased_file());
    cr_expect_not(loop_turn(&loop, 0), "no timer runs");
    cr_expect(fcntl(ahead.breaks.fd, F_GETFL) & O_NONBLOCK);
    cr_expect(fcntl(ahead.breaks.fd, F_GETFD) & FD_CLOEXEC);
    cr_expect_eq(own_pages(LATE_GPA, MIB / 2), 0);
    cr_assert_eq(try_to_write(), -1);
    cr_assert_eq(errno, EWOULDBLOCK);
    while ((writer = try_to_write()) < 0) {
        cr_assert_not(are_own() && ahead.timer.fd < 0, "and the lease is not given back");
        cr_assert(loop_turn(&loop, -1));
    }
    cr_expect(are_own());
    overwrite(writer);
    expect_the_image();
    cr_expect_not(loop_turn(&loop, 0), "no timer runs");
    unlink(path);
}

/* It could not wait for itself. */
Test(copy_ahead, parts_at_once_from_a_leased_file_that_its_own_process_will_write)
{
    int writer;

    start_with(leased_file());
    copy_ahead_let_write(&ahead, "/none");
    copy_ahead_let_write(&ahead, "/proc/self/exe");
    cr_expect_eq(own_pages(LATE_GPA, MIB / 2), 0, "it is another file");
    copy_ahead_let_write(&ahead, path);
    cr_expect(are_own());
    writer = try_to_write();
    cr_assert_geq(writer, 0, "the lease is given back");
    overwrite(writer);
    expect_the_image();
    copy_ahead_let_write(&ahead, path);
    unlink(path);
}

/* The timer is set already, and goes. */
Test(copy_ahead, parts_at_once_from_a_loose_file_that_its_own_process_will_write)
{
    start_with((struct image_source){ image_file(), IMAGE_LOOSE, TEXT_BYTES });
    copy_ahead_let_write(&ahead, path);
    cr_expect(are_own());
    cr_expect_eq(ahead.timer.fd, -1);
    cr_expect_not(loop_turn(&loop, 0));
    expect_the_image();
    unlink(path);
}

/* As with huge pages: it was read. */
Test(copy_ahead, lets_the_writer_of_a_leased_file_go_on_that_is_mapped_nowhere)
{
    start_with(leased_file());
    mem.file_part_count = 0;
    cr_assert_eq(try_to_write(), -1);
    cr_assert(loop_turn(&loop, -1));
    cr_expect(try_to_write() >= 0);
    unlink(path);
}

/* A host that is out of descriptors: the copies are made at once. */
Test(copy_ahead, needs_no_timer)
{
    struct image_source source = leased_file();
    struct rlimit none, some;

    unlink(path);
    cr_assert_eq(getrlimit(RLIMIT_NOFILE, &some), 0);
    none = some;
    none.rlim_cur = 0;
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &none), 0);
    start_with(source);
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &some), 0);
    cr_expect_eq(ahead.timer.fd, -1);
    cr_expect_eq(ahead.sources[1].guard, IMAGE_NONE);
    cr_expect(are_own());
}

Test(copy_ahead, says_which_file_was_truncated_too_soon)
{
    int fd = image_file(), log = memfd_create("log", 0);
    char text[512] = { 0 }, name[32];

    snprintf(name, sizeof(name), "/proc/self/fd/%d", log);
    cr_assert_eq(log_open(name, &e), 0, "%s", e.msg);
    cr_assert_eq(truncate(path, MIB / 4), 0);
    unlink(path);
    start_with((struct image_source){ fd, IMAGE_LOOSE, TEXT_BYTES });
    run_the_timer();
    cr_assert_gt(pread(log, text, sizeof(text) - 1, 0), 0);
    cr_expect(strstr(text, "The guest goes on depending on its initrd's file, which can't be "
                           "copied: it was truncated"),
              "%s", text);
}
