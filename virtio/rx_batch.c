#include "virtio/rx_batch.h"

#include <errno.h>
#include <string.h>

void rx_batch_begin(struct rx_batch *b, uint32_t header_bytes)
{
    BUG_ON(header_bytes > RX_BATCH_HEADER_MAX);
    b->header_bytes = header_bytes;
    b->count = b->header_count = b->buffer_count = 0;
    b->bytes = 0;
}

/* Moves the chain's next n writable bytes to the end of a list of buffers. False: it is full. */
static bool keep(struct chain *c, uint32_t n, struct iovec *list, unsigned *used, unsigned max)
{
    unsigned count;
    const struct iovec *iov = chain_lend_(c, true, n, &count);
    bool fits = count <= max - *used;

    if (fits) {
        memcpy(&list[*used], iov, count * sizeof(*iov));
        *used += count;
    }
    chain_return(c, true, fits ? n : 0);
    return fits;
}

bool rx_batch_add(struct rx_batch *b, struct chain *c, uint32_t limit)
{
    const unsigned header_at = b->header_count;
    uint32_t bytes = c->writable - b->header_bytes;

    if (bytes > limit)
        bytes = limit;
    if (b->count == RX_BATCH_CHAINS || !keep(c, b->header_bytes, b->headers, &b->header_count,
                                             sizeof(b->headers) / sizeof(*b->headers)))
        return false;
    if (!keep(c, bytes, b->buffers, &b->buffer_count, RX_BATCH_BUFFERS)) {
        b->header_count = header_at;
        return false;
    }
    b->chains[b->count].head = c->head;
    b->chains[b->count].header_at = (uint16_t)header_at;
    b->chains[b->count].header_count = (uint16_t)(b->header_count - header_at);
    b->chains[b->count].bytes = bytes;
    b->bytes += bytes;
    b->count++;
    return true;
}

ssize_t rx_batch_read(const struct rx_batch *b, int fd)
{
    ssize_t got;

    do
        got = readv(fd, b->buffers, (int)b->buffer_count);
    while (got < 0 && errno == EINTR);
    return got < 0 ? -errno : got;
}

void rx_batch_push(const struct rx_batch *b, unsigned i, struct virtq *q, const void *header,
                   uint32_t bytes)
{
    const struct iovec *at = &b->headers[b->chains[i].header_at];
    const uint8_t *from = header;

    for (unsigned left = b->chains[i].header_count; left > 0; left--, at++) {
        memcpy(at->iov_base, from, at->iov_len);
        from += at->iov_len;
    }
    virtq_push_head(q, b->chains[i].head, b->header_bytes + bytes);
}
