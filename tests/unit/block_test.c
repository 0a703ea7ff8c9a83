#include "virtio/block.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "tests/unit/support/driver.h"

#define SECTOR       512u
#define DISK_SECTORS 64u
#define HEADER       RING_DATA
#define STATUS       (RING_DATA + 0x1000)
#define DATA         (RING_DATA + 0x2000)
#define UNTOUCHED    0xa5u
#define THIN_SECTORS 8192u

static char path[] = "/tmp/mayfly-block-XXXXXX";
static struct block_file file;
static struct block block;
static struct driver d;

struct options {
    bool is_read_only, is_async, has_flush, is_thin;
    struct rate_limits limits;
};

static void make_disk(bool is_thin)
{
    uint8_t sector[SECTOR];
    int fd;

    strcpy(path, "/tmp/mayfly-block-XXXXXX");
    fd = mkstemp(path);
    for (unsigned i = 0; i < DISK_SECTORS; i++) {
        memset(sector, (int)i, sizeof(sector));
        cr_assert_eq(write(fd, sector, sizeof(sector)), sizeof(sector));
    }
    if (is_thin)
        cr_assert_eq(ftruncate(fd, THIN_SECTORS * SECTOR), 0);
    close(fd);
}

static void start(struct options o)
{
    struct block_host host = {
        .file = &file, .offer_flush = o.has_flush, .limits = o.limits, .loop = &d.loop
    };
    struct error e;

    make_disk(o.is_thin);
    cr_assert_eq(block_file_open(&file, path, o.is_read_only, &e), 0, "%s", e.msg);
    if (o.is_async)
        cr_assert_eq(block_async_new(&host.async, &file, &e), 0, "%s", e.msg);
    cr_assert_eq(loop_init(&d.loop, &e), 0, "%s", e.msg);
    cr_assert_eq(block_init(&block, &host, &e), 0, "%s", e.msg);
    driver_init(&d, &block.dev, 256);
    driver_start(&d);
}

static void start_sync(void)
{
    start((struct options){ .has_flush = true });
}

static void start_async(void)
{
    start((struct options){ .has_flush = true, .is_async = true });
}

static void tear_down(void)
{
    struct block_async *async = block.host.async;

    driver_fini(&d);
    block_fini(&block);
    block_async_free(async);
    block_file_close(&file);
    unlink(path);
}

TestSuite(sync, .init = start_sync, .fini = tear_down);
TestSuite(async, .init = start_async, .fini = tear_down);

/* A test of both engines. */
#define BOTH(name)                                                                                 \
    static void name(void);                                                                        \
    Test(sync, name)                                                                               \
    {                                                                                              \
        name();                                                                                    \
    }                                                                                              \
    Test(async, name)                                                                              \
    {                                                                                              \
        name();                                                                                    \
    }                                                                                              \
    static void name(void)

/* Lets the device work until it has answered all it took; true where it asked for another turn. */
static bool kick(void)
{
    bool more = driver_kick(&d);

    while (block.host.async && block.idle_count < block.request_count) {
        struct pollfd results = { .fd = block.results.fd, .events = POLLIN };

        cr_assert_eq(poll(&results, 1, 10000), 1);
        block.results.on_ready(&block.results, EPOLLIN);
        more |= loop_drain(d.transport.kicks[0].source.fd) > 0;
    }
    return more;
}

/* Lays out header, data of `bytes` in `pieces` descriptors, status, from descriptor `first` on. */
static void offer(uint16_t first, uint32_t type, uint64_t sector, uint32_t bytes, unsigned pieces)
{
    struct virtio_blk_outhdr header = { .type = type, .sector = sector };
    uint16_t flags = type == VIRTIO_BLK_T_OUT ? 0 : VRING_DESC_F_WRITE;
    uint64_t at = HEADER + 16u * first;
    uint16_t i = first;
    uint32_t done = 0;

    cr_assert_eq(gmem_put(&d.ring.mem, gpa(at), &header), 0);
    ring_desc(&d.ring, i, at, sizeof(header), VRING_DESC_F_NEXT, i + 1);
    i++;
    for (unsigned k = 0; k < pieces; k++, i++) {
        uint32_t n = k + 1 < pieces ? bytes / pieces : bytes - done;

        ring_desc(&d.ring, i, DATA + done, n, flags | VRING_DESC_F_NEXT, i + 1);
        done += n;
    }
    put16(&d.ring, STATUS + first, UNTOUCHED);
    ring_desc(&d.ring, i, STATUS + first, 1, VRING_DESC_F_WRITE, 0);
    ring_offer(&d.ring, first);
}

static uint8_t status_of(uint16_t first)
{
    return (uint8_t)get16(&d.ring, STATUS + first);
}

/* One request, carried out; its status. */
static uint8_t request(uint32_t type, uint64_t sector, uint32_t bytes, unsigned pieces)
{
    uint16_t before = ring_used_idx(&d.ring);

    offer(0, type, sector, bytes, pieces);
    kick();
    cr_assert_eq((uint16_t)(ring_used_idx(&d.ring) - before), 1);
    return status_of(0);
}

BOTH(reads_sectors_into_any_number_of_buffers)
{
    for (unsigned pieces = 1; pieces <= 254; pieces += 23) {
        cr_assert_eq(request(VIRTIO_BLK_T_IN, 3, 8 * SECTOR, pieces), VIRTIO_BLK_S_OK);
        cr_expect_eq(ring_used(&d.ring, ring_used_idx(&d.ring) - 1).len, 8 * SECTOR + 1);
        for (unsigned i = 0; i < 8; i++)
            cr_expect_eq(get16(&d.ring, DATA + i * SECTOR), (3 + i) * 0x101, "%u pieces", pieces);
    }
}

BOTH(writes_sectors_and_counts_only_the_status)
{
    uint8_t bytes[2 * SECTOR], back[2 * SECTOR];
    int fd = open(path, O_RDONLY);

    for (unsigned i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i * 3);
    cr_assert_eq(gmem_put(&d.ring.mem, gpa(DATA), &bytes), 0);
    cr_assert_eq(request(VIRTIO_BLK_T_OUT, 62, sizeof(bytes), 3), VIRTIO_BLK_S_OK);
    cr_expect_eq(ring_used(&d.ring, 0).len, 1);
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
    put16(&d.ring, STATUS, UNTOUCHED);
    ring_desc(&d.ring, 0, HEADER, 15, VRING_DESC_F_NEXT, 1);
    ring_desc(&d.ring, 1, STATUS, 1, VRING_DESC_F_WRITE, 0);
    ring_offer(&d.ring, 0);
    kick();
    cr_expect_eq(status_of(0), VIRTIO_BLK_S_IOERR);
}

BOTH(takes_a_header_split_over_buffers)
{
    struct virtio_blk_outhdr header = { .type = VIRTIO_BLK_T_IN, .sector = 9 };

    cr_assert_eq(gmem_put(&d.ring.mem, gpa(HEADER), &header), 0);
    ring_desc(&d.ring, 0, HEADER, 5, VRING_DESC_F_NEXT, 1);
    ring_desc(&d.ring, 1, HEADER + 5, 11, VRING_DESC_F_NEXT, 2);
    ring_desc(&d.ring, 2, DATA, SECTOR + 1, VRING_DESC_F_WRITE, 0);
    ring_offer(&d.ring, 0);
    kick();
    cr_expect_eq(get16(&d.ring, DATA), 0x0909);
    cr_expect_eq(get16(&d.ring, DATA + SECTOR) & 0xff, VIRTIO_BLK_S_OK, "the last byte is status");
}

BOTH(request_without_a_status_byte_is_dropped)
{
    ring_desc(&d.ring, 0, HEADER, 16, 0, 0);
    ring_offer(&d.ring, 0);
    kick();
    cr_expect_eq(ring_used_idx(&d.ring), 1);
    cr_expect_eq(ring_used(&d.ring, 0).len, 0);
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 0, SECTOR, 1), VIRTIO_BLK_S_OK, "and the next is served");
}

BOTH(gives_the_disk_s_identity)
{
    struct stat st;
    char want[64] = "", got[BLOCK_ID_BYTES];

    cr_assert_eq(stat(path, &st), 0);
    snprintf(want, sizeof(want), "%lu%lu%lu", st.st_dev, st.st_rdev, st.st_ino);
    cr_assert_eq(request(VIRTIO_BLK_T_GET_ID, 0, BLOCK_ID_BYTES, 1), VIRTIO_BLK_S_OK);
    cr_assert_eq(gmem_get(&d.ring.mem, gpa(DATA), &got), 0);
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
}

BOTH(serves_many_requests_with_one_interrupt)
{
    cr_expect_eq(driver_interrupts(&d), 0);
    ring_set_used_event(&d.ring, 0);
    for (uint16_t i = 0; i < 80; i++)
        offer((uint16_t)(3 * i), VIRTIO_BLK_T_IN, i % DISK_SECTORS, SECTOR, 1);
    kick();
    cr_expect_eq(ring_used_idx(&d.ring), 80);
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
        ring_desc(&d.ring, i, 0x40000, 0x80000, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, i + 1);
    while (kick())
        turns++;
    cr_expect_geq(turns, 127 / 4 - 1);
    cr_expect_eq(status_of(0), VIRTIO_BLK_S_OK);
    cr_expect_eq(ring_used(&d.ring, 0).len, 254 * 0x80000u + 1);
}

Test(sync, forgets_a_request_in_progress_on_reset)
{
    offer(0, VIRTIO_BLK_T_OUT, 0, 0, 254);
    cr_assert_eq(truncate(path, INT64_C(1) << 30), 0);
    file.sectors = (UINT64_C(1) << 30) / SECTOR;
    for (uint16_t i = 1; i <= 254; i++)
        ring_desc(&d.ring, i, 0x40000, 0x80000, VRING_DESC_F_NEXT, i + 1);
    cr_assert(kick());
    cr_assert_not_null(block.current);
    d.ring.avail_idx = 0;
    put16(&d.ring, RING_AVAIL + 2, 0);
    put16(&d.ring, RING_USED + 2, 0);
    driver_start(&d);
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 1, SECTOR, 1), VIRTIO_BLK_S_OK);
}

BOTH(stops_at_a_malformed_chain_until_reset)
{
    ring_desc(&d.ring, 0, UINT64_C(1) << 40, 16, VRING_DESC_F_NEXT, 1);
    ring_offer(&d.ring, 0);
    kick();
    cr_expect_eq(reg_read(&d, VIRTIO_MMIO_STATUS) & STATUS_RESET_ME, STATUS_RESET_ME);
    cr_expect_eq(ring_used_idx(&d.ring), 0);
    d.ring.avail_idx = 0;
    put16(&d.ring, RING_AVAIL + 2, 0);
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
    cr_assert_eq(request(VIRTIO_BLK_T_FLUSH, 0, 0, 0), VIRTIO_BLK_S_OK);
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
    cr_expect_eq(ring_used_idx(&d.ring), 80);
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
    cr_expect_eq(ring_used(&d.ring, 0).len, 1);
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 0, SECTOR, 1), VIRTIO_BLK_S_OK, "and it goes on");
}

BOTH(a_failing_host_disk_is_an_error_the_guest_sees)
{
    work_on("/proc/self/mem", O_RDONLY); /* EIO: nothing is mapped at 0 */
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 0, SECTOR, 1), VIRTIO_BLK_S_IOERR);
    cr_expect_eq(ring_used(&d.ring, 0).len, 1);
    cr_expect_eq(request(VIRTIO_BLK_T_FLUSH, 0, 0, 0), VIRTIO_BLK_S_IOERR);
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
        ring_desc(&d.ring, i, 0x40000, 0x7fe00, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, i + 1);
    kick();
    cr_expect_eq(status_of(0), VIRTIO_BLK_S_OK);
    cr_expect_eq(ring_used(&d.ring, 0).len, 254 * 0x7fe00u + 1);
}

Test(async, takes_results_that_come_late_with_one_interrupt)
{
    struct pollfd results = { .fd = block.results.fd, .events = POLLIN };
    unsigned before;

    cr_assert_eq(request(VIRTIO_BLK_T_OUT, 0, 64 * SECTOR, 1), VIRTIO_BLK_S_OK);
    before = ring_used_idx(&d.ring);
    driver_interrupts(&d);
    ring_set_used_event(&d.ring, (uint16_t)before);
    offer(0, VIRTIO_BLK_T_FLUSH, 0, 0, 0);
    driver_kick(&d);
    while (ring_used_idx(&d.ring) == before) {
        cr_expect_eq(driver_interrupts(&d), 0);
        cr_assert_eq(poll(&results, 1, 10000), 1);
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
        ring_offer(&d.ring, 0);
    while (kick())
        ;
    cr_expect_eq(ring_used_idx(&d.ring), 256);
    cr_expect_eq(block.idle_count, VIRTQ_SIZE_MAX);
}

/* Drain, pause and reset. */

static void fill_ring(uint32_t type)
{
    for (uint16_t i = 0; i < 80; i++)
        offer((uint16_t)(3 * i), type, i % DISK_SECTORS, type == VIRTIO_BLK_T_FLUSH ? 0 : SECTOR,
              type != VIRTIO_BLK_T_FLUSH);
}

BOTH(pause_finishes_what_was_begun_and_takes_up_nothing)
{
    fill_ring(VIRTIO_BLK_T_OUT);
    driver_kick(&d);
    virtio_mmio_pause(&d.transport);
    cr_expect_eq(ring_used_idx(&d.ring), 80);
    offer(0, VIRTIO_BLK_T_IN, 0, SECTOR, 1);
    driver_kick(&d);
    cr_expect_eq(ring_used_idx(&d.ring), 80);
    virtio_mmio_resume(&d.transport);
    kick();
    cr_expect_eq(ring_used_idx(&d.ring), 81);
}

Test(sync, pause_finishes_a_huge_request)
{
    cr_assert_eq(truncate(path, INT64_C(1) << 30), 0);
    file.sectors = (UINT64_C(1) << 30) / SECTOR;
    offer(0, VIRTIO_BLK_T_IN, 0, 0, 254);
    for (uint16_t i = 1; i <= 254; i++)
        ring_desc(&d.ring, i, 0x40000, 0x80000, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, i + 1);
    cr_assert(driver_kick(&d));
    virtio_mmio_pause(&d.transport);
    cr_expect_eq(status_of(0), VIRTIO_BLK_S_OK);
    cr_expect_eq(ring_used(&d.ring, 0).len, 254 * 0x80000u + 1);
}

BOTH(reset_with_requests_under_way_waits_for_them_and_tells_nobody)
{
    fill_ring(VIRTIO_BLK_T_FLUSH);
    driver_kick(&d);
    reg_write(&d, VIRTIO_MMIO_STATUS, 0);
    cr_expect_eq(block.idle_count, block.request_count);
    d.ring.avail_idx = 0;
    put16(&d.ring, RING_AVAIL + 2, 0);
    put16(&d.ring, RING_USED + 2, 0);
    driver_start(&d);
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 5, SECTOR, 1), VIRTIO_BLK_S_OK);
    cr_expect_eq(get16(&d.ring, DATA), 0x0505);
}

/* Another file. */

static char other_path[] = "/tmp/mayfly-block-XXXXXX";

static struct block_file other_file(unsigned sectors)
{
    uint8_t sector[SECTOR];
    struct block_file f;
    struct error e;
    int fd;

    strcpy(other_path, "/tmp/mayfly-block-XXXXXX");
    fd = mkstemp(other_path);
    memset(sector, 0xcc, sizeof(sector));
    for (unsigned i = 0; i < sectors; i++)
        cr_assert_eq(write(fd, sector, sizeof(sector)), sizeof(sector));
    close(fd);
    cr_assert_eq(block_file_open(&f, other_path, false, &e), 0, "%s", e.msg);
    return f;
}

BOTH(swap_gives_the_guest_another_disk_and_tells_it)
{
    struct block_file other = other_file(7);
    uint32_t generation = reg_read(&d, VIRTIO_MMIO_CONFIG_GENERATION);
    char id[BLOCK_ID_BYTES];
    struct error e;

    fill_ring(VIRTIO_BLK_T_OUT);
    driver_kick(&d);
    reg_write(&d, VIRTIO_MMIO_INTERRUPT_ACK, UINT32_MAX);
    cr_assert_eq(block_swap_file(&block, &other, &e), 0, "%s", e.msg);
    cr_expect_eq(ring_used_idx(&d.ring), 80, "nothing is lost");
    cr_expect_neq(reg_read(&d, VIRTIO_MMIO_CONFIG_GENERATION), generation);
    cr_expect(reg_read(&d, VIRTIO_MMIO_INTERRUPT_STATUS) & VIRTIO_MMIO_INT_CONFIG);
    cr_expect_eq(reg_read(&d, VIRTIO_MMIO_CONFIG), 7);
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 6, SECTOR, 1), VIRTIO_BLK_S_OK);
    cr_expect_eq(get16(&d.ring, DATA), 0xcccc);
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 7, SECTOR, 1), VIRTIO_BLK_S_IOERR);
    cr_expect_eq(request(VIRTIO_BLK_T_GET_ID, 0, BLOCK_ID_BYTES, 1), VIRTIO_BLK_S_OK);
    cr_assert_eq(gmem_get(&d.ring.mem, gpa(DATA), &id), 0);
    cr_expect_arr_eq(id, other.id, BLOCK_ID_BYTES);
    cr_expect_eq(unlink(other_path), 0);
}

BOTH(swap_before_the_driver_is_there_interrupts_nobody)
{
    struct block_file other = other_file(9);
    struct error e;

    reg_write(&d, VIRTIO_MMIO_STATUS, 0);
    driver_interrupts(&d);
    cr_assert_eq(block_swap_file(&block, &other, &e), 0, "%s", e.msg);
    cr_expect_eq(driver_interrupts(&d), 0);
    driver_start(&d);
    cr_expect_eq(reg_read(&d, VIRTIO_MMIO_CONFIG), 9);
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 8, SECTOR, 1), VIRTIO_BLK_S_OK);
    cr_expect_eq(unlink(other_path), 0);
}

/* Limits. */

static uint64_t now;

static uint64_t test_clock(void)
{
    return now;
}

static void limit(struct rate_limits limits)
{
    struct error e;

    block.limiter.clock = test_clock;
    block.limiter.counted_ns = now;
    cr_assert_eq(block_set_limits(&block, &limits, &e), 0, "%s", e.msg);
}

BOTH(requests_over_the_limit_wait_and_none_is_lost)
{
    const uint64_t ms = 1000000;

    limit((struct rate_limits){ .has_ops = true, .ops = { .size = 10, .refill_time_ms = 10 } });
    fill_ring(VIRTIO_BLK_T_IN);
    kick();
    cr_expect_eq(ring_used_idx(&d.ring), 10);
    kick();
    cr_expect_eq(ring_used_idx(&d.ring), 10, "kicking does not help");
    for (unsigned passed = 11; passed <= 80; passed++) {
        now += ms;
        block.limiter.timer.on_ready(&block.limiter.timer, EPOLLIN);
        kick();
        cr_expect_eq(ring_used_idx(&d.ring), passed);
    }
    for (uint16_t i = 0; i < 80; i++)
        cr_expect_eq(status_of((uint16_t)(3 * i)), VIRTIO_BLK_S_OK, "request %u", i);
}

BOTH(the_bandwidth_limit_counts_data)
{
    limit((struct rate_limits){ .has_bandwidth = true,
                                .bandwidth = { .size = 4 * SECTOR, .refill_time_ms = 10 } });
    for (unsigned i = 0; i < 100; i++)
        cr_expect_eq(request(VIRTIO_BLK_T_FLUSH, 0, 0, 0), VIRTIO_BLK_S_OK);
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 0, 3 * SECTOR, 1), VIRTIO_BLK_S_OK);
    cr_expect_eq(request(VIRTIO_BLK_T_OUT, 0, SECTOR, 1), VIRTIO_BLK_S_OK);
    offer(0, VIRTIO_BLK_T_IN, 0, SECTOR, 1);
    kick();
    cr_expect_eq(status_of(0), UNTOUCHED);
    limit((struct rate_limits){ .has_bandwidth = true });
    kick();
    cr_expect_eq(status_of(0), VIRTIO_BLK_S_OK, "a limit that goes lets it pass");
}

BOTH(a_request_that_waits_dies_with_a_reset)
{
    limit((struct rate_limits){ .has_ops = true, .ops = { .size = 1, .refill_time_ms = 10 } });
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 0, SECTOR, 1), VIRTIO_BLK_S_OK);
    offer(0, VIRTIO_BLK_T_IN, 0, SECTOR, 1);
    kick();
    reg_write(&d, VIRTIO_MMIO_STATUS, 0);
    block.limiter.timer.on_ready(&block.limiter.timer, EPOLLIN);
    cr_expect_eq(status_of(0), UNTOUCHED);
    cr_expect_eq(block.idle_count, block.request_count);
}

/* Discard and write-zeroes. */

static void start_thin(void)
{
    start((struct options){ .is_thin = true });
}

static void start_thin_async(void)
{
    start((struct options){ .is_thin = true, .is_async = true });
}

TestSuite(thin_sync, .init = start_thin, .fini = tear_down);
TestSuite(thin_async, .init = start_thin_async, .fini = tear_down);

#define THIN(name)                                                                                 \
    static void name(void);                                                                        \
    Test(thin_sync, name)                                                                          \
    {                                                                                              \
        name();                                                                                    \
    }                                                                                              \
    Test(thin_async, name)                                                                         \
    {                                                                                              \
        name();                                                                                    \
    }                                                                                              \
    static void name(void)

static uint8_t zero(uint32_t type, uint64_t sector, uint32_t sectors, uint32_t flags)
{
    struct virtio_blk_outhdr header = { .type = type };
    struct virtio_blk_discard_write_zeroes range = { sector, sectors, flags };

    cr_assert_eq(gmem_put(&d.ring.mem, gpa(HEADER), &header), 0);
    cr_assert_eq(gmem_put(&d.ring.mem, gpa(DATA), &range), 0);
    put16(&d.ring, STATUS, UNTOUCHED);
    ring_desc(&d.ring, 0, HEADER, sizeof(header), VRING_DESC_F_NEXT, 1);
    ring_desc(&d.ring, 1, DATA, sizeof(range), VRING_DESC_F_NEXT, 2);
    ring_desc(&d.ring, 2, STATUS, 1, VRING_DESC_F_WRITE, 0);
    ring_offer(&d.ring, 0);
    kick();
    return status_of(0);
}

static blkcnt_t allocated(void)
{
    struct stat st;

    cr_assert_eq(fstat(file.fd, &st), 0);
    return st.st_blocks;
}

static uint16_t word_of(uint64_t sector)
{
    cr_assert_eq(request(VIRTIO_BLK_T_IN, sector, SECTOR, 1), VIRTIO_BLK_S_OK);
    return get16(&d.ring, DATA);
}

THIN(discard_gives_space_back)
{
    blkcnt_t before = allocated();

    cr_assert_eq(zero(VIRTIO_BLK_T_DISCARD, 8, 32, 0), VIRTIO_BLK_S_OK);
    cr_expect_leq(allocated(), before - 32);
    cr_expect_eq(word_of(7), 0x0707);
    cr_expect_eq(word_of(40), 0x2828);
}

THIN(write_zeroes_zeroes_that_range_alone)
{
    struct stat st;

    cr_assert_eq(zero(VIRTIO_BLK_T_WRITE_ZEROES, 9, 20, 1), VIRTIO_BLK_S_OK);
    for (unsigned i = 9; i < 29; i++)
        cr_expect_eq(word_of(i), 0, "sector %u", i);
    cr_expect_eq(word_of(8), 0x0808);
    cr_expect_eq(word_of(29), 0x1d1d);
    cr_assert_eq(fstat(file.fd, &st), 0);
    cr_expect_eq(st.st_size, THIN_SECTORS * SECTOR);
}

THIN(write_zeroes_without_unmap_keeps_the_space)
{
    blkcnt_t before;
    uint8_t status;

    cr_assert_eq(request(VIRTIO_BLK_T_OUT, 0, 64 * SECTOR, 1), VIRTIO_BLK_S_OK);
    cr_assert_eq(fsync(file.fd), 0);
    before = allocated();
    status = zero(VIRTIO_BLK_T_WRITE_ZEROES, 8, 32, 0);
    if (status == VIRTIO_BLK_S_UNSUPP)
        cr_skip_test("the file system can't zero a range");
    cr_expect_eq(status, VIRTIO_BLK_S_OK);
    cr_expect_geq(allocated(), before);
    cr_expect_eq(word_of(8), 0);
}

THIN(zeroing_is_bounded_and_checked)
{
    static const struct {
        uint32_t type;
        uint64_t sector;
        uint32_t sectors, flags;
        uint8_t status;
    } cases[] = {
        { VIRTIO_BLK_T_DISCARD, 0, 0, 0, VIRTIO_BLK_S_OK },
        { VIRTIO_BLK_T_DISCARD, THIN_SECTORS, 0, 0, VIRTIO_BLK_S_OK },
        { VIRTIO_BLK_T_DISCARD, THIN_SECTORS - 1, 2, 0, VIRTIO_BLK_S_IOERR },
        { VIRTIO_BLK_T_DISCARD, UINT64_MAX, 1, 0, VIRTIO_BLK_S_IOERR },
        { VIRTIO_BLK_T_DISCARD, UINT64_MAX / SECTOR + 1, 1, 0, VIRTIO_BLK_S_IOERR },
        { VIRTIO_BLK_T_DISCARD, 0, UINT32_MAX, 0, VIRTIO_BLK_S_IOERR },
        { VIRTIO_BLK_T_DISCARD, 0, 1, 1, VIRTIO_BLK_S_UNSUPP },
        { VIRTIO_BLK_T_DISCARD, 0, 1, 2, VIRTIO_BLK_S_UNSUPP },
        { VIRTIO_BLK_T_WRITE_ZEROES, 0, 1, 2, VIRTIO_BLK_S_UNSUPP },
        { VIRTIO_BLK_T_WRITE_ZEROES, THIN_SECTORS, 1, 0, VIRTIO_BLK_S_IOERR },
    };

    for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++)
        cr_expect_eq(zero(cases[i].type, cases[i].sector, cases[i].sectors, cases[i].flags),
                     cases[i].status, "case %u", i);
    cr_expect_eq(word_of(1), 0x0101);
    cr_expect_eq(request(VIRTIO_BLK_T_DISCARD, 0, SECTOR, 1), VIRTIO_BLK_S_IOERR, "no range");
}

BOTH(a_disk_without_holes_keeps_its_space)
{
    cr_expect_eq(
        offered_features(&d) & (1u << VIRTIO_BLK_F_DISCARD | 1u << VIRTIO_BLK_F_WRITE_ZEROES), 0);
    cr_expect_eq(zero(VIRTIO_BLK_T_DISCARD, 8, 32, 0), VIRTIO_BLK_S_UNSUPP);
    cr_expect_eq(zero(VIRTIO_BLK_T_WRITE_ZEROES, 8, 32, 0), VIRTIO_BLK_S_UNSUPP);
    cr_expect_eq(word_of(8), 0x0808);
}

THIN(a_thin_disk_that_became_another_keeps_the_other_s_space)
{
    struct block_file other = other_file(64);
    blkcnt_t before;
    struct error e;

    cr_assert_eq(block_swap_file(&block, &other, &e), 0, "%s", e.msg);
    before = allocated();
    cr_expect_eq(zero(VIRTIO_BLK_T_DISCARD, 8, 32, 0), VIRTIO_BLK_S_OK);
    cr_expect_eq(word_of(8), 0xcccc);
    cr_expect_eq(allocated(), before);
    cr_expect_eq(unlink(other_path), 0);
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
    strcpy(path, "/tmp/mayfly-block-XXXXXX");
    cr_assert_not_null(mkdtemp(path));
    rmdir(path);
    cr_assert_eq(mkfifo(path, 0600), 0);
    cr_expect_eq(block_file_open(&f, path, false, &e), -1);
    cr_expect(strstr(e.msg, "Illegal seek"), "%s", e.msg);
    unlink(path);
}

Test(block_file_open, takes_an_empty_file_as_an_empty_disk)
{
    struct block_file f;
    struct error e;
    int fd;

    strcpy(path, "/tmp/mayfly-block-XXXXXX");
    fd = mkstemp(path);
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
