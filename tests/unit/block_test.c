#include "virtio/block.h"

#include <sys/mman.h>
#include <sys/syscall.h>

#include "tests/unit/support/disk.h"
#include "tests/unit/support/toggle.h"

BOTH(reads_sectors_into_any_number_of_buffers)
{
    for (unsigned pieces = 1; pieces <= 254; pieces += 23) {
        cr_assert_eq(request(VIRTIO_BLK_T_IN, 3, 8 * SECTOR, pieces), VIRTIO_BLK_S_OK);
        cr_expect_eq(ring_used(ring, ring_used_idx(ring) - 1).len, 8 * SECTOR + 1);
        for (unsigned i = 0; i < 8; i++)
            cr_expect_eq(get16(ring, DATA + i * SECTOR), (3 + i) * 0x101, "%u pieces", pieces);
    }
}

BOTH(writes_sectors_and_counts_only_the_status)
{
    uint8_t bytes[2 * SECTOR], back[2 * SECTOR];
    int fd = open(path, O_RDONLY);

    for (unsigned i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i * 3);
    cr_assert_eq(gmem_put(&d.mem, gpa(DATA), &bytes), 0);
    cr_assert_eq(request(VIRTIO_BLK_T_OUT, 62, sizeof(bytes), 3), VIRTIO_BLK_S_OK);
    cr_expect_eq(ring_used(ring, 0).len, 1);
    cr_assert_eq(pread(fd, back, sizeof(back), 62 * SECTOR), sizeof(back));
    cr_expect_arr_eq(back, bytes, sizeof(bytes));
    close(fd);
}

BOTH(stays_within_the_disk)
{
    static const struct {
        uint64_t sector;
        uint32_t bytes;
        uint8_t status;
    } cases[] = {
        { 63, SECTOR, VIRTIO_BLK_S_OK },
        { 64, 0, VIRTIO_BLK_S_OK },
        { 63, 2 * SECTOR, VIRTIO_BLK_S_IOERR },
        { 64, SECTOR, VIRTIO_BLK_S_IOERR },
        { 65, 0, VIRTIO_BLK_S_IOERR },
        { UINT64_MAX, SECTOR, VIRTIO_BLK_S_IOERR },
        { UINT64_MAX / SECTOR, SECTOR, VIRTIO_BLK_S_IOERR },
        { UINT64_MAX / SECTOR + 1, SECTOR, VIRTIO_BLK_S_IOERR },
        { 0, 1, VIRTIO_BLK_S_IOERR },
        { 0, SECTOR - 1, VIRTIO_BLK_S_IOERR },
        { 0, SECTOR + 1, VIRTIO_BLK_S_IOERR },
    };

    for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        cr_expect_eq(request(VIRTIO_BLK_T_IN, cases[i].sector, cases[i].bytes, 1), cases[i].status,
                     "read of %u bytes at sector %lu", cases[i].bytes, cases[i].sector);
        cr_expect_eq(request(VIRTIO_BLK_T_OUT, cases[i].sector, cases[i].bytes, 1), cases[i].status,
                     "write of %u bytes at sector %lu", cases[i].bytes, cases[i].sector);
    }
}

BOTH(request_of_an_unknown_type_is_unsupported)
{
    static const uint32_t types[] = { 2, 3, 5, 7, 11, 12, 13, 14, 0x80000000u, UINT32_MAX };

    for (unsigned i = 0; i < sizeof(types) / sizeof(*types); i++)
        cr_expect_eq(request(types[i], 0, SECTOR, 1), VIRTIO_BLK_S_UNSUPP, "type %u", types[i]);
}

BOTH(request_with_half_a_header_fails)
{
    put16(ring, STATUS, UNTOUCHED);
    ring_desc(ring, 0, HEADER, 15, VRING_DESC_F_NEXT, 1);
    ring_desc(ring, 1, STATUS, 1, VRING_DESC_F_WRITE, 0);
    ring_offer(ring, 0);
    kick();
    cr_expect_eq(status_of(0), VIRTIO_BLK_S_IOERR);
}

BOTH(takes_a_header_split_over_buffers)
{
    struct virtio_blk_outhdr header = { .type = VIRTIO_BLK_T_IN, .sector = 9 };

    cr_assert_eq(gmem_put(&d.mem, gpa(HEADER), &header), 0);
    ring_desc(ring, 0, HEADER, 5, VRING_DESC_F_NEXT, 1);
    ring_desc(ring, 1, HEADER + 5, 11, VRING_DESC_F_NEXT, 2);
    ring_desc(ring, 2, DATA, SECTOR + 1, VRING_DESC_F_WRITE, 0);
    ring_offer(ring, 0);
    kick();
    cr_expect_eq(get16(ring, DATA), 0x0909);
    cr_expect_eq(get16(ring, DATA + SECTOR) & 0xff, VIRTIO_BLK_S_OK, "the last byte is status");
}

BOTH(request_without_a_status_byte_is_dropped)
{
    ring_desc(ring, 0, HEADER, 16, 0, 0);
    ring_offer(ring, 0);
    kick();
    cr_expect_eq(ring_used_idx(ring), 1);
    cr_expect_eq(ring_used(ring, 0).len, 0);
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 0, SECTOR, 1), VIRTIO_BLK_S_OK, "and the next is served");
}

BOTH(gives_the_disk_s_identity)
{
    struct stat st;
    char want[64] = "", got[BLOCK_ID_BYTES];

    cr_assert_eq(stat(path, &st), 0);
    snprintf(want, sizeof(want), "%lu%lu%lu", st.st_dev, st.st_rdev, st.st_ino);
    cr_assert_eq(request(VIRTIO_BLK_T_GET_ID, 0, BLOCK_ID_BYTES, 1), VIRTIO_BLK_S_OK);
    cr_assert_eq(gmem_get(&d.mem, gpa(DATA), &got), 0);
    cr_expect_arr_eq(got, want, BLOCK_ID_BYTES);
    cr_expect_eq(request(VIRTIO_BLK_T_GET_ID, 0, BLOCK_ID_BYTES - 1, 1), VIRTIO_BLK_S_IOERR);
}

BOTH(flushes_when_that_was_offered)
{
    cr_expect_eq(request(VIRTIO_BLK_T_FLUSH, 0, 0, 0), VIRTIO_BLK_S_OK);
}

Test(request_without_flush, is_unsupported, .fini = tear_down)
{
    start((struct options){ 0 });
    cr_expect_not(offered_features(&d) & 1u << VIRTIO_BLK_F_FLUSH);
    cr_expect_eq(request(VIRTIO_BLK_T_FLUSH, 0, 0, 0), VIRTIO_BLK_S_UNSUPP);
}

Test(request_read_only, refuses_to_write_and_says_so_in_its_features, .fini = tear_down)
{
    start((struct options){ .is_read_only = true });
    cr_expect(offered_features(&d) & 1u << VIRTIO_BLK_F_RO);
    cr_expect_eq(request(VIRTIO_BLK_T_OUT, 0, SECTOR, 1), VIRTIO_BLK_S_IOERR);
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 0, SECTOR, 1), VIRTIO_BLK_S_OK);
}

BOTH(request_on_a_file_that_was_cut_short_fails)
{
    cr_assert_eq(truncate(path, 3 * SECTOR + 100), 0);
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 2, SECTOR, 1), VIRTIO_BLK_S_OK);
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 3, SECTOR, 1), VIRTIO_BLK_S_IOERR);
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 40, SECTOR, 1), VIRTIO_BLK_S_IOERR);
    cr_expect_eq(metric_get(&block.metrics.execute_fails), 2);
    cr_expect_eq(metric_get(&block.metrics.read_count), 1, "that was read");
}

BOTH(serves_many_requests_with_one_interrupt)
{
    cr_expect_eq(driver_interrupts(&d), 0);
    ring_set_used_event(ring, 0);
    for (uint16_t i = 0; i < 80; i++)
        offer((uint16_t)(3 * i), VIRTIO_BLK_T_IN, i % DISK_SECTORS, SECTOR, 1);
    kick();
    cr_expect_eq(ring_used_idx(ring), 80);
    cr_expect_eq(driver_interrupts(&d), 1);
    cr_expect_eq(reg_read(&d, VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
    reg_write(&d, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
    cr_expect_eq(reg_read(&d, VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

Test(sync, continues_a_huge_request_turn_by_turn)
{
    const uint64_t huge = UINT64_C(8) << 30;
    unsigned turns = 0;

    /* 254 buffers over the same 512 KiB: 127 MiB a request. */
    cr_assert_eq(truncate(path, (off_t)huge), 0);
    file.sectors = huge / SECTOR;
    offer(0, VIRTIO_BLK_T_IN, 0, 0, 254);
    for (uint16_t i = 1; i <= 254; i++)
        ring_buffer(ring, i, 0x40000, 0x80000, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE);
    while (kick())
        turns++;
    cr_expect_geq(turns, 127 / 4 - 1);
    cr_expect_eq(status_of(0), VIRTIO_BLK_S_OK);
    cr_expect_eq(ring_used(ring, 0).len, 254 * 0x80000u + 1);
}

Test(sync, forgets_a_request_in_progress_on_reset)
{
    offer(0, VIRTIO_BLK_T_OUT, 0, 0, 254);
    cr_assert_eq(truncate(path, INT64_C(1) << 30), 0);
    file.sectors = (UINT64_C(1) << 30) / SECTOR;
    for (uint16_t i = 1; i <= 254; i++)
        ring_buffer(ring, i, 0x40000, 0x80000, VRING_DESC_F_NEXT);
    cr_assert(kick());
    cr_assert_not_null(block.current);
    driver_start(&d);
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 1, SECTOR, 1), VIRTIO_BLK_S_OK);
}

BOTH(stops_at_a_malformed_chain_until_reset)
{
    ring_desc(ring, 0, UINT64_C(1) << 40, 16, VRING_DESC_F_NEXT, 1);
    ring_offer(ring, 0);
    kick();
    cr_expect(needs_reset(&d));
    cr_expect_eq(ring_used_idx(ring), 0);
    driver_start(&d);
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 1, SECTOR, 1), VIRTIO_BLK_S_OK);
}

/* Pages of the disk's file that only memory has. */
static uint64_t dirty_pages(void)
{
    const long cachestat = 451;
    const struct {
        uint64_t offset, bytes;
    } all = { 0 };
    struct {
        uint64_t cached, dirty, written_back, evicted, recently_evicted;
    } pages;

    if (syscall(cachestat, file.fd, &all, &pages, 0) < 0)
        cr_skip_test("no cachestat(2) on this host");
    return pages.dirty;
}

BOTH(flush_leaves_nothing_in_memory_alone)
{
    cr_assert_eq(fdatasync(file.fd), 0);
    if (dirty_pages() > 0)
        cr_skip_test("a file system in memory");
    cr_assert_eq(request(VIRTIO_BLK_T_OUT, 0, 16 * SECTOR, 1), VIRTIO_BLK_S_OK);
    cr_assert_gt(dirty_pages(), 0);
    cr_assert_eq(request(VIRTIO_BLK_T_FLUSH, 0, 0, 0), VIRTIO_BLK_S_OK);
    cr_expect_eq(dirty_pages(), 0);
}

BOTH(many_kinds_of_requests_at_once_keep_apart)
{
    static const uint32_t types[] = { VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_FLUSH, 99 };
    static const uint8_t statuses[] = { VIRTIO_BLK_S_OK, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_OK,
                                        VIRTIO_BLK_S_UNSUPP };

    for (uint16_t i = 0; i < 80; i++) {
        uint32_t type = types[i % 4];
        bool moves = type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_OUT;

        offer((uint16_t)(3 * i), type, i % DISK_SECTORS, moves ? SECTOR : 0, moves);
    }
    while (kick())
        ;
    cr_expect_eq(ring_used_idx(ring), 80);
    for (uint16_t i = 0; i < 80; i++)
        cr_expect_eq(status_of((uint16_t)(3 * i)), statuses[i % 4], "request %u", i);
}

/* Puts a file of the host in the disk's place. */
static void work_on(const char *host_path, int flags)
{
    close(file.fd);
    file.fd = open(host_path, flags);
    cr_assert_geq(file.fd, 0);
    file.sectors = DISK_SECTORS;
    if (block.host.async)
        cr_assert_eq(block_async_set_file(block.host.async, &file), 0);
}

BOTH(a_full_host_is_an_error_the_guest_sees)
{
    work_on("/dev/full", O_RDWR);
    cr_expect_eq(request(VIRTIO_BLK_T_OUT, 0, SECTOR, 1), VIRTIO_BLK_S_IOERR);
    cr_expect_eq(ring_used(ring, 0).len, 1);
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 0, SECTOR, 1), VIRTIO_BLK_S_OK, "and it goes on");
}

BOTH(a_failing_host_disk_is_an_error_the_guest_sees)
{
    work_on("/proc/self/mem", O_RDONLY); /* EIO: nothing is mapped at 0 */
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 0, SECTOR, 1), VIRTIO_BLK_S_IOERR);
    cr_expect_eq(ring_used(ring, 0).len, 1);
    cr_expect_eq(request(VIRTIO_BLK_T_FLUSH, 0, 0, 0), VIRTIO_BLK_S_IOERR);
}

static char log_path[] = NEW_FILE;
static char log_text[65536];

static void log_to_a_file(void)
{
    struct error e;

    close(new_file(log_path));
    cr_assert_eq(log_open(log_path, &e), 0, "%s", e.msg);
}

static const char *logged(void)
{
    return read_text(log_path, log_text, sizeof(log_text));
}

static unsigned logged_lines(void)
{
    unsigned n = 0;

    for (const char *at = logged(); (at = strchr(at, '\n')); at++)
        n++;
    return n;
}

BOTH(a_failing_host_disk_is_told_once_a_second)
{
    char want[128];

    log_to_a_file();
    work_on("/proc/self/mem", O_RDONLY);
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 0, SECTOR, 1), VIRTIO_BLK_S_IOERR);
    snprintf(want, sizeof(want), "] Disk %s: a read failed: I/O error (os error 5)\n", path);
    cr_expect(strstr(logged(), want), "%s", log_text);
    file.failures.next_ns = UINT64_MAX; /* the second is not over */
    for (unsigned i = 0; i < 100; i++)
        cr_expect_eq(request(VIRTIO_BLK_T_IN, 0, SECTOR, 1), VIRTIO_BLK_S_IOERR);
    cr_expect_eq(logged_lines(), 1, "%s", log_text);
    file.failures.next_ns = 0; /* it is */
    cr_expect_eq(request(VIRTIO_BLK_T_FLUSH, 0, 0, 0), VIRTIO_BLK_S_IOERR);
    cr_expect(strstr(logged(), ": a flush failed: "), "%s", log_text);
    cr_expect(strstr(log_text, " (100 more were left out)\n"), "%s", log_text);
    cr_expect_eq(logged_lines(), 2, "%s", log_text);
    unlink(log_path);
}

BOTH(the_first_failure_of_another_file_is_told_at_once)
{
    struct block_file other;
    char want[128];
    struct error e;

    log_to_a_file();
    file.failures.next_ns = UINT64_MAX;
    other = other_file(7);
    cr_assert_eq(truncate(other_path, SECTOR), 0);
    cr_assert_eq(block_update(&block, &other, NULL, &e), 0, "%s", e.msg);
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 3, SECTOR, 1), VIRTIO_BLK_S_IOERR);
    snprintf(want, sizeof(want), "] Disk %s: a read failed: the file is too short\n", other_path);
    cr_expect(strstr(logged(), want), "%s", log_text);
    unlink(log_path);
    unlink(other_path);
}

/* What the guest asks for and may not have is not the host's failure. */
BOTH(a_request_that_is_refused_is_not_told)
{
    log_to_a_file();
    cr_expect_eq(request(VIRTIO_BLK_T_IN, DISK_SECTORS, SECTOR, 1), VIRTIO_BLK_S_IOERR);
    cr_expect_eq(request(99, 0, SECTOR, 1), VIRTIO_BLK_S_UNSUPP);
    cr_expect_str_eq(logged(), "");
    unlink(log_path);
}

BOTH(a_read_across_the_end_of_a_shorter_file_is_no_success)
{
    cr_assert_eq(truncate(path, 3 * SECTOR), 0);
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 1, 8 * SECTOR, 3), VIRTIO_BLK_S_IOERR);
}

Test(async, continues_a_huge_request_piece_by_piece)
{
    const uint64_t huge = UINT64_C(8) << 30;

    cr_assert_eq(truncate(path, (off_t)huge), 0);
    file.sectors = huge / SECTOR;
    offer(0, VIRTIO_BLK_T_IN, 0, 0, 254);
    for (uint16_t i = 1; i <= 254; i++)
        ring_buffer(ring, i, 0x40000, 0x7fe00, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE);
    while (kick())
        ;
    cr_expect_eq(status_of(0), VIRTIO_BLK_S_OK);
    cr_expect_eq(ring_used(ring, 0).len, 254 * 0x7fe00u + 1);
}

Test(async, takes_results_that_come_late_with_one_interrupt)
{
    struct pollfd results = { .fd = block.results.fd, .events = POLLIN };
    unsigned before;

    cr_assert_eq(request(VIRTIO_BLK_T_OUT, 0, 64 * SECTOR, 1), VIRTIO_BLK_S_OK);
    before = ring_used_idx(ring);
    driver_interrupts(&d);
    ring_set_used_event(ring, (uint16_t)before);
    offer(0, VIRTIO_BLK_T_FLUSH, 0, 0, 0);
    driver_serve(&d);
    while (ring_used_idx(ring) == before) {
        cr_expect_eq(driver_interrupts(&d), 0);
        cr_assert_eq(poll(&results, 1, 120000), 1);
        block.results.on_ready(&block.results, EPOLLIN);
    }
    cr_expect_eq(status_of(0), VIRTIO_BLK_S_OK);
    cr_expect_eq(driver_interrupts(&d), 1);
}

Test(async, keeps_the_ring_from_programs_we_start)
{
    cr_expect(fcntl(block.results.fd, F_GETFD) & FD_CLOEXEC);
}

Test(async, stops_taking_requests_when_all_of_its_own_are_under_way)
{
    /* A hostile driver offers the same chain for ever. */
    offer(0, VIRTIO_BLK_T_FLUSH, 0, 0, 0);
    for (unsigned i = 1; i < 256; i++)
        ring_offer(ring, 0);
    while (kick())
        ;
    cr_expect_eq(ring_used_idx(ring), 256);
    cr_expect_eq(block.idle_count, VIRTQ_SIZE_MAX);
}

#define ALWAYS                                                                                     \
    (FEATURE(VIRTIO_F_VERSION_1) | FEATURE(VIRTIO_RING_F_EVENT_IDX) |                              \
     FEATURE(VIRTIO_RING_F_INDIRECT_DESC) | FEATURE(VIRTIO_BLK_F_SEG_MAX) |                        \
     FEATURE(VIRTIO_BLK_F_TOPOLOGY))
#define THIN_ONES (FEATURE(VIRTIO_BLK_F_DISCARD) | FEATURE(VIRTIO_BLK_F_WRITE_ZEROES))

Test(features, are_those_of_the_file_and_no_others)
{
    static const struct {
        struct options options;
        uint64_t features;
    } cases[] = {
        { { 0 }, ALWAYS },
        { { .is_async = true }, ALWAYS },
        { { .has_flush = true }, ALWAYS | FEATURE(VIRTIO_BLK_F_FLUSH) },
        { { .is_read_only = true }, ALWAYS | FEATURE(VIRTIO_BLK_F_RO) },
        { { .is_thin = true }, ALWAYS | THIN_ONES },
        { { .is_thin = true, .is_read_only = true }, ALWAYS | FEATURE(VIRTIO_BLK_F_RO) },
    };

    for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        start(cases[i].options);
        cr_expect_eq(offered_features(&d), cases[i].features, "case %u", i);
        tear_down();
        memset(&d, 0, sizeof(d));
    }
}

Test(features, tell_the_topology_of_the_host, .init = start_sync, .fini = tear_down)
{
    struct virtio_blk_config config;
    struct stat st;

    cr_assert_eq(fstat(file.fd, &st), 0);
    cr_expect(offered_features(&d) & 1u << VIRTIO_BLK_F_TOPOLOGY);
    cr_expect_not(offered_features(&d) & 1u << VIRTIO_BLK_F_BLK_SIZE);
    memcpy(&config, block.dev.config, sizeof(config));
    cr_expect_eq(SECTOR << config.physical_block_exp, st.st_blksize);
    cr_expect_eq(config.min_io_size * SECTOR, st.st_blksize);
}

Test(block_file_open, refuses_what_has_no_size_and_names_it)
{
    struct block_file f;
    struct error e;

    cr_expect_eq(block_file_open(&f, "/tmp", true, &e), -1);
    cr_expect(strstr(e.msg, "/tmp"), "%s", e.msg);
    cr_expect_eq(block_file_open(&f, "/tmp", false, &e), -1);
    cr_expect_eq(block_file_open(&f, "/nowhere/disk", false, &e), -1);
    cr_expect_str_eq(e.msg, "Virtio backend error: Error manipulating the backing file: No such "
                            "file or directory (os error 2) /nowhere/disk");
    close(new_file(path));
    unlink(path);
    cr_assert_eq(mkfifo(path, 0600), 0);
    cr_expect_eq(block_file_open(&f, path, false, &e), -1);
    cr_expect(strstr(e.msg, "Invalid seek"), "%s", e.msg);
    unlink(path);
}

Test(block_file_open, takes_an_empty_file_as_an_empty_disk)
{
    struct block_file f;
    struct error e;
    int fd = new_file(path);

    cr_expect_eq(block_file_open(&f, path, false, &e), 0);
    cr_expect_eq(f.sectors, 0);
    block_file_close(&f);
    cr_assert_eq(ftruncate(fd, 1023), 0);
    cr_expect_eq(block_file_open(&f, path, false, &e), 0);
    cr_expect_eq(f.sectors, 1, "the rest of a sector is out of reach");
    block_file_close(&f);
    close(fd);
    unlink(path);
}

/* Where the node of a device lies says nothing about the device. */
Test(block_file_open, waits_for_no_file_in_memory_but_for_a_device)
{
    static const char *const devices[] = { "/dev/loop0", "/dev/vda", "/dev/sda", "/dev/nvme0n1" };
    autofd int fd = memfd_create("disk", MFD_CLOEXEC);
    char name[32];
    struct block_file f;
    struct error e;
    unsigned opened = 0;

    snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
    cr_assert_eq(block_file_open(&f, name, true, &e), 0, "%s", e.msg);
    cr_expect_eq(f.read_flags, 0);
    block_file_close(&f);
    for (unsigned i = 0; i < sizeof(devices) / sizeof(*devices); i++)
        if (block_file_open(&f, devices[i], true, &e) == 0) {
            opened++;
            cr_expect_neq(f.read_flags, 0, "%s", devices[i]);
            cr_expect_eq(f.write_flags, f.read_flags);
            block_file_close(&f);
        }
    if (opened == 0)
        cr_skip_test("NO DEVICE WAS TESTED: none of the usual can be read here");
}

Test(block_file_open, has_a_page_for_a_unit_where_the_file_system_has_a_large_one)
{
    autofd int fd = memfd_create("disk", MFD_CLOEXEC | MFD_HUGETLB);
    char name[32];
    struct block_file f;
    struct error e;
    struct stat st;

    if (fd < 0)
        cr_skip_test("NO UNIT WAS TESTED: the host has no huge pages");
    cr_assert_eq(fstat(fd, &st), 0);
    cr_assert_gt(st.st_blksize, 65536);
    snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
    cr_assert_eq(block_file_open(&f, name, true, &e), 0, "%s", e.msg);
    cr_expect_eq(f.unit_bytes, 4096);
    block_file_close(&f);
}

BOTH(request_that_comes_and_goes_is_looked_for_twice_a_turn)
{
    toggle_start(ring);
    cr_expect_not(driver_serve(&d), "the guest notifies");
    cr_expect_eq(toggle_stop(), 3, "in vain, whether one came meanwhile, and once more");
    cr_expect_eq(ring_used_idx(ring), 0);
    ring_publish(ring); /* what it is without them */
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 0, SECTOR, 1), VIRTIO_BLK_S_OK);
}
