/*
 * Several popped chains that one read from a socket fills: the I/O engine of a device that
 * receives a stream in packets with a header each. The header's place at the start of every chain
 * is kept back until the read has told how much there is to say. Owned by its device, under the
 * transport's lock.
 */
#pragma once

#include "virtio/queue.h"

#define RX_BATCH_CHAINS 64u
/* A chain's buffers always fit an empty batch, however finely they are cut. */
#define RX_BATCH_BUFFERS    VIRTQ_SIZE_MAX
#define RX_BATCH_HEADER_MAX 64u

struct rx_batch {
    uint32_t header_bytes; /* at most RX_BATCH_HEADER_MAX */
    unsigned count;        /* chains */
    unsigned header_count, buffer_count;
    uint32_t bytes; /* of payload that the chains take */
    struct {
        uint16_t head;
        uint16_t header_at, header_count; /* in headers */
        uint32_t bytes;
    } chains[RX_BATCH_CHAINS];
    struct iovec headers[RX_BATCH_CHAINS + RX_BATCH_HEADER_MAX];
    struct iovec buffers[RX_BATCH_BUFFERS];
};

/* An empty batch, for headers of that size. */
void rx_batch_begin(struct rx_batch *b, uint32_t header_bytes);

/* Adds a chain just popped, of more writable bytes than the header; its payload takes at most
 * `limit` bytes. False: there is no room, and nothing has changed. */
must_check bool rx_batch_add(struct rx_batch *b, struct chain *c, uint32_t limit);

/* Reads from a socket that does not block into the chains, in order: the bytes read, 0 at the end
 * of the stream, or -errno. */
must_check ssize_t rx_batch_read(const struct rx_batch *b, int fd);

/* Gives chain i back with its header and `bytes` of payload, at most its share of what was read.
 * Chains are pushed in order; those left over are for virtq_unpop(). */
void rx_batch_push(const struct rx_batch *b, unsigned i, struct virtq *q, const void *header,
                   uint32_t bytes);
