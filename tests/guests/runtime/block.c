#include "block.h"

#include "boot.h"
#include "report.h"

uint16_t block_lay(struct ring *q, uint16_t head, struct block_request *r, uint32_t type,
                   uint64_t sector, const struct block_part *parts, unsigned part_count)
{
    uint16_t at = head;
    uint16_t direction = type == BLOCK_OUT ? 0 : VRING_DESC_F_WRITE;

    r->header = (struct block_header){ type, 0, sector };
    r->status = BLOCK_NONE;
    ring_lay(q, at++, &r->header, sizeof(r->header), VRING_DESC_F_NEXT);
    for (unsigned i = 0; i < part_count; i++)
        ring_lay(q, at++, parts[i].at, parts[i].bytes, VRING_DESC_F_NEXT | direction);
    ring_lay(q, at++, (const void *)&r->status, 1, VRING_DESC_F_WRITE);
    return (uint16_t)(at - head);
}

uint8_t block_do(struct driver *d, uint32_t type, uint64_t sector, void *at, uint32_t bytes)
{
    static struct block_request request;
    struct block_part part = { at, bytes };

    block_lay(&d->queue, 0, &request, type, sector, &part, bytes > 0 ? 1 : 0);
    ring_offer(&d->queue, 0);
    virtio_kick(d);
    return virtio_wait(d) ? request.status : BLOCK_NONE;
}

bool block_reads(struct driver *d, uint64_t number, void *at)
{
    return block_do(d, BLOCK_IN, number, at, SECTOR) == BLOCK_OK && *(uint64_t *)at == number;
}

uint64_t block_capacity(struct driver *d)
{
    return reg_read(d, VIRTIO_MMIO_CONFIG) | (uint64_t)reg_read(d, VIRTIO_MMIO_CONFIG + 4) << 32;
}
