/*
 * A block device over a small file, driven as a guest's driver would: each of its 64 sectors is
 * filled with its number. Tests run on the Sync and on the Async engine; and once more on the Sync
 * engine with a vCPU's thread that tries each request before the loop.
 */
#pragma once

#include <poll.h>
#include <stdio.h>
#include <sys/stat.h>

#include "tests/unit/support/driver.h"
#include "tests/unit/support/files.h"
#include "virtio/block.h"

#define SECTOR       512u
#define DISK_SECTORS 64u
#define HEADER       RING_DATA
#define STATUS       (RING_DATA + 0x1000)
#define DATA         (RING_DATA + 0x2000)
#define UNTOUCHED    0xa5u
#define THIN_SECTORS 8192u

static char path[] = NEW_FILE, top[] = NEW_FILE;
static struct block_file file;
static struct block block;
static struct driver d;
static struct ring *const ring = &d.rings[0];
static bool is_tried; /* kick() does so */

struct options {
    bool is_read_only, is_async, has_flush, is_thin, has_overlay;
    struct rate_limits limits;
};

/* A file of so many sectors, each filled with a byte: `first`, first + step, ... */
static inline void make_sectors(char *name, unsigned count, unsigned first, unsigned step)
{
    uint8_t sector[SECTOR];
    int fd = new_file(name);

    for (unsigned i = 0; i < count; i++) {
        memset(sector, (int)(first + step * i), sizeof(sector));
        cr_assert_eq(write(fd, sector, sizeof(sector)), sizeof(sector));
    }
    close(fd);
}

static inline void put_overlay(void)
{
    const struct drive_config config = { .path_on_host = path, .overlay_path = top };
    struct error e;

    close(new_file(top));
    cr_assert_eq(block_file_put_overlay(&file, &config, &e), 0, "%s", e.msg);
}

static inline void start(struct options o)
{
    struct block_host host = {
        .file = &file, .offer_flush = o.has_flush, .limits = o.limits, .loop = &d.loop
    };
    struct error e;

    make_sectors(path, DISK_SECTORS, 0, 1);
    if (o.is_thin)
        cr_assert_eq(truncate(path, THIN_SECTORS * SECTOR), 0);
    cr_assert_eq(block_file_open(&file, path, o.is_read_only, &e), 0, "%s", e.msg);
    if (o.has_overlay)
        put_overlay();
    if (o.is_async)
        cr_assert_eq(block_async_new(&host.async, &file, &e), 0, "%s", e.msg);
    cr_assert_eq(loop_init(&d.loop, &e), 0, "%s", e.msg);
    cr_assert_eq(block_init(&block, &host, &e), 0, "%s", e.msg);
    driver_init(&d, &block.dev, 256);
    driver_start(&d);
}

static inline void start_sync(void)
{
    start((struct options){ .has_flush = true });
}

static inline void start_tried(void)
{
    start_sync();
    is_tried = true;
}

static inline void start_async(void)
{
    start((struct options){ .has_flush = true, .is_async = true });
}

static inline void tear_down(void)
{
    struct block_async *async = block.host.async;

    driver_fini(&d);
    block_fini(&block);
    block_async_free(async);
    block_file_close(&file);
    unlink(path);
    unlink(top);
}

TestSuite(sync, .init = start_sync, .fini = tear_down);
TestSuite(tried, .init = start_tried, .fini = tear_down);
TestSuite(async, .init = start_async, .fini = tear_down);

/* A test of both engines, in a suite of each. */
#define ENGINES(sync_suite, async_suite, name)                                                     \
    static void name(void);                                                                        \
    Test(sync_suite, name)                                                                         \
    {                                                                                              \
        name();                                                                                    \
    }                                                                                              \
    Test(async_suite, name)                                                                        \
    {                                                                                              \
        name();                                                                                    \
    }                                                                                              \
    static void name(void)
#define BOTH(name)                                                                                 \
    static void name(void);                                                                        \
    Test(tried, name)                                                                              \
    {                                                                                              \
        name();                                                                                    \
    }                                                                                              \
    ENGINES(sync, async, name)

/* A notification on a vCPU's thread; true: that leaves the loop something to do. */
static inline bool notify(void)
{
    reg_write(&d, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    return loop_drain(d.transport.notifiers[0].source.fd) > 0;
}

/* Lets the device work until nothing is under way; true where it asked for another turn. */
static inline bool kick(void)
{
    bool more;

    if (is_tried && !block.current && !notify())
        return false;
    more = driver_serve(&d);
    while (block.operations) {
        struct pollfd results = { .fd = block.results.fd, .events = POLLIN };

        cr_assert_eq(poll(&results, 1, 120000), 1);
        block.results.on_ready(&block.results, EPOLLIN);
        more |= loop_drain(d.transport.notifiers[0].source.fd) > 0;
    }
    return more;
}

/* Lays out header, data of `bytes` in `pieces` descriptors, status, from descriptor `first` on. */
static inline void offer(uint16_t first, uint32_t type, uint64_t sector, uint32_t bytes,
                         unsigned pieces)
{
    struct virtio_blk_outhdr header = { .type = type, .sector = sector };
    uint16_t flags = type == VIRTIO_BLK_T_OUT ? 0 : VRING_DESC_F_WRITE;
    uint64_t at = HEADER + 16u * first;
    uint16_t i = first;
    uint32_t done = 0;

    cr_assert_eq(gmem_put(&d.mem, gpa(at), &header), 0);
    ring_buffer(ring, i++, at, sizeof(header), VRING_DESC_F_NEXT);
    for (unsigned k = 0; k < pieces; k++, i++) {
        uint32_t n = k + 1 < pieces ? bytes / pieces : bytes - done;

        ring_buffer(ring, i, DATA + done, n, flags | VRING_DESC_F_NEXT);
        done += n;
    }
    put16(ring, STATUS + first, UNTOUCHED);
    ring_buffer(ring, i, STATUS + first, 1, VRING_DESC_F_WRITE);
    ring_offer(ring, first);
}

static inline uint8_t status_of(uint16_t first)
{
    return (uint8_t)get16(ring, STATUS + first);
}

/* One request, carried out; its status. */
static inline uint8_t request(uint32_t type, uint64_t sector, uint32_t bytes, unsigned pieces)
{
    uint16_t before = ring_used_idx(ring);

    offer(0, type, sector, bytes, pieces);
    kick();
    cr_assert_eq((uint16_t)(ring_used_idx(ring) - before), 1);
    return status_of(0);
}

/* A disk of so many bytes, most of which is a hole. */
static inline void make_huge(uint64_t bytes)
{
    cr_assert_eq(truncate(path, (off_t)bytes), 0);
    file.sectors = bytes / SECTOR;
}

/* What an indirect table makes possible: a request of 254 buffers over the same guest memory, in
 * one place of the ring. More than a turn moves. */
#define HUGE_TABLES  0x80000u
#define HUGE_AT      0x40000u
#define HUGE_EACH    0x8000u
#define HUGE_BUFFERS 254u
#define HUGE_BYTES   (HUGE_BUFFERS * HUGE_EACH)

static inline void offer_huge(uint16_t i, uint32_t type, uint64_t sector)
{
    const struct virtio_blk_outhdr header = { .type = type, .sector = sector };
    const struct ring table = { .mem = &d.mem, .desc = HUGE_TABLES + 0x1000u * i };
    const unsigned flags = type == VIRTIO_BLK_T_OUT ? 0 : VRING_DESC_F_WRITE;

    cr_assert_eq(gmem_put(&d.mem, gpa(HEADER + 16u * i), &header), 0);
    ring_buffer(&table, 0, HEADER + 16u * i, sizeof(header), VRING_DESC_F_NEXT);
    for (uint16_t k = 1; k <= HUGE_BUFFERS; k++)
        ring_buffer(&table, k, HUGE_AT, HUGE_EACH, flags | VRING_DESC_F_NEXT);
    put16(ring, STATUS + 2 * i, UNTOUCHED);
    ring_buffer(&table, HUGE_BUFFERS + 1, STATUS + 2u * i, 1, VRING_DESC_F_WRITE);
    ring_desc(ring, i, table.desc, (HUGE_BUFFERS + 2) * sizeof(struct vring_desc),
              VRING_DESC_F_INDIRECT, 0);
    ring_offer(ring, i);
}

/* 80 requests of a sector, or flushes, in the ring. */
static inline void fill_ring(uint32_t type)
{
    for (uint16_t i = 0; i < 80; i++)
        offer((uint16_t)(3 * i), type, i % DISK_SECTORS, type == VIRTIO_BLK_T_FLUSH ? 0 : SECTOR,
              type != VIRTIO_BLK_T_FLUSH);
}

/* More reads than may be under way at once. */
#define BIG_BYTES    (128u << 10)
#define BIG_REQUESTS 80u
#define BIG_FITTING  (BLOCK_PIECE_BYTES / BIG_BYTES)

static inline void fill_ring_with_big_reads(void)
{
    make_huge(BIG_REQUESTS * (uint64_t)BIG_BYTES);
    for (uint16_t i = 0; i < BIG_REQUESTS; i++)
        offer((uint16_t)(3 * i), VIRTIO_BLK_T_IN, i * (BIG_BYTES / SECTOR), BIG_BYTES, 1);
}

/* A file of so many sectors of 0xcc. */
static char other_path[] = NEW_FILE;

static inline struct block_file other_file(unsigned sectors)
{
    struct block_file f;
    struct error e;

    make_sectors(other_path, sectors, 0xcc, 0);
    cr_assert_eq(block_file_open(&f, other_path, false, &e), 0, "%s", e.msg);
    return f;
}
