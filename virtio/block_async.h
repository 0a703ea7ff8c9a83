/*
 * The Async engine of a block device: an io_uring on the disk's files, through liburing.
 *
 * Operations are queued, then submitted together in one system call; results come in any order,
 * each with the tag of its operation. The ring's descriptor is readable while there are results.
 * At most VIRTQ_SIZE_MAX operations may be queued or under way. Functions take no lock: the
 * device's transport calls its owner under one.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "virtio/block_file.h"
#include "virtio/queue.h"

struct block_async;

/* Makes a ring for the disk. -1 where the host has no io_uring, or does not let us use it. Heap. */
must_check int block_async_new(struct block_async **out, const struct block_file *f,
                               struct error *e);

/* Works on NULL. Nothing may be under way. */
void block_async_free(struct block_async *a);

/* Goes on with another disk, or with what its overlay has become; nothing may be under way. One has
 * an overlay if the other has. 0, or -errno and the old files stay. */
must_check int block_async_set_file(struct block_async *a, const struct block_file *f);

/* To be watched, edge-triggered, by the loop. */
int block_async_fd(const struct block_async *a);

/* Queue an operation: to move bytes between a place of the disk's files and the chain, which is
 * lent to the kernel until the result comes; to make durable what was written before (by operations
 * with a result: later ones may or may not be covered); to deallocate or zero a range (a mode of
 * fallocate(2)). The result is what preadv, pwritev, fdatasync and fallocate return, or -errno. */
void block_async_read(struct block_async *a, struct chain *c, const struct block_extent *x,
                      void *tag);
void block_async_write(struct block_async *a, struct chain *c, const struct block_extent *x,
                       void *tag);
void block_async_sync(struct block_async *a, const struct block_file *f, void *tag);
void block_async_fallocate(struct block_async *a, int mode, const struct block_extent *x,
                           void *tag);

/* Submits what is queued. False: the host is short of memory for some of it; try again later. */
must_check bool block_async_submit(struct block_async *a);

/* Takes the next result. False: there is none yet. */
must_check bool block_async_take(struct block_async *a, void **tag, int *result);

/* Submits what is queued, and waits until there is a result to take. Something must be under
 * way. */
void block_async_wait(struct block_async *a);
