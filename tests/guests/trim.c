/* Gives back what a thin disk holds (VIRTIO 1.2, section 5.2.6): one discard, one write-zeroes. */
#include "runtime/block.h"
#include "runtime/boot.h"
#include "runtime/report.h"

#define BLOCK_DISCARD      11
#define BLOCK_WRITE_ZEROES 13
#define F_BLOCK_DISCARD    (1ul << 13)
#define F_BLOCK_ZEROES     (1ul << 14)

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

void guest_main(void)
{
    if (!expect(virtio_find(0, &disk), "the_disk_answers") ||
        !expect(virtio_start(&disk, F_BLOCK_DISCARD | F_BLOCK_ZEROES, 4), "the_device_starts"))
        return;
    expect_equal(trim(BLOCK_DISCARD, 0, 64), BLOCK_OK, "a_discard_succeeds");
    expect_equal(trim(BLOCK_WRITE_ZEROES, 64, 64), BLOCK_OK, "a_write_zeroes_succeeds");
}
