#include "vmm/kvm/guest_mem.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vmm/kvm/layout.h"

#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)

static struct guest_mem m;
static struct error e;

static void tear_down(void)
{
    gmem_fini(&m);
}

TestSuite(gmem_init, .fini = tear_down);
TestSuite(gmem_init_file, .fini = tear_down);
TestSuite(gmem_access, .fini = tear_down);
TestSuite(gmem_load_file, .fini = tear_down);

/* More is mapped at first, to find an aligned part. */
Test(gmem_init, keeps_no_more_than_it_needs)
{
    unsigned char there;

    cr_assert_eq(gmem_init(&m, 16, HUGE_PAGES_NONE, &e), 0, "%s", e.msg);
    cr_expect_eq(mincore(m.regions[0].host + m.regions[0].bytes, 1, &there), -1);
    cr_expect_eq(errno, ENOMEM);
}

Test(gmem_init, leaves_the_mmio_gap_free)
{
    static const struct {
        uint64_t mib;
        unsigned regions;
        uint64_t low, high;
    } cases[] = {
        { 1, 1, MIB, 0 },          { 3071, 1, 3071 * MIB, 0 },    { 3072, 1, 3 * GIB, 0 },
        { 3073, 2, 3 * GIB, MIB }, { 8192, 2, 3 * GIB, 5 * GIB },
    };

    for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        cr_assert_eq(gmem_init(&m, cases[i].mib, HUGE_PAGES_NONE, &e), 0, "%s", e.msg);
        cr_expect_eq(m.region_count, cases[i].regions);
        cr_expect_eq(m.regions[0].start, 0);
        cr_expect_eq(m.regions[0].bytes, cases[i].low);
        if (cases[i].regions > 1) {
            cr_expect_eq(m.regions[1].start, 4 * GIB);
            cr_expect_eq(m.regions[1].bytes, cases[i].high);
        }
        cr_expect_not(gmem_has(&m, gpa(LAYOUT_MMIO_GAP), 1));
        cr_expect_not(gmem_has(&m, gpa(4 * GIB - 1), 1));
        gmem_fini(&m);
    }
}

Test(gmem_init, refuses_what_cannot_be_addressed)
{
    static const uint64_t sizes[] = { UINT64_MAX, UINT64_MAX >> 20, (UINT64_MAX >> 20) + 1,
                                      UINT64_C(1) << 43 };

    for (unsigned i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        cr_expect_eq(gmem_init(&m, sizes[i], HUGE_PAGES_NONE, &e), -1);
        cr_expect_str_eq(e.msg, "Invalid Memory Configuration: Cannot create mmap region: Out of "
                                "memory (os error 12)");
        cr_expect_eq(m.region_count, 0);
    }
}

Test(gmem_init, aligns_transparent_huge_pages)
{
    cr_assert_eq(gmem_init(&m, 8, HUGE_PAGES_TRANSPARENT, &e), 0, "%s", e.msg);
    cr_expect_eq((uintptr_t)m.regions[0].host % (2 * MIB), 0);
    memset(m.regions[0].host, 1, 8 * MIB);
}

Test(gmem_init, touches_no_page)
{
    struct rusage before, after;

    getrusage(RUSAGE_SELF, &before);
    cr_assert_eq(gmem_init(&m, 2048, HUGE_PAGES_NONE, &e), 0, "%s", e.msg);
    getrusage(RUSAGE_SELF, &after);
    cr_expect_lt(after.ru_minflt - before.ru_minflt, 64);
}

Test(gmem_access, is_checked_at_every_edge)
{
    static const struct {
        uint64_t at, n;
        bool inside;
    } cases[] = {
        { 0, 0, true },
        { 0, 3 * GIB, true },
        { 0, 3 * GIB + 1, false },
        { 3 * GIB - 1, 1, true },
        { 3 * GIB - 1, 2, false },
        { 3 * GIB, 1, false },
        { 4 * GIB - 1, 2, false },
        { 4 * GIB, MIB, true },
        { 4 * GIB + MIB - 8, 8, true },
        { 4 * GIB + MIB - 8, 9, false },
        { 4 * GIB + MIB + 1, 0, false },
        { 0, 5 * GIB, false },
        { UINT64_MAX, 1, false },
        { UINT64_MAX, UINT64_MAX, false },
        { 1, UINT64_MAX, false },
    };

    cr_assert_eq(gmem_init(&m, 3073, HUGE_PAGES_NONE, &e), 0, "%s", e.msg);
    for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        const void *host = gmem_host_(&m, gpa(cases[i].at), cases[i].n);

        cr_expect_eq(gmem_has(&m, gpa(cases[i].at), cases[i].n), cases[i].inside, "case %u", i);
        cr_expect_eq(host != NULL, cases[i].inside && cases[i].n, "case %u", i);
    }
}

Test(gmem_access, copies_whole_objects_or_nothing)
{
    uint64_t value = 0x1122334455667788, back = 0;

    cr_assert_eq(gmem_init(&m, 1, HUGE_PAGES_NONE, &e), 0, "%s", e.msg);
    cr_expect_eq(gmem_put(&m, gpa(MIB - 8), &value), 0);
    cr_expect_eq(gmem_get(&m, gpa(MIB - 8), &back), 0);
    cr_expect_eq(back, value);
    back = 0;
    cr_expect_eq(gmem_put(&m, gpa(MIB - 7), &value), -EFAULT);
    cr_expect_eq(gmem_get(&m, gpa(MIB - 7), &back), -EFAULT);
    cr_expect_eq(back, 0);
}

static int file_of(size_t bytes)
{
    int fd = memfd_create("image", MFD_CLOEXEC);
    uint8_t *p;

    cr_assert_eq(ftruncate(fd, (off_t)bytes), 0);
    p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    for (size_t i = 0; i < bytes; i++)
        p[i] = (uint8_t)(i * 31 + i / 4096);
    munmap(p, bytes);
    return fd;
}

Test(gmem_init_file, is_what_the_file_holds_and_never_writes_to_it)
{
    static uint8_t got[2 * MIB], want[2 * MIB];
    int fd = file_of(2 * MIB + 3 * 4096 + 1);

    for (uint64_t offset = 0; offset <= 3 * 4096; offset += 4096) {
        cr_assert_eq(gmem_init_file(&m, 2, fd, offset, &e), 0, "%s", e.msg);
        cr_assert_eq(pread(fd, want, sizeof(want), (off_t)offset), sizeof(want));
        cr_assert_eq(gmem_read_(&m, gpa(0), got, sizeof(got)), 0);
        cr_expect_eq(memcmp(got, want, sizeof(want)), 0);
        cr_expect_eq((uintptr_t)m.regions[0].host % (2 * MIB), 0);
        memset(got, 0xa5, sizeof(got));
        cr_assert_eq(gmem_write_(&m, gpa(0), got, sizeof(got)), 0);
        cr_assert_eq(pread(fd, got, sizeof(got), (off_t)offset), sizeof(got));
        cr_expect_eq(memcmp(got, want, sizeof(want)), 0, "the guest wrote to the file");
        gmem_fini(&m);
    }
    close(fd);
}

Test(gmem_init_file, has_no_bytes_for_the_gap_and_outlives_the_descriptor)
{
    const uint64_t offset = 4096, last_low = 0x1111, first_high = 0x2222, last_high = 0x3333;
    int fd = memfd_create("sparse", MFD_CLOEXEC);
    uint64_t value;

    cr_assert_eq(ftruncate(fd, (off_t)(offset + 3 * GIB + MIB)), 0);
    cr_assert_eq(pwrite(fd, &last_low, 8, (off_t)(offset + 3 * GIB - 8)), 8);
    cr_assert_eq(pwrite(fd, &first_high, 8, (off_t)(offset + 3 * GIB)), 8);
    cr_assert_eq(pwrite(fd, &last_high, 8, (off_t)(offset + 3 * GIB + MIB - 8)), 8);
    cr_assert_eq(gmem_init_file(&m, 3073, fd, offset, &e), 0, "%s", e.msg);
    close(fd);
    cr_expect_eq(m.region_count, 2);
    cr_expect_eq(gmem_get(&m, gpa(3 * GIB - 8), &value), 0);
    cr_expect_eq(value, last_low);
    cr_expect_eq(gmem_get(&m, gpa(4 * GIB), &value), 0);
    cr_expect_eq(value, first_high);
    cr_expect_eq(gmem_get(&m, gpa(4 * GIB + MIB - 8), &value), 0);
    cr_expect_eq(value, last_high);
    cr_expect_eq(gmem_get(&m, gpa(GIB), &value), 0);
    cr_expect_eq(value, 0);
    for (unsigned i = 0; i < 2; i++)
        cr_expect_eq((uintptr_t)m.regions[i].host % (2 * MIB), 0);
}

/* Either these pages are there, or it is said how many are. */
Test(gmem_init_file, of_huge_pages_has_such_pages_and_reserves_its_own)
{
    const uint64_t bytes = 4 * MIB, value = 0x4711;
    int fd = memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_2MB);
    uint64_t *shared, got;

    if (fd < 0)
        cr_skip_test("no huge pages on this host");
    cr_assert_eq(ftruncate(fd, (off_t)bytes), 0);
    shared = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (shared == MAP_FAILED || gmem_init_file(&m, 4, fd, 0, &e) < 0) {
        if (shared == MAP_FAILED)
            cr_assert_eq(gmem_init_file(&m, 4, fd, 0, &e), -1);
        cr_assert(strstr(e.msg, "(os error 12): 2 huge pages of 2 MiB are needed, "), "%s", e.msg);
        cr_assert_eq(m.region_count, 0);
        return;
    }
    shared[bytes / 8 - 1] = value;
    cr_assert(m.hugetlb);
    cr_assert_eq(gmem_get(&m, gpa(bytes - 8), &got), 0);
    cr_assert_eq(got, value);
    got = 0;
    cr_assert_eq(gmem_put(&m, gpa(bytes - 8), &got), 0);
    cr_assert_eq(shared[bytes / 8 - 1], value, "the guest wrote to the file");
}

static uint64_t kib_of_own_smaps(const char *name)
{
    FILE *f = fopen("/proc/self/smaps", "r");
    unsigned long long kib, sum = 0;
    char line[256];

    cr_assert(f);
    while (fgets(line, sizeof(line), f))
        if (strncmp(line, name, strlen(name)) == 0 &&
            sscanf(line + strlen(name), " %llu", &kib) == 1)
            sum += kib;
    fclose(f);
    return sum;
}

/* The addresses agree modulo 2 MiB: a page of the page cache of that size is mapped as one. */
Test(gmem_init_file, of_transparent_huge_pages_has_such_pages)
{
    static uint8_t block[2 * MIB];
    int fd;

    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("none", "/mnt", "tmpfs", 0, "huge=always") < 0)
        cr_skip_test("no such tmpfs here");
    fd = open("/mnt/memory", O_RDWR | O_CREAT, 0600);
    cr_assert(fd >= 0);
    for (unsigned i = 0; i < 2; i++)
        cr_assert_eq(write(fd, block, sizeof(block)), sizeof(block));
    cr_assert_eq(gmem_init_file(&m, 4, fd, 0, &e), 0, "%s", e.msg);
    gmem_want_huge_pages(&m);
    for (uint64_t at = 0; at < 4 * MIB; at += GMEM_PAGE_BYTES)
        gmem_touch(&m, gpa(at));
    cr_assert_eq(kib_of_own_smaps("ShmemPmdMapped:"), 4096);
}

Test(gmem_init_file, names_what_is_wrong_with_the_file)
{
    static const struct {
        uint64_t bytes, offset;
        const char *why;
    } cases[] = {
        { MIB - 1, 0,
          "the file of guest memory is too short: 1048576 bytes at 0 of a file of 1048575" },
        { MIB + 4095, 4096,
          "the file of guest memory is too short: 1048576 bytes at 4096 of a file of 1052671" },
        { MIB, UINT64_MAX - 4095,
          "the file of guest memory is too short: 1048576 bytes at 18446744073709547520 of a file "
          "of 1048576" },
        { 2 * MIB, 512,
          "guest memory begins at byte 512 of its file, which is no multiple of 4096" },
    };
    int pipes[2];

    for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        int fd = file_of(cases[i].bytes);

        cr_expect_eq(gmem_init_file(&m, 1, fd, cases[i].offset, &e), -1);
        cr_expect_str_eq(e.msg, cases[i].why);
        cr_expect_eq(m.region_count, 0);
        close(fd);
    }
    cr_assert_eq(pipe(pipes), 0);
    cr_expect_eq(gmem_init_file(&m, 1, pipes[0], 0, &e), -1);
    cr_expect_str_eq(e.msg, "what is to be guest memory is no regular file");
    cr_expect_eq(gmem_init_file(&m, 1, -1, 0, &e), -1);
    cr_expect_str_eq(e.msg,
                     "cannot read the file of guest memory: Bad file descriptor (os error 9)");
}

Test(gmem_load_file, gives_the_same_bytes_mapped_or_read)
{
    static const struct {
        uint64_t at, offset, n;
    } cases[] = {
        { 0x100000, 0, 300000 },    /* mapped, with a tail that is read */
        { 0x100010, 0x10, 300000 }, /* a head as well */
        { 0x100000, 1, 300000 },    /* not congruent: read */
        { 0x100ffe, 0xffe, 3 },     /* within and across a page */
        { 0x100000, 0x1000, 0 },
    };
    int fd = file_of(400000);
    uint8_t want[300001], got[300001];

    for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        uint64_t n = cases[i].n;

        cr_assert_eq(gmem_init(&m, 4, HUGE_PAGES_NONE, &e), 0, "%s", e.msg);
        cr_assert_eq(gmem_load_file(&m, gpa(cases[i].at), fd, cases[i].offset, n, &e), 0, "%s",
                     e.msg);
        cr_assert_eq(pread(fd, want, n, (off_t)cases[i].offset), (ssize_t)n);
        want[n] = 0; /* and what lies behind stays zero */
        cr_assert_eq(gmem_read_(&m, gpa(cases[i].at), got, n + 1), 0);
        cr_expect_arr_eq(got, want, n + 1, "case %u", i);
        gmem_fini(&m);
    }
    close(fd);
}

/* The host's pread(), which may give less at a time than was asked for, and nothing from some byte
 * on, as where the file was cut after somebody looked how long it is. */
static size_t most_at_once = SIZE_MAX;
static off_t cut_at = INT64_MAX;

ssize_t pread(int fd, void *to, size_t n, off_t offset)
{
    if (n > most_at_once)
        n = most_at_once;
    if (offset >= cut_at)
        return 0;
    if (n > (uint64_t)(cut_at - offset))
        n = (size_t)(cut_at - offset);
    return syscall(SYS_pread64, fd, to, n, offset);
}

Test(gmem_load_file, reads_on_where_the_host_gives_less_at_once)
{
    uint8_t want[30000], got[30000];
    int fd = file_of(40000);

    cr_assert_eq(pread(fd, want, sizeof(want), 1), (ssize_t)sizeof(want));
    cr_assert_eq(gmem_init(&m, 4, HUGE_PAGES_NONE, &e), 0, "%s", e.msg);
    most_at_once = 1000;
    cr_assert_eq(gmem_load_file(&m, gpa(0x100000), fd, 1, sizeof(want), &e), 0, "%s", e.msg);
    cr_assert_eq(gmem_read_(&m, gpa(0x100000), got, sizeof(got)), 0);
    cr_expect_arr_eq(got, want, sizeof(want));
    close(fd);
}

Test(gmem_load_file, says_where_a_file_ends_that_is_cut_meanwhile)
{
    int fd = file_of(40000);

    cr_assert_eq(gmem_init(&m, 4, HUGE_PAGES_NONE, &e), 0, "%s", e.msg);
    cut_at = 20000;
    cr_expect_eq(gmem_load_file(&m, gpa(0x100000), fd, 1, 30000, &e), -1);
    cr_expect_str_eq(e.msg, "the image ends before byte 30001");
    close(fd);
}

Test(gmem_load_file, never_writes_to_the_file)
{
    int fd = file_of(200000);
    uint8_t before, byte = 0x77, after;

    cr_assert_eq(gmem_init(&m, 4, HUGE_PAGES_NONE, &e), 0, "%s", e.msg);
    cr_assert_eq(gmem_load_file(&m, gpa(0x100000), fd, 0, 200000, &e), 0, "%s", e.msg);
    cr_assert_eq(pread(fd, &before, 1, 5000), 1);
    cr_assert_eq(gmem_put(&m, gpa(0x100000 + 5000), &byte), 0);
    cr_assert_eq(pread(fd, &after, 1, 5000), 1);
    cr_expect_eq(after, before);
    close(fd);
}

Test(gmem_load_file, copies_no_page_that_nobody_touches)
{
    struct rusage before, after;
    int fd = file_of(32 * MIB);

    cr_assert_eq(gmem_init(&m, 64, HUGE_PAGES_NONE, &e), 0, "%s", e.msg);
    getrusage(RUSAGE_SELF, &before);
    cr_assert_eq(gmem_load_file(&m, gpa(0x100000), fd, 0, 32 * MIB, &e), 0, "%s", e.msg);
    getrusage(RUSAGE_SELF, &after);
    cr_expect_lt(after.ru_minflt - before.ru_minflt, 64);
    close(fd);
}

Test(gmem_file_bytes, are_those_of_a_file_and_none_of_what_has_no_size)
{
    static const uint64_t sizes[] = { 0, 1, 4096, 100000 };
    int ends[2], directory = open("/", O_RDONLY | O_DIRECTORY);

    for (unsigned i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        int fd = file_of(sizes[i]);

        cr_expect_eq(gmem_file_bytes(fd), sizes[i]);
        close(fd);
    }
    cr_assert_eq(pipe(ends), 0);
    cr_expect_eq(gmem_file_bytes(ends[0]), 0);
    cr_expect_eq(gmem_file_bytes(directory), 0);
    close(directory);
    cr_expect_eq(gmem_file_bytes(directory), 0, "closed");
}

Test(gmem_load_file, refuses_what_does_not_fit)
{
    int fd = file_of(100000);

    cr_assert_eq(gmem_init(&m, 1, HUGE_PAGES_NONE, &e), 0, "%s", e.msg);
    cr_expect_eq(gmem_load_file(&m, gpa(MIB - 50000), fd, 0, 100000, &e), -1);
    cr_expect(strstr(e.msg, "does not fit"), "%s", e.msg);
    cr_expect_eq(gmem_load_file(&m, gpa(UINT64_MAX), fd, 0, 100000, &e), -1);
    close(fd);
}

Test(gmem_load_file, refuses_a_file_that_is_too_short)
{
    int fd = file_of(100000);
    static const struct {
        uint64_t offset, n;
    } cases[] = { { 0, 100001 }, { 99999, 2 }, { 100001, 0 }, { UINT64_MAX, 1 }, { 1, 524288 } };

    cr_assert_eq(gmem_init(&m, 1, HUGE_PAGES_NONE, &e), 0, "%s", e.msg);
    for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        cr_expect_eq(gmem_load_file(&m, gpa(0), fd, cases[i].offset, cases[i].n, &e), -1);
        cr_expect(strstr(e.msg, "truncated"), "%s", e.msg);
    }
    close(fd);
}

Test(gmem_load_file, lists_what_it_maps_and_reads_where_the_list_is_full)
{
    enum { step = 4 * GMEM_PAGE_BYTES, n = 3 * GMEM_PAGE_BYTES + 5 };
    int fd = file_of(100000);

    cr_assert_eq(gmem_init(&m, 4, HUGE_PAGES_NONE, &e), 0, "%s", e.msg);
    cr_assert_eq(gmem_load_file(&m, gpa(step), fd, 1, n, &e), 0, "%s", e.msg);
    cr_expect_eq(m.file_part_count, 0);
    for (unsigned i = 0; i <= GMEM_FILE_PARTS_MAX; i++) {
        uint8_t want[n], got[n];
        gpa_t at = gpa(0x10000 + i * step);

        cr_assert_eq(gmem_load_file(&m, at, fd, 0, n, &e), 0, "%s", e.msg);
        cr_assert_eq(pread(fd, want, n, 0), (ssize_t)n);
        cr_assert_eq(gmem_read_(&m, at, got, n), 0);
        cr_expect_arr_eq(got, want, n);
        if (i == GMEM_FILE_PARTS_MAX)
            break;
        cr_assert_eq(m.file_part_count, i + 1);
        cr_expect_eq(m.file_parts[i].at.v, at.v);
        cr_expect_eq(m.file_parts[i].bytes, 3 * GMEM_PAGE_BYTES);
        cr_expect_eq(m.file_parts[i].fd, fd);
    }
    cr_expect_eq(m.file_part_count, GMEM_FILE_PARTS_MAX);
    close(fd);
}

Test(gmem_make_own, fails_where_the_file_has_become_shorter)
{
    int fd = file_of(100000);

    cr_assert_eq(gmem_init(&m, 4, HUGE_PAGES_NONE, &e), 0, "%s", e.msg);
    cr_assert_eq(gmem_load_file(&m, gpa(0), fd, 0, 100000, &e), 0, "%s", e.msg);
    cr_expect(gmem_make_own(&m, gpa(0), 8192));
    cr_assert_eq(ftruncate(fd, 16384), 0);
    cr_expect(gmem_make_own(&m, gpa(0), 16384));
    cr_expect_not(gmem_make_own(&m, gpa(0), 16385));
    cr_expect_not(gmem_make_own(&m, gpa(4 * MIB), 1));
    close(fd);
}

/* Truncating the file takes even those pages of its mappings that have been copied. */
Test(gmem_part_from_file, leaves_the_bytes_and_nothing_of_the_file)
{
    static uint8_t want[96 * 1024], got[96 * 1024];
    const uint8_t written = 0x5a;
    int fd = file_of(sizeof(want));

    cr_assert_eq(gmem_init(&m, 4, HUGE_PAGES_NONE, &e), 0, "%s", e.msg);
    cr_assert_eq(pread(fd, want, sizeof(want), 0), sizeof(want));
    cr_assert_eq(gmem_load_file(&m, gpa(MIB), fd, 0, sizeof(want), &e), 0, "%s", e.msg);
    cr_assert(gmem_make_own(&m, gpa(MIB), 8192));
    want[12345] = written;
    cr_assert_eq(gmem_put(&m, gpa(MIB + 12345), &written), 0);
    for (uint64_t at = 0; at < sizeof(want); at += 32768) {
        void *spare = gmem_spare(32768);

        cr_assert_not_null(spare);
        cr_assert_eq(gmem_part_from_file(&m, gpa(MIB + at), 32768, spare), 0);
    }
    cr_assert_eq(ftruncate(fd, 0), 0);
    cr_assert_eq(gmem_read_(&m, gpa(MIB), got, sizeof(got)), 0);
    cr_expect_arr_eq(got, want, sizeof(want));
    close(fd);
}

/* More than any host has: their reservation fails, and what fits is told. */
Test(gmem_init, says_how_many_huge_pages_are_needed_and_free)
{
    const uint64_t mib = UINT64_C(1) << 23;
    unsigned long long needed = 0, available = 0;
    const char *counts;
    uint64_t want = 0;

    cr_assert_eq(gmem_init(&m, mib, HUGE_PAGES_2M, &e), -1);
    counts = strstr(e.msg, "(os error 12): ");
    cr_assert(counts &&
                  strstr(e.msg, "Invalid Memory Configuration: Cannot create mmap region: ") ==
                      e.msg,
              "%s", e.msg);
    cr_assert_eq(sscanf(counts, "(os error 12): %llu huge pages of 2 MiB are needed, %llu are free",
                        &needed, &available),
                 2, "%s", e.msg);
    cr_expect_eq(needed, mib / 2);
    for (const char *const *name = (const char *const[]){ "free", "resv", NULL }; *name; name++) {
        char path[96], text[32] = { 0 };
        int fd;

        snprintf(path, sizeof(path), "/sys/kernel/mm/hugepages/hugepages-2048kB/%s_hugepages",
                 *name);
        fd = open(path, O_RDONLY);
        if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
            cr_skip_test("no huge pages on this host");
        want = **name == 'f' ? strtoull(text, NULL, 10) : want - strtoull(text, NULL, 10);
        close(fd);
    }
    cr_expect_eq(available, want, "%llu", available);
}

static bool is_marked(uint64_t page)
{
    return m.written[page / 64] >> page % 64 & 1;
}

static uint64_t marked_pages(void)
{
    uint64_t n = 0;

    for (uint64_t i = 0; i < gmem_pages(&m) / 64; i++)
        n += (unsigned)__builtin_popcountll(m.written[i]);
    return n;
}

Test(gmem_access, marks_the_pages_that_are_written_once_somebody_asks)
{
    const uint64_t value = 1, above = 3 * GIB / GMEM_PAGE_BYTES;

    cr_assert_eq(gmem_init(&m, 3074, HUGE_PAGES_NONE, &e), 0, "%s", e.msg);
    cr_expect_eq(gmem_put(&m, gpa(0), &value), 0);
    cr_assert_eq(gmem_track_writes(&m), 0);
    cr_expect_eq(marked_pages(), 0);
    cr_expect_eq(gmem_put(&m, gpa(3 * GIB - 7), &value), -EFAULT);
    cr_expect_eq(marked_pages(), 0);
    cr_expect_eq(gmem_put(&m, gpa(2 * GMEM_PAGE_BYTES - 4), &value), 0);
    cr_expect(is_marked(1) && is_marked(2), "both that it lies on");
    cr_expect_eq(gmem_put(&m, gpa(8 * GMEM_PAGE_BYTES - 8), &value), 0);
    cr_expect(is_marked(7) && !is_marked(8));
    cr_expect_eq(gmem_put(&m, gpa(3 * GIB - 8), &value), 0);
    cr_expect_eq(gmem_put(&m, gpa(4 * GIB), &value), 0);
    cr_expect_eq(gmem_put(&m, gpa(4 * GIB + 2 * MIB - 8), &value), 0);
    cr_expect(is_marked(above - 1) && is_marked(above) && is_marked(above + 511));
    cr_expect_eq(marked_pages(), 6);
    cr_expect_eq(gmem_page_of(&m, gpa(4 * GIB + GMEM_PAGE_BYTES)), above + 1);
}
