/*
 * One request of a guest to a block device (virtio 1.2, section 5.2.6): what it asks for, whether
 * it may, and what became of it. How the file is made to do it is not known here.
 *
 * A request is carried out in pieces, one after another. No locking, and no failure of its own:
 * what is wrong with a request becomes the status that its guest reads.
 */
#pragma once

#include <linux/virtio_blk.h>
#include <stdbool.h>
#include <stdint.h>

#include "virtio/block_file.h"
#include "virtio/queue.h"

/* What one discard or write-zeroes may ask for: some milliseconds of a file system's work. */
#define BLOCK_ZERO_BYTES_MAX (64u << 20)

#define BLOCK_TYPE_NONE UINT32_MAX /* of a request that has none */

struct block_request {
    uint32_t type;
    uint8_t status;
    uint8_t tries;     /* of a piece that the host puts off */
    bool is_synced;    /* a flush: there is no second step, or it is next */
    bool is_under_way; /* the Async engine's: a piece or a sync of it */
    int mode;          /* of fallocate, for discard and write-zeroes */
    uint64_t offset;   /* of the next byte in the file */
    uint32_t left;     /* bytes still to move or to zero */
    uint32_t piece;    /* of these, the bytes under way */
    uint32_t bytes;    /* of a transfer, in all */
    uint64_t begun_us;
    struct chain chain;
};

/* Reads the header of a chain that was just popped, and finds out what is to be done by a driver
 * that took those features: a status that is not OK, or nothing left to do, ends the request. */
void block_request_begin(struct block_request *r, const struct block_file *f, uint64_t features);

static inline bool block_request_is_transfer(const struct block_request *r)
{
    return r->type == VIRTIO_BLK_T_IN || r->type == VIRTIO_BLK_T_OUT;
}

/* Whether the file has to do something for the request. */
static inline bool block_request_needs_file(const struct block_request *r)
{
    return r->left > 0 || (r->type == VIRTIO_BLK_T_FLUSH && r->status == VIRTIO_BLK_S_OK);
}

/* Whether it is a flush in two steps, of which the first is still to come: nothing may be under way
 * beside that, see block_overlay.h. */
static inline bool block_request_is_barrier(const struct block_request *r)
{
    return r->type == VIRTIO_BLK_T_FLUSH && !r->is_synced;
}

/* Whether more of it follows what is under way. */
static inline bool block_request_has_more(const struct block_request *r)
{
    return r->left > r->piece || block_request_is_barrier(r);
}

/* Makes at most `budget` bytes of what is left the piece under way: so many as lie together. */
static inline struct block_extent block_request_piece(struct block_request *r,
                                                      const struct block_file *f, uint32_t budget)
{
    const struct block_extent x = block_file_find(f, r->type == VIRTIO_BLK_T_IN, r->offset,
                                                  r->left < budget ? r->left : budget);

    r->piece = x.bytes;
    return x;
}

/* Accounts for what became of the piece that was under way: bytes moved, or 0 where nothing was to
 * be moved; or -errno, of which a line of the log tells. True: the request is complete. */
must_check bool block_request_settle(struct block_request *r, struct block_file *f, ssize_t result);
