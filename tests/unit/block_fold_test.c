/*
 * A device whose overlay is folded while its guest reads and writes; on both engines.
 */
#include "virtio/block.h"

#include "tests/unit/support/disk.h"

static char tops[2][sizeof(NEW_FILE)];
static struct drive_config config = { .path_on_host = path, .overlay_path = tops[0] };

static void tell(uint64_t sector, uint32_t n, uint8_t value)
{
    const struct block_extent x = block_file_find(&file, false, sector * SECTOR, n * SECTOR);
    uint8_t bytes[DISK_SECTORS * SECTOR];

    memset(bytes, value, n * SECTOR);
    cr_assert_eq(pwrite(x.fd, bytes, x.bytes, (off_t)x.offset), x.bytes);
    cr_assert_eq(block_overlay_wrote(file.overlay, sector * SECTOR, n * SECTOR), 0);
}

/* The layer has the sectors from 8 to 47. */
static void start_on_a_layer(bool is_async)
{
    struct block_host host = { .file = &file, .offer_flush = true, .loop = &d.loop };
    struct error e;

    make_sectors(path, DISK_SECTORS, 0, 1);
    close(new_file(tops[0]));
    close(new_file(tops[1]));
    cr_assert_eq(block_file_open(&file, path, true, &e), 0, "%s", e.msg);
    cr_assert_eq(block_file_put_overlay(&file, &config, &e), 0, "%s", e.msg);
    tell(8, 40, 0xee);
    cr_assert_eq(block_overlay_freeze(file.overlay, tops[1], file.fd, &e), 0, "%s", e.msg);
    if (is_async)
        cr_assert_eq(block_async_new(&host.async, &file, &e), 0, "%s", e.msg);
    cr_assert_eq(loop_init(&d.loop, &e), 0, "%s", e.msg);
    cr_assert_eq(block_init(&block, &host, &e), 0, "%s", e.msg);
    driver_init(&d, &block.dev, 256);
    driver_start(&d);
}

static void start_sync_on_a_layer(void)
{
    start_on_a_layer(false);
}

static void start_async_on_a_layer(void)
{
    start_on_a_layer(true);
}

static void tear_down_layers(void)
{
    tear_down();
    unlink(tops[0]);
    unlink(tops[1]);
}

TestSuite(sync_fold, .init = start_sync_on_a_layer, .fini = tear_down_layers);
TestSuite(async_fold, .init = start_async_on_a_layer, .fini = tear_down_layers);
#define BOTH_FOLD(name) ENGINES(sync_fold, async_fold, name)

static bool is_in_top(uint64_t sector)
{
    return block_file_find(&file, true, sector * SECTOR, SECTOR).file ==
           block_overlay_files(file.overlay);
}

/* What the guest reads of a sector. */
static uint8_t byte_of(uint64_t sector)
{
    cr_assert_eq(request(VIRTIO_BLK_T_IN, sector, SECTOR, 1), VIRTIO_BLK_S_OK);
    return (uint8_t)get16(ring, DATA);
}

static void write_byte(uint64_t sector, uint8_t value)
{
    for (uint32_t i = 0; i < SECTOR; i += 2)
        put16(ring, DATA + i, (uint16_t)(value << 8 | value));
    cr_assert_eq(request(VIRTIO_BLK_T_OUT, sector, SECTOR, 1), VIRTIO_BLK_S_OK);
}

BOTH_FOLD(what_a_layer_has_is_in_the_top_and_the_guest_goes_on)
{
    struct error e;

    write_byte(9, 0x11);
    write_byte(60, 0x22);
    cr_assert_eq(block_fold(&block), 0);
    cr_expect_eq(block_overlay_files(file.overlay), 1);
    cr_expect(is_in_top(8) && is_in_top(47) && !is_in_top(7) && !is_in_top(48));
    write_byte(10, 0x33);
    for (uint64_t i = 0; i < DISK_SECTORS; i++)
        cr_expect_eq(byte_of(i), i == 9             ? 0x11
                                 : i == 10          ? 0x33
                                 : i == 60          ? 0x22
                                 : i >= 8 && i < 48 ? 0xee
                                                    : i);
    cr_expect_eq(request(VIRTIO_BLK_T_FLUSH, 0, 0, 0), VIRTIO_BLK_S_OK);
    config.overlay_path = tops[1];
    block_overlay_lend(file.overlay);
    block_file_close(&file);
    cr_assert_eq(block_file_open(&file, path, true, &e), 0, "%s", e.msg);
    cr_assert_eq(block_file_put_overlay(&file, &config, &e), 0, "%s", e.msg);
    cr_expect(is_in_top(8) && is_in_top(60) && !is_in_top(7));
    config.overlay_path = tops[0];
}

/* A request that the device has begun. */
static struct block_request *begin_one(struct block_request r)
{
    block.requests[0] = r;
    return &block.requests[0];
}

static void end_one(void)
{
    block.requests[0].is_under_way = false;
    block.operations = 0;
    block.current = NULL;
}

/* What is under way is newer than what would be copied, be it only the end of a sector. */
Test(async_fold, nothing_is_copied_where_a_write_is_under_way)
{
    static const struct block_request each[] = {
        { .type = VIRTIO_BLK_T_OUT, .offset = 0, .left = 8 * SECTOR + 1 },
        { .type = VIRTIO_BLK_T_OUT, .offset = 47 * SECTOR + 511, .left = 1 },
        { .type = VIRTIO_BLK_T_DISCARD, .offset = 20 * SECTOR, .left = SECTOR },
        { .type = VIRTIO_BLK_T_WRITE_ZEROES, .left = DISK_SECTORS * SECTOR },
    };

    for (unsigned i = 0; i < sizeof(each) / sizeof(*each); i++) {
        begin_one(each[i])->is_under_way = true;
        block.operations = 1;
        cr_expect_eq(block_fold(&block), 1);
        cr_expect_not(is_in_top(8), "request %u", i);
        end_one();
    }
    cr_expect_eq(block_fold(&block), 0);
    cr_expect(is_in_top(8) && is_in_top(47));
}

BOTH_FOLD(nothing_is_copied_where_a_write_has_begun)
{
    block.current = begin_one((struct block_request){
        .type = VIRTIO_BLK_T_OUT, .offset = 47 * SECTOR + 100, .left = 412 });
    for (unsigned i = 0; i < 40; i++)
        cr_expect_eq(block_fold(&block), 1);
    cr_expect_not(is_in_top(8));
    end_one();
    cr_expect_eq(block_fold(&block), 0);
}

/* Its first step may not cover what is copied now, and its second would commit that. */
Test(async_fold, a_flush_is_waited_for_if_there_is_always_one)
{
    unsigned turns = 0;

    offer(0, VIRTIO_BLK_T_FLUSH, 0, 0, 0);
    driver_serve(&d);
    if (block.operations) {
        cr_expect_eq(block_fold(&block), 1);
        cr_expect_not(is_in_top(8));
    }
    for (; block_overlay_files(file.overlay) > 1; turns++) {
        cr_assert_lt(turns, 100);
        cr_assert_geq(block_fold(&block), 0);
    }
    kick();
    cr_expect_eq(status_of(0), VIRTIO_BLK_S_OK);
}
