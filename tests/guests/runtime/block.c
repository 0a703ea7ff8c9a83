#include "block.h"

#include "boot.h"
#include "report.h"

uint16_t block_lay(struct virtq *q, uint16_t head, struct block_request *r, uint32_t type,
                   uint64_t sector, const struct block_part *parts, unsigned part_count)
{
    uint16_t at = head;
    uint16_t direction = type == BLOCK_OUT ? 0 : DESC_WRITE;

    r->header = (struct block_header){ type, 0, sector };
    r->status = BLOCK_NONE;
    virtq_set(q, at++, &r->header, sizeof(r->header), DESC_NEXT);
    for (unsigned i = 0; i < part_count; i++)
        virtq_set(q, at++, parts[i].at, parts[i].bytes, DESC_NEXT | direction);
    virtq_set(q, at++, (const void *)&r->status, 1, DESC_WRITE);
    return (uint16_t)(at - head);
}

uint8_t block_do(struct virtio_device *d, uint32_t type, uint64_t sector, void *at, uint32_t bytes)
{
    static struct block_request request;
    struct block_part part = { at, bytes };

    block_lay(&d->queue, 0, &request, type, sector, &part, bytes > 0 ? 1 : 0);
    virtq_offer(&d->queue, 0);
    virtio_kick(d);
    return virtio_wait(d) ? request.status : BLOCK_NONE;
}

uint64_t block_capacity(const struct virtio_device *d)
{
    return virtio_read(d, VIRTIO_CONFIG) | (uint64_t)virtio_read(d, VIRTIO_CONFIG + 4) << 32;
}
