#include "virtio/block.h"

#include "tests/unit/support/disk.h"

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

#define THIN(name) ENGINES(thin_sync, thin_async, name)

static void offer_zero(uint32_t type, uint64_t sector, uint32_t sectors, uint32_t flags)
{
    struct virtio_blk_outhdr header = { .type = type };
    struct virtio_blk_discard_write_zeroes range = { sector, sectors, flags };

    cr_assert_eq(gmem_put(&d.mem, gpa(HEADER), &header), 0);
    cr_assert_eq(gmem_put(&d.mem, gpa(DATA), &range), 0);
    put16(ring, STATUS, UNTOUCHED);
    ring_desc(ring, 0, HEADER, sizeof(header), VRING_DESC_F_NEXT, 1);
    ring_desc(ring, 1, DATA, sizeof(range), VRING_DESC_F_NEXT, 2);
    ring_desc(ring, 2, STATUS, 1, VRING_DESC_F_WRITE, 0);
    ring_offer(ring, 0);
}

static uint8_t zero(uint32_t type, uint64_t sector, uint32_t sectors, uint32_t flags)
{
    offer_zero(type, sector, sectors, flags);
    while (kick())
        ;
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
    return get16(ring, DATA);
}

THIN(a_guest_is_told_how_much_it_may_ask_for_at_once)
{
    const struct virtio_blk_config *config = block.dev.config;

    cr_expect_eq(config->max_discard_sectors, BLOCK_ZERO_BYTES_MAX / SECTOR);
    cr_expect_eq(config->max_discard_seg, 1);
    cr_expect_eq(config->discard_sector_alignment, config->min_io_size);
    cr_expect_eq(config->max_write_zeroes_sectors, BLOCK_ZERO_BYTES_MAX / SECTOR);
    cr_expect_eq(config->max_write_zeroes_seg, 1);
    cr_expect_eq(config->write_zeroes_may_unmap, 1);
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

    cr_assert_eq(block_update(&block, &other, NULL, &e), 0, "%s", e.msg);
    before = allocated();
    cr_expect_eq(zero(VIRTIO_BLK_T_DISCARD, 8, 32, 0), VIRTIO_BLK_S_OK);
    cr_expect_eq(word_of(8), 0xcccc);
    cr_expect_eq(allocated(), before);
    cr_expect_eq(unlink(other_path), 0);
}

#define LONG_BYTES (16u << 20)

/* A long one, of which a turn has done a piece. The rest of the file is a hole, so that what was
 * zeroed shows in what is allocated. */
static void begin_long_zeroing(void)
{
    make_huge(LONG_BYTES);
    offer_zero(VIRTIO_BLK_T_WRITE_ZEROES, 0, LONG_BYTES / SECTOR, 0);
    driver_serve(&d);
    while (block.operations)
        cr_assert(loop_turn(&d.loop, 120000));
    if (status_of(0) == VIRTIO_BLK_S_UNSUPP)
        cr_skip_test("the file system can't zero a range");
}

static uint64_t allocated_bytes(void)
{
    return (uint64_t)allocated() * 512;
}

Test(thin_sync, a_turn_zeroes_no_more_than_it_moves)
{
    const uint64_t slack = 1 << 20; /* of the file system */

    begin_long_zeroing();
    cr_expect_eq(status_of(0), UNTOUCHED);
    cr_expect_leq(allocated_bytes(), BLOCK_PIECE_BYTES + slack);
    virtio_mmio_pause(&d.transport);
    cr_expect_leq(allocated_bytes(), BLOCK_PIECE_BYTES + slack);
    cr_expect_eq(status_of(0), UNTOUCHED);
    virtio_mmio_resume(&d.transport);
    while (kick())
        ;
    cr_expect_eq(status_of(0), VIRTIO_BLK_S_OK);
    cr_expect_geq(allocated_bytes(), LONG_BYTES);
}

Test(thin_async, an_operation_zeroes_no_more_than_a_transfer_moves)
{
    make_huge(LONG_BYTES);
    offer_zero(VIRTIO_BLK_T_DISCARD, 0, LONG_BYTES / SECTOR, 0);
    driver_serve(&d);
    cr_expect_leq(block.bytes_under_way, BLOCK_PIECE_BYTES);
    cr_assert_not_null(block.current);
    cr_expect_geq(block.current->left, LONG_BYTES - BLOCK_PIECE_BYTES);
    virtio_mmio_pause(&d.transport);
    cr_expect_eq(status_of(0), UNTOUCHED);
    virtio_mmio_resume(&d.transport);
    while (kick())
        ;
    cr_expect_eq(status_of(0), VIRTIO_BLK_S_OK);
}

/* What a guest lets go of is not allocated, though it is to read as zeroes. */
THIN(write_zeroes_with_unmap_takes_no_space)
{
    blkcnt_t before = allocated();

    cr_assert_eq(zero(VIRTIO_BLK_T_WRITE_ZEROES, 0, THIN_SECTORS, 1), VIRTIO_BLK_S_OK);
    cr_expect_leq(allocated(), before);
    cr_expect_eq(word_of(9), 0);
}

static void limit_bandwidth(uint64_t bytes)
{
    const struct rate_limits limits = {
        .has_bandwidth = true, .bandwidth = { .size = bytes, .refill_time_ms = 1u << 30 }
    };
    struct error e;

    cr_assert_eq(block_update(&block, NULL, &limits, &e), 0, "%s", e.msg);
}

/* A bucket that isn't filled again while this runs holds one of them. */
THIN(zeroing_is_charged_as_a_transfer_is)
{
    static const uint32_t types[] = { VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES };

    for (unsigned i = 0; i < 2; i++) {
        limit_bandwidth(64 * SECTOR);
        cr_expect_eq(zero(types[i], 0, 64, 0), VIRTIO_BLK_S_OK);
        cr_expect_eq(zero(types[i], 0, 64, 0), UNTOUCHED, "the bucket is empty");
        limit_bandwidth(64 * SECTOR);
        kick();
        cr_expect_eq(status_of(0), VIRTIO_BLK_S_OK);
    }
}
