/*
 * The block device (virtio 1.2, section 5.2): read, write, flush and get-id on a block_file.
 *
 * Requests are carried out one after another on the event loop, straight between guest pages and
 * the file; a turn moves a bounded number of bytes, and a request larger than that is continued on
 * the next turn.
 */
#pragma once

#include <stdbool.h>

#include "virtio/block_file.h"
#include "virtio/device.h"

struct block_config {  /* section 5.2.4; little-endian, as x86 is */
    uint64_t capacity; /* sectors */
    uint32_t size_max; /* not offered */
    uint32_t seg_max;  /* data descriptors a request */
};

struct block {
    struct virtio_device dev;
    const struct block_file *file;
    struct block_config config;
    struct block_request { /* the one being carried out */
        bool busy;
        uint32_t type;
        uint8_t status;
        uint64_t offset; /* of the next byte in the file */
        uint32_t left;   /* bytes still to move */
    } request;
    struct chain chain; /* its buffers */
};

/* Borrows the open file. offer_flush: whether the guest may ask for durability (Writeback). */
void block_init(struct block *b, const struct block_file *file, bool offer_flush);
