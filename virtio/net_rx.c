#include "virtio/net_rx.h"

#include <errno.h>
#include <linux/virtio_net.h>
#include <string.h>

#define NUM_BUFFERS_AT offsetof(struct virtio_net_hdr_mrg_rxbuf, num_buffers)

void net_rx_clear(struct net_rx *rx)
{
    rx->bytes = 0;
    rx->first = rx->last = rx->begin = rx->end = 0;
}

bool net_rx_has_room(const struct net_rx *rx)
{
    return rx->end - rx->begin <= VIRTQ_SIZE_MAX && rx->last - rx->first < VIRTQ_SIZE_MAX;
}

/* Moves what is left to the start of both lists, once in as many buffers as a queue has. */
static void compact(struct net_rx *rx)
{
    memmove(rx->chains, &rx->chains[rx->first], (rx->last - rx->first) * sizeof(*rx->chains));
    memmove(rx->buffers, &rx->buffers[rx->begin], (rx->end - rx->begin) * sizeof(*rx->buffers));
    rx->last -= rx->first;
    rx->end -= rx->begin;
    rx->first = rx->begin = 0;
}

void net_rx_add(struct net_rx *rx, struct chain *c)
{
    uint32_t bytes = c->writable < NET_FRAME_MAX ? c->writable : NET_FRAME_MAX;
    unsigned count;
    const struct iovec *iov = chain_lend_(c, true, bytes, &count);

    if (rx->end > VIRTQ_SIZE_MAX || rx->last > VIRTQ_SIZE_MAX)
        compact(rx);
    memcpy(&rx->buffers[rx->end], iov, count * sizeof(*iov));
    rx->chains[rx->last++] = (struct net_rx_chain){ c->head, (uint16_t)count, bytes };
    rx->end += count;
    rx->bytes += bytes;
    chain_return(c, true, bytes);
}

/* How many bytes at most, and in how many buffers, the first chains take. */
static uint32_t measure(const struct net_rx *rx, unsigned chains, unsigned *buffers)
{
    uint32_t bytes = 0;

    *buffers = 0;
    for (unsigned i = rx->first; i < rx->last && chains > 0 && bytes < NET_FRAME_MAX;
         i++, chains--) {
        *buffers += rx->chains[i].buffers;
        bytes += rx->chains[i].bytes;
    }
    return bytes;
}

/* A tap cuts a frame off where the buffers end and does not say so: a byte of ours behind them
 * shows it. */
ssize_t net_rx_read(struct net_rx *rx, int fd, unsigned chains)
{
    unsigned count;
    uint32_t bytes = measure(rx, chains, &count);
    struct iovec *behind = &rx->buffers[rx->begin + count];
    struct iovec kept = *behind;
    char overflow;
    ssize_t got;

    *behind = (struct iovec){ &overflow, 1 };
    do
        got = readv(fd, &rx->buffers[rx->begin], (int)count + 1);
    while (got < 0 && errno == EINTR);
    *behind = kept;
    if (got < 0)
        return -errno;
    return got > bytes ? 0 : got;
}

/* The buffers may be cut anywhere. */
static void write_count(const struct net_rx *rx, uint16_t count)
{
    const struct iovec *v = &rx->buffers[rx->begin];
    uint8_t bytes[sizeof(count)];
    size_t at = NUM_BUFFERS_AT;

    memcpy(bytes, &count, sizeof(count));
    for (unsigned i = 0; i < sizeof(count); i++, at++) {
        while (at >= v->iov_len)
            at -= v++->iov_len;
        ((uint8_t *)v->iov_base)[at] = bytes[i];
    }
}

unsigned net_rx_deliver(struct net_rx *rx, struct virtq *q, uint32_t bytes)
{
    unsigned count = 0;

    for (uint32_t room = 0; room < bytes; count++)
        room += rx->chains[rx->first + count].bytes;
    write_count(rx, (uint16_t)count);
    for (unsigned i = 0; i < count; i++) {
        const struct net_rx_chain *c = &rx->chains[rx->first++];
        uint32_t part = bytes < c->bytes ? bytes : c->bytes;

        virtq_use(q, c->head, part);
        rx->begin += c->buffers;
        rx->bytes -= c->bytes;
        bytes -= part;
    }
    virtq_publish(q);
    if (rx->first == rx->last)
        net_rx_clear(rx);
    return count;
}
