/*
 * The receive buffers that a guest has offered: popped chains as one list, so that one read fills
 * as many of them as it takes, and each buffer is looked up once.
 *
 * Where each chain begins with a header of the device's (vsock), its place is kept back, and the
 * read goes behind it. This and virtio/queue.h alone hold addresses of guest memory. Owned by its
 * device, under the transport's lock.
 */
#pragma once

#include "virtio/queue.h"

#define RX_BUFFERS_HEADER_MAX 64u

struct rx_buffers {
    uint32_t header_bytes;             /* of each chain; fixed, at most RX_BUFFERS_HEADER_MAX */
    const struct guest_mem *mem;       /* theirs; NULL before there was one */
    uint32_t bytes;                    /* in all buffers, the headers' places not counted */
    unsigned first, last;              /* chains[first..last) are offered */
    unsigned begin, end;               /* buffers[begin..end) are theirs, in order */
    unsigned header_begin, header_end; /* and headers[header_begin..header_end) */
    struct rx_buffers_chain {
        uint16_t head, buffers, headers;
        uint32_t bytes;
    } chains[2 * VIRTQ_SIZE_MAX];
    struct iovec headers[2 * RX_BUFFERS_HEADER_MAX]; /* from the start when the list is empty */
    struct iovec buffers[2 * VIRTQ_SIZE_MAX + 1];    /* one to spare, see rx_buffers_read_frame() */
};

/* Forgets everything. */
void rx_buffers_clear(struct rx_buffers *l);

/* Whether one more chain of any shape can be added. */
bool rx_buffers_has_room(const struct rx_buffers *l);

/* Takes a chain just popped, of more writable bytes than the header, for at most `limit` bytes
 * behind that. There is room for it. The chain is used up. */
void rx_buffers_add(struct rx_buffers *l, struct chain *c, uint32_t limit);

/* Reads from a stream that does not block into all chains, in order: the bytes read, 0 at the end
 * of the stream, or -errno. */
must_check ssize_t rx_buffers_read(const struct rx_buffers *l, int fd);

/* Reads one frame into all chains, or into the next one alone. Its bytes; 0 where it was longer
 * than the buffers, and is lost; or -errno. */
must_check ssize_t rx_buffers_read_frame(struct rx_buffers *l, int fd, bool is_one);

/* The bytes that the next chain takes; there is one. */
static inline uint32_t rx_buffers_next(const struct rx_buffers *l)
{
    return l->chains[l->first].bytes;
}

/* How many chains the first n bytes take. */
unsigned rx_buffers_count(const struct rx_buffers *l, uint32_t n);

/* Writes n bytes into the next chain, `at` bytes behind its start, where a header is kept back or
 * something was read. */
void rx_buffers_put(struct rx_buffers *l, size_t at, const void *src, size_t n);

/* Gives the guest the chains that the first n bytes take, and forgets them. It sees them after
 * virtq_publish(). */
void rx_buffers_give(struct rx_buffers *l, struct virtq *q, uint32_t n);

/* Gives all that is left back to the ring, as if it had never been popped. */
void rx_buffers_unpop(struct rx_buffers *l, struct virtq *q);
