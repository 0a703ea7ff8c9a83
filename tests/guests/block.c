/*
 * virtio-block (VIRTIO 1.2, section 5.2) by a driver that follows the rules. The test writes the
 * sector's number to the first word of each sector, and its complement to the last.
 * Command line: sectors=N, and what the drive is: readonly, writeback, noapic, empty, shrinks.
 */
#include "runtime/block.h"
#include "runtime/boot.h"
#include "runtime/interrupts.h"
#include "runtime/report.h"

#define QUEUE     256
#define BATCH     80 /* requests of three descriptors */
#define MANY      128
#define BIG_PAGES 2048

static struct driver disk;
static struct block_request requests[MANY];
static uint8_t *buffer; /* BIG_PAGES pages */

static bool is_sector(const void *at, uint64_t number)
{
    const uint64_t *words = at;
    return words[0] == number && words[63] == ~number;
}

static void check_device(uint64_t sectors)
{
    uint64_t offered = offered_features(&disk);

    expect_equal(block_capacity(&disk), sectors, "the_capacity_is_that_of_the_file");
    expect((offered & F_VERSION_1) != 0, "version_1_is_offered");
    expect((offered & F_EVENT_IDX) != 0, "event_idx_is_offered");
    expect_equal((offered & F_BLOCK_RO) != 0, boot_has("readonly"), "ro_is_offered_where_it_holds");
    expect_equal((offered & F_BLOCK_FLUSH) != 0, boot_has("writeback"),
                 "flush_is_offered_where_there_is_a_write_back_cache");
}

/* A read that has interrupted by the time it returns: the count tells one from the next. */
static bool read_and_take(uint64_t number, void *at, uint32_t bytes)
{
    uint64_t before = virtio_interrupts(&disk);

    return block_do(&disk, BLOCK_IN, number, at, bytes) == BLOCK_OK && is_sector(at, number) &&
           wait_until(virtio_interrupts(&disk) > before);
}

static void check_reads(uint64_t sectors)
{
    unsigned wrong = 0;

    expect(read_and_take(0, buffer, SECTOR), "the_first_sector_reads");
    expect(read_and_take(sectors - 1, buffer, SECTOR), "the_last_sector_reads");
    expect_equal(ring_used(&disk.queue, 1).len, SECTOR + 1, "used_counts_data_and_status");
    expect(read_and_take(3, buffer, 8 * SECTOR), "eight_sectors_read");
    for (unsigned i = 0; i < 8; i++)
        wrong += !is_sector(buffer + i * SECTOR, 3 + i);
    expect_equal(wrong, 0, "eight_sectors_are_in_order");
    expect_equal(virtio_interrupts(&disk), 3, "each_request_interrupts_once");
}

static void check_ranges(uint64_t sectors)
{
    expect_equal(block_do(&disk, BLOCK_IN, sectors, buffer, SECTOR), BLOCK_IOERR,
                 "a_read_behind_the_end_fails");
    expect_equal(block_do(&disk, BLOCK_IN, sectors - 1, buffer, 2 * SECTOR), BLOCK_IOERR,
                 "a_read_across_the_end_fails");
    expect_equal(block_do(&disk, BLOCK_IN, ~0ul, buffer, SECTOR), BLOCK_IOERR,
                 "the_last_sector_number_fails");
    expect_equal(block_do(&disk, BLOCK_IN, 1ul << 55, buffer, SECTOR), BLOCK_IOERR,
                 "a_byte_offset_that_wraps_fails");
    expect_equal(block_do(&disk, BLOCK_OUT, sectors, buffer, SECTOR), BLOCK_IOERR,
                 "a_write_behind_the_end_fails");
    expect_equal(block_do(&disk, BLOCK_OUT, (1ul << 55) - 1, buffer, 2 * SECTOR), BLOCK_IOERR,
                 "a_write_that_wraps_fails");
    expect_equal(block_do(&disk, BLOCK_IN, 0, buffer, SECTOR - 1), BLOCK_IOERR,
                 "less_than_a_sector_fails");
    expect_equal(block_do(&disk, BLOCK_IN, 0, buffer, SECTOR + 1), BLOCK_IOERR,
                 "a_sector_and_a_byte_fails");
    expect(block_do(&disk, BLOCK_IN, 0, buffer, 0) != BLOCK_NONE, "a_read_of_nothing_is_answered");
}

static uint8_t run(uint16_t head, const struct block_request *r)
{
    ring_offer(&disk.queue, head);
    virtio_kick(&disk);
    return virtio_wait(&disk) ? r->status : BLOCK_NONE;
}

static void check_framing(void)
{
    const struct block_part parts[] = { { buffer, 1 },
                                        { buffer + 1, 511 },
                                        { buffer + 512, 1024 },
                                        { buffer + 1536, 7 },
                                        { buffer + 1543, 505 } };
    struct block_request *r = &requests[0];
    struct ring *q = &disk.queue;

    block_lay(q, 0, r, BLOCK_IN, 7, parts, 5);
    expect(run(0, r) == BLOCK_OK && is_sector(buffer, 7) && is_sector(buffer + 1536, 10),
           "data_in_odd_parts_reads");
    r->header = (struct block_header){ BLOCK_IN, 0, 9 };
    ring_lay(q, 0, &r->header, 3, VRING_DESC_F_NEXT);
    ring_lay(q, 1, (uint8_t *)&r->header + 3, 13, VRING_DESC_F_NEXT);
    ring_lay(q, 2, buffer, SECTOR + 1, VRING_DESC_F_WRITE);
    buffer[SECTOR] = BLOCK_NONE;
    ring_offer(q, 0);
    virtio_kick(&disk);
    expect(virtio_wait(&disk) && buffer[SECTOR] == BLOCK_OK && is_sector(buffer, 9),
           "a_split_header_and_a_status_behind_the_data_work");
}

static void check_writes(void)
{
    uint8_t *back = buffer + 8 * SECTOR;

    for (unsigned i = 0; i < 4 * SECTOR; i++)
        buffer[i] = (uint8_t)(i * 7 + i / SECTOR);
    expect_equal(block_do(&disk, BLOCK_OUT, 20, buffer, 4 * SECTOR), BLOCK_OK, "a_write_succeeds");
    expect(block_do(&disk, BLOCK_IN, 20, back, 4 * SECTOR) == BLOCK_OK &&
               memcmp(buffer, back, 4 * SECTOR) == 0,
           "what_was_written_reads_back");
    expect(block_do(&disk, BLOCK_IN, 19, back, SECTOR) == BLOCK_OK && is_sector(back, 19) &&
               block_do(&disk, BLOCK_IN, 24, back, SECTOR) == BLOCK_OK && is_sector(back, 24),
           "the_neighbours_of_a_write_stand");
}

static void check_other_types(void)
{
    static const uint32_t unknown[] = { 2, 3, 5, 10, 11, 13, 0x80000000, 0xffffffff };
    unsigned wrong = 0;

    for (unsigned i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++)
        wrong += block_do(&disk, unknown[i], 0, buffer, SECTOR) != BLOCK_UNSUPP;
    expect_equal(wrong, 0, "unknown_types_are_unsupported");
    expect_equal(block_do(&disk, BLOCK_FLUSH, 0, NULL, 0),
                 boot_has("writeback") ? BLOCK_OK : BLOCK_UNSUPP, "a_flush_is_as_negotiated");
    memset(buffer, 0, 21);
    expect_equal(block_do(&disk, BLOCK_GET_ID, 0, buffer, 20), BLOCK_OK, "get_id_succeeds");
    print("id %s\n", (const char *)buffer);
    expect_equal(block_do(&disk, BLOCK_GET_ID, 0, buffer, 19), BLOCK_IOERR,
                 "get_id_wants_twenty_bytes");
}

/* Many requests with one kick: all are answered, each head once. */
static void check_batch(void)
{
    uint64_t seen[VIRTQ_SIZE_MAX / 64] = { 0 };
    unsigned wrong = 0, heads = 0;
    uint16_t first = disk.queue.offered;

    for (uint16_t i = 0; i < BATCH; i++) {
        struct block_part part = { buffer + i * SECTOR, SECTOR };
        block_lay(&disk.queue, (uint16_t)(i * 3), &requests[i], BLOCK_IN, i * 11u, &part, 1);
        ring_offer(&disk.queue, (uint16_t)(i * 3));
    }
    virtio_kick(&disk);
    expect(virtio_wait(&disk), "a_batch_is_answered");
    for (uint16_t i = 0; i < BATCH; i++) {
        uint32_t head = ring_used(&disk.queue, (uint16_t)(first + i)).id;
        seen[head / 64 % 4] |= 1ul << head % 64;
        uint64_t number = i * 11u >= 20 && i * 11u < 24 ? ~0ul : i * 11u; /* written above */
        if (number != ~0ul)
            wrong += requests[i].status != BLOCK_OK || !is_sector(buffer + i * SECTOR, number);
    }
    for (unsigned i = 0; i < BATCH * 3; i += 3)
        heads += (seen[i / 64] >> i % 64 & 1) != 0;
    expect_equal(heads, BATCH, "each_head_of_a_batch_comes_back");
    expect_equal(wrong, 0, "each_request_of_a_batch_has_its_own_data");
}

/* The 16-bit indices wrap: the descriptors stay as they are, only the index moves. */
static void check_index_wrap(void)
{
    struct ring *q = &disk.queue;

    expect(virtio_start(&disk, 0, QUEUE), "the_device_starts_without_event_idx");
    for (uint16_t i = 0; i < MANY; i++) {
        block_lay(q, (uint16_t)(i * 2), &requests[i], 99, 0, NULL, 0);
        avail_of(q)->ring[i] = avail_of(q)->ring[MANY + i] = (uint16_t)(i * 2);
    }
    for (unsigned i = 0; i < 65536 / MANY + 2; i++) {
        q->offered = (uint16_t)(q->offered + MANY);
        ring_publish(q);
        virtio_kick(&disk);
        if (!virtio_wait(&disk))
            break;
    }
    expect(ring_used_idx(q) == 2 * MANY && requests[0].status == BLOCK_UNSUPP, "the_indices_wrap");
}

static void check_small_queue(void)
{
    unsigned wrong = 0;

    expect(virtio_start(&disk, 0, 4), "the_device_starts_with_a_queue_of_four");
    for (unsigned i = 0; i < 50; i++)
        wrong += block_do(&disk, BLOCK_IN, i * 31, buffer, SECTOR) != BLOCK_OK ||
                 !is_sector(buffer, i * 31);
    expect_equal(wrong, 0, "a_small_ring_wraps_many_times");
}

/* With the interrupt line masked the status register alone tells what the device wanted. */
static uint32_t interrupt_status_after(unsigned count)
{
    unsigned answered = 0;

    for (unsigned i = 0; i < count; i++)
        answered += block_do(&disk, BLOCK_IN, i, buffer, SECTOR) == BLOCK_OK;
    return answered == count ? reg_read(&disk, VIRTIO_MMIO_INTERRUPT_STATUS) : 0xdead;
}

static void check_suppression(void)
{
    ioapic_mask(disk.gsi);
    expect(virtio_start(&disk, F_EVENT_IDX, QUEUE), "the_device_starts_with_event_idx");
    ring_set_used_event(&disk.queue, 3);
    expect_equal(interrupt_status_after(3), 0, "event_idx_holds_interrupts_back");
    (void)interrupt_status_after(1);
    expect(wait_until(reg_read(&disk, VIRTIO_MMIO_INTERRUPT_STATUS) == 1),
           "event_idx_lets_one_through");
    expect(wait_until(ring_avail_event(&disk.queue) == 4), "avail_event_asks_for_the_next_kick");

    expect(virtio_start(&disk, 0, QUEUE), "the_device_starts_again");
    avail_of(&disk.queue)->flags = 1; /* NO_INTERRUPT */
    expect_equal(interrupt_status_after(2), 0, "the_flag_holds_interrupts_back");
    avail_of(&disk.queue)->flags = 0;
    (void)interrupt_status_after(1);
    expect(wait_until(reg_read(&disk, VIRTIO_MMIO_INTERRUPT_STATUS) == 1),
           "without_the_flag_one_comes");
    ioapic_route(disk.gsi);
}

/* More than the device does in one turn, in one request. */
static void check_big(void)
{
    unsigned wrong = 0;
    uint32_t bytes = BIG_PAGES * 4096u;

    expect_equal(block_do(&disk, BLOCK_IN, 64, buffer, bytes), BLOCK_OK, "eight_mebibytes_read");
    for (uint64_t i = 0; i < bytes / SECTOR; i += 61)
        wrong += !is_sector(buffer + i * SECTOR, 64 + i);
    expect_equal(wrong, 0, "eight_mebibytes_are_in_order");
}

static void check_read_only(void)
{
    memset(buffer, 0xee, SECTOR);
    expect_equal(block_do(&disk, BLOCK_OUT, 0, buffer, SECTOR), BLOCK_IOERR, "a_write_is_refused");
    expect(block_do(&disk, BLOCK_IN, 0, buffer, SECTOR) == BLOCK_OK && is_sector(buffer, 0),
           "a_refused_write_writes_nothing");
}

static void check_pic(void)
{
    unsigned wrong = 0;

    ioapic_mask(disk.gsi);
    pic_enable((uint16_t) ~(1u << disk.gsi));
    for (unsigned i = 0; i < 5; i++)
        wrong += !read_and_take(i, buffer, SECTOR);
    expect_equal(wrong, 0, "reads_work_without_the_ioapic");
    expect_equal(virtio_interrupts(&disk), 5, "interrupts_arrive_through_the_pic");
}

static void check_shrinking(uint64_t sectors)
{
    wait_for_host("shrink");
    expect_equal(block_do(&disk, BLOCK_IN, sectors - 1, buffer, SECTOR), BLOCK_IOERR,
                 "a_read_where_the_file_has_gone_fails");
    expect(block_do(&disk, BLOCK_IN, 0, buffer, SECTOR) == BLOCK_OK && is_sector(buffer, 0),
           "what_is_left_of_the_file_reads");
}

void guest_main(void)
{
    uint64_t sectors = boot_number("sectors", 0);

    buffer = alloc_pages(BIG_PAGES);
    if (!expect(virtio_find(0, &disk), "the_disk_answers"))
        return;
    check_device(sectors);
    if (!expect(virtio_start(&disk, F_BLOCK_RO | F_BLOCK_FLUSH, QUEUE), "the_device_starts"))
        return;
    if (boot_has("noapic")) {
        check_pic();
    } else if (boot_has("shrinks")) {
        check_shrinking(sectors);
    } else if (boot_has("empty")) {
        expect_equal(block_do(&disk, BLOCK_IN, 0, buffer, SECTOR), BLOCK_IOERR,
                     "an_empty_disk_has_nothing_to_read");
    } else {
        check_reads(sectors);
        check_ranges(sectors);
        check_framing();
        if (boot_has("readonly"))
            check_read_only();
        else
            check_writes();
        check_other_types();
        check_batch();
        check_big();
        check_suppression();
        check_small_queue();
        check_index_wrap();
    }
}
