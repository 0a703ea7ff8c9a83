/* Requests to a virtio block device (VIRTIO 1.2, section 5.2). */
#pragma once

#include "virtio.h"

#define BLOCK_IN     0
#define BLOCK_OUT    1
#define BLOCK_FLUSH  4
#define BLOCK_GET_ID 8

#define BLOCK_OK     0
#define BLOCK_IOERR  1
#define BLOCK_UNSUPP 2
#define BLOCK_NONE   0xff /* what the status byte holds before an answer */

#define F_BLOCK_RO    (1ul << 5)
#define F_BLOCK_FLUSH (1ul << 9)

#define SECTOR 512u

struct block_header {
    uint32_t type, reserved;
    uint64_t sector;
};

/* The parts that are neither data nor ring: one for each request in flight. */
struct block_request {
    struct block_header header;
    volatile uint8_t status;
};

struct block_part {
    void *at;
    uint32_t bytes;
};

/* Lays a request out from descriptor `head` on: header, the parts, status. Returns the number of
 * descriptors used. The direction of the parts is that of the type. */
uint16_t block_lay(struct ring *q, uint16_t head, struct block_request *r, uint32_t type,
                   uint64_t sector, const struct block_part *parts, unsigned part_count);

/* One request from descriptor 0, alone in the queue, to its end. Returns its status, or BLOCK_NONE
 * where no answer came. */
uint8_t block_do(struct driver *d, uint32_t type, uint64_t sector, void *at, uint32_t bytes);

/* Reads a sector; true where it begins with its number. */
bool block_reads(struct driver *d, uint64_t number, void *at);

uint64_t block_capacity(struct driver *d);
