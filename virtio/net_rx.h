/*
 * The receive buffers that a guest has offered, kept as one list, so that a frame is read straight
 * into as many of them as it fills and each buffer is looked up once. Owned by its device, under
 * the transport's lock.
 */
#pragma once

#include "virtio/queue.h"

/* What one read must have room for: a frame of 64 KiB with its headers (virtio 1.2, section
 * 5.1.6.3.1). */
#define NET_FRAME_MAX 65562u

struct net_rx {
    uint32_t bytes;       /* in all buffers */
    unsigned first, last; /* chains[first..last) are offered */
    unsigned begin, end;  /* buffers[begin..end) are theirs, in order */
    struct net_rx_chain {
        uint16_t head, buffers;
        uint32_t bytes;
    } chains[2 * VIRTQ_SIZE_MAX];
    struct iovec buffers[2 * VIRTQ_SIZE_MAX + 1]; /* one to spare, see net_rx_read() */
};

/* Forgets everything. */
void net_rx_clear(struct net_rx *rx);

/* Whether one more chain of any shape can be added. */
bool net_rx_has_room(const struct net_rx *rx);

/* Takes the writable buffers of a popped chain, which has some. */
void net_rx_add(struct net_rx *rx, struct chain *c);

/* Reads one frame into the first `chains` chains, or all of them. Its bytes; 0 where it was longer
 * than the buffers, and is lost; or -errno. */
must_check ssize_t net_rx_read(struct net_rx *rx, int fd, unsigned chains);

/* Writes the number of buffers into the header of the frame that was read (section 5.1.6.4.1),
 * gives those it fills back to the guest, all at once, and forgets them. Their number. */
unsigned net_rx_deliver(struct net_rx *rx, struct virtq *q, uint32_t bytes);
