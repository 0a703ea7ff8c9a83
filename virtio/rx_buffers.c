#include "virtio/rx_buffers.h"

#include <errno.h>
#include <string.h>

void rx_buffers_clear(struct rx_buffers *l)
{
    l->bytes = 0;
    l->first = l->last = l->begin = l->end = l->header_begin = l->header_end = 0;
}

bool rx_buffers_has_room(const struct rx_buffers *l)
{
    return l->end - l->begin <= VIRTQ_SIZE_MAX && l->last - l->first < VIRTQ_SIZE_MAX &&
           l->header_end <= RX_BUFFERS_HEADER_MAX;
}

/* Moves what is left to the start of both lists, once in as many buffers as a queue has. */
static void compact(struct rx_buffers *l)
{
    memmove(l->chains, &l->chains[l->first], (l->last - l->first) * sizeof(*l->chains));
    memmove(l->buffers, &l->buffers[l->begin], (l->end - l->begin) * sizeof(*l->buffers));
    l->last -= l->first;
    l->end -= l->begin;
    l->first = l->begin = 0;
}

void rx_buffers_add(struct rx_buffers *l, struct chain *c, uint32_t limit)
{
    const uint32_t room = c->writable - l->header_bytes;
    const uint32_t bytes = room < limit ? room : limit;
    struct rx_buffers_chain *added;

    if (l->end > VIRTQ_SIZE_MAX || l->last > VIRTQ_SIZE_MAX)
        compact(l);
    l->mem = c->mem;
    added = &l->chains[l->last++];
    added->head = c->head;
    added->bytes = bytes;
    added->headers = (uint16_t)chain_take_(c, l->header_bytes, &l->headers[l->header_end]);
    added->buffers = (uint16_t)chain_take_(c, bytes, &l->buffers[l->end]);
    l->header_end += added->headers;
    l->end += added->buffers;
    l->bytes += bytes;
}

/* The first n bytes of the buffers were written. */
static void mark_filled(const struct rx_buffers *l, size_t n)
{
    for (const struct iovec *v = &l->buffers[l->begin]; n; v++) {
        const size_t part = n < v->iov_len ? n : v->iov_len;

        gmem_mark_(l->mem, v->iov_base, part);
        n -= part;
    }
}

/* The kernel writes guest memory here, as many bytes from the first buffer on as it says; also
 * where a frame is lost. */
static ssize_t fill(const struct rx_buffers *l, unsigned count, int fd)
{
    ssize_t got;

    do
        got = readv(fd, &l->buffers[l->begin], (int)count);
    while (got < 0 && errno == EINTR);
    return got < 0 ? -errno : got;
}

ssize_t rx_buffers_read(const struct rx_buffers *l, int fd)
{
    const ssize_t got = fill(l, l->end - l->begin, fd);

    if (got > 0 && l->mem->written)
        mark_filled(l, (size_t)got);
    return got;
}

/* A tap cuts a frame off where the buffers end and does not say so: a byte of ours behind them
 * shows it. */
ssize_t rx_buffers_read_frame(struct rx_buffers *l, int fd, bool is_one)
{
    const struct rx_buffers_chain *next = &l->chains[l->first];
    const unsigned count = is_one ? next->buffers : l->end - l->begin;
    const uint32_t bytes = is_one ? next->bytes : l->bytes;
    struct iovec *behind = &l->buffers[l->begin + count];
    const struct iovec kept = *behind;
    char overflow;
    ssize_t got;

    *behind = (struct iovec){ &overflow, 1 };
    got = fill(l, count + 1, fd);
    *behind = kept;
    if (got > 0 && l->mem->written)
        mark_filled(l, got > bytes ? bytes : (size_t)got);
    return got > bytes ? 0 : got;
}

unsigned rx_buffers_count(const struct rx_buffers *l, uint32_t n)
{
    unsigned count = 0;

    for (uint32_t room = 0; room < n; count++)
        room += l->chains[l->first + count].bytes;
    return count;
}

void rx_buffers_put(struct rx_buffers *l, size_t at, const void *src, size_t n)
{
    iov_write_(l->mem, l->header_bytes ? &l->headers[l->header_begin] : &l->buffers[l->begin], at,
               src, n);
}

void rx_buffers_give(struct rx_buffers *l, struct virtq *q, uint32_t n)
{
    while (n > 0) {
        const struct rx_buffers_chain *c = &l->chains[l->first++];
        const uint32_t part = n < c->bytes ? n : c->bytes;

        virtq_use(q, c->head, l->header_bytes + part);
        l->header_begin += c->headers;
        l->begin += c->buffers;
        l->bytes -= c->bytes;
        n -= part;
    }
    if (l->first == l->last)
        rx_buffers_clear(l);
}

void rx_buffers_unpop(struct rx_buffers *l, struct virtq *q)
{
    for (; l->first < l->last; l->first++)
        virtq_unpop(q);
    rx_buffers_clear(l);
}
