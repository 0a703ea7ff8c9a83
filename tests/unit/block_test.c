#include "virtio/block.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/stat.h>

#include "tests/unit/support/driver.h"

#define SECTOR       512u
#define DISK_SECTORS 64u
#define HEADER       RING_DATA
#define STATUS       (RING_DATA + 0x100)
#define DATA         (RING_DATA + 0x1000)
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
