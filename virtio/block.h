/*
 * The block device (virtio 1.2, section 5.2): read, write, flush, get-id, discard and write-zeroes
 * on a block_file.
 *
 * A turn takes requests from the ring as the rate limiter allows and carries them out straight
 * between guest pages and the file. With the Sync engine one after another on the event loop; with
 * the Async engine they are all handed to the kernel in one system call, and the guest is
 * interrupted once for as many as were complete.
 *
 * With the Sync engine the vCPU that notifies tries first, which spares a switch to another thread:
 * at most 4 requests, 128 KiB together, that wait for no disk (RWF_NOWAIT). One that has to wait,
 * is larger, or is no transfer, becomes the current request, as one does that was not done in a
 * turn; and the loop has the next turn. More than 4 are all the loop's.
 *
 * A guest can ask for 4 GiB with one request, and for 256 of them. So a turn moves a bounded number
 * of bytes, and no more are ever under way: a request that is larger is carried out in pieces, one
 * after another, and nothing behind it is taken from the ring until its last one is under way.
 *
 * Who drains the device waits for what is under way and for nothing else. A request that is not
 * done then goes back to the ring whole: it was the last that was taken, so that the place where
 * the device goes on reading the ring says all, also to one that is restored from there. It is
 * begun anew, on the file that there is then: to move the same bytes twice does no harm. A reset
 * waits as long, and forgets it.
 *
 * Beside the transport's and the limiter's state, a guest can observe what follows from the file
 * and the features. A drained device has no request.
 */
#pragma once

#include "virtio/block_async.h"
#include "virtio/block_file.h"
#include "virtio/block_request.h"
#include "virtio/device.h"
#include "virtio/rate_limiter.h"
#include "vmm/base/metrics.h"

/* Bytes that may be under way, and that a turn may move before others get theirs: about a
 * millisecond of copying. */
#define BLOCK_PIECE_BYTES (4u << 20)

/* What a device works on; all borrowed. */
struct block_host {
    struct block_file *file;   /* block_update() puts another one in its place */
    struct block_async *async; /* of that file; NULL: the Sync engine */
    bool offer_flush;          /* whether the guest may ask for durability (Writeback) */
    struct rate_limits limits;
    struct loop *loop;
};

struct block {
    struct virtio_device dev;
    struct block_host host;
    struct virtio_blk_config config; /* section 5.2.4; little-endian, as x86 is */
    struct rate_limiter limiter;
    struct loop_source results;     /* the Async engine's */
    struct block_request *requests; /* one for Sync; untouched memory costs nothing */
    uint16_t idle[VIRTQ_SIZE_MAX];  /* those not in use: the last one given back first */
    unsigned idle_count, request_count;
    struct block_request *current; /* the last that was taken, if not all of it is under way */
    unsigned operations;           /* Async: under way */
    uint32_t bytes_under_way;      /* by these */
    unsigned fold_waits;           /* how often a fold found requests in its way, since it waited */
    struct block_metrics metrics;
};

/* What fails is for want of descriptors or such on the host; then block_fini() all the same. */
must_check int block_init(struct block *b, const struct block_host *host, struct error *e);

/* Lets go of what it borrowed; only for a device whose VM never ran. Works on a zeroed object. */
void block_fini(struct block *b);

/*
 * Changes what the device works on, with the guest running or not: another file, or NULL; other
 * limits, as rate_limiter_update() does, or NULL. All or, on failure (-1), nothing.
 *
 * The file must have been opened as the old one was, which is closed; on failure it is still the
 * caller's. What is under way is finished on the old one. The guest is told of a new
 * configuration, even where the capacity is what it was: what is on the disk is not. Loop thread;
 * with a file, the vCPUs stand still.
 */
must_check int block_update(struct block *b, const struct block_file *file,
                            const struct rate_limits *limits, struct error *e);

/* Waits for what is under way, and lets the rest go on in another turn. Under the lock; loop
 * thread, while the device is not paused. */
void block_await(struct block *b);

/* Folds a piece of the layers below its overlay into that: 1: there is more; 0: there are none any
 * more; or -errno, and the disk is what it was. The guest may run; its own requests go before, and
 * its rate limits are not charged. Loop thread, while the device is not paused. */
must_check int block_fold(struct block *b);
