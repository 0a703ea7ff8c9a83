/*
 * Gives back what a thin disk holds (VIRTIO 1.2, section 5.2.6): one discard, one write-zeroes.
 * Command line: zeroes or discards, to do nothing else, over the whole disk, round after round.
 */
#include "runtime/block.h"
#include "runtime/boot.h"
#include "runtime/report.h"

#define BLOCK_DISCARD      11
#define BLOCK_WRITE_ZEROES 13
#define F_BLOCK_DISCARD    (1ul << 13)
#define F_BLOCK_ZEROES     (1ul << 14)

#define PIECE 512u /* sectors */

static struct driver disk;

static uint8_t trim(uint32_t type, uint64_t sector, uint32_t count)
{
    static struct block_request request;
    static struct {
        uint64_t sector;
        uint32_t count, flags;
    } range;

    range.sector = sector;
    range.count = count;
    request.header = (struct block_header){ .type = type };
    request.status = BLOCK_NONE;
    ring_lay(&disk.queue, 0, &request.header, sizeof(request.header), VRING_DESC_F_NEXT);
    ring_lay(&disk.queue, 1, &range, sizeof(range), VRING_DESC_F_NEXT);
    ring_lay(&disk.queue, 2, (const void *)&request.status, 1, VRING_DESC_F_WRITE);
    ring_offer(&disk.queue, 0);
    virtio_kick(&disk);
    return virtio_wait(&disk) ? request.status : BLOCK_NONE;
}

static void go_round(uint32_t type)
{
    const uint64_t sectors = block_capacity(&disk);

    print("going round\n");
    for (uint64_t at = 0;; at = at + 2 * PIECE <= sectors ? at + PIECE : 0)
        if (trim(type, at, PIECE) != BLOCK_OK)
            give_up("each_request_succeeds", "one failed");
}

void guest_main(void)
{
    if (!expect(virtio_find(0, &disk), "the_disk_answers") ||
        !expect(virtio_start(&disk, F_BLOCK_DISCARD | F_BLOCK_ZEROES, 4), "the_device_starts"))
        return;
    if (boot_has("zeroes") || boot_has("discards"))
        go_round(boot_has("zeroes") ? BLOCK_WRITE_ZEROES : BLOCK_DISCARD);
    expect_equal(trim(BLOCK_DISCARD, 0, 64), BLOCK_OK, "a_discard_succeeds");
    expect_equal(trim(BLOCK_WRITE_ZEROES, 64, 64), BLOCK_OK, "a_write_zeroes_succeeds");
}
