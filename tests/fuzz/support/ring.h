/* Almost valid virtqueues: what a hostile driver puts in memory. */
#pragma once

#include <linux/virtio_ring.h>

#include "tests/fuzz/support/memory.h"
#include "virtio/queue.h"

/* Where each queue's rings are, unless the input says otherwise. */
#define RING_AT(queue)  (0x1000u + 0x4000u * (queue))
#define DESC_AT(queue)  RING_AT(queue)
#define AVAIL_AT(queue) (RING_AT(queue) + 0x1000u)
#define USED_AT(queue)  (RING_AT(queue) + 0x2000u)
#define DATA_AT         0x10000u

static inline struct virtq_state ring_state(unsigned queue, uint16_t size)
{
    return (struct virtq_state){
        .size = size,
        .ready = true,
        .desc = gpa(DESC_AT(queue)),
        .avail = gpa(AVAIL_AT(queue)),
        .used = gpa(USED_AT(queue)),
    };
}

static inline void poke(struct guest_mem *m, uint64_t at, const void *bytes, size_t n)
{
    if (gmem_write_(m, gpa(at), bytes, n) < 0)
        return; /* the input aims beside memory */
}

static inline void poke_desc(struct guest_mem *m, uint64_t table, uint16_t i,
                             const struct vring_desc *d)
{
    poke(m, table + sizeof(*d) * i, d, sizeof(*d));
}

/* A descriptor that may do anything. */
static inline void poke_any_desc(struct guest_mem *m, uint64_t table, struct input *in)
{
    uint8_t at = take8(in), flags = take8(in);
    struct vring_desc d = { take_address(in), take_length(in), flags & 7, take8(in) };

    if (flags >= 0xf8)
        d.flags = take16(in);
    poke_desc(m, table, at, &d);
}

/* A chain as a good driver lays it: the header, some readable buffers, some writable ones and a
 * writable byte, linked one to the next from descriptor `first` on. The input spoils a link now and
 * then. Returns the descriptor behind it. */
static inline uint16_t poke_chain(struct guest_mem *m, uint64_t table, uint16_t first,
                                  struct input *in, uint64_t header, uint32_t header_bytes)
{
    uint8_t shape = take8(in);
    unsigned readable = shape & 3, writable = shape >> 2 & 3, count = 1 + readable + writable + 1;
    uint16_t i = first;

    for (unsigned n = 0; n < count; n++, i++) {
        bool is_last = n + 1 == count;
        struct vring_desc d = {
            .addr = n == 0 ? header : DATA_AT + 0x1000u * n,
            .len = n == 0    ? header_bytes
                   : is_last ? 1
                             : take_length(in),
            .flags = (n > readable ? VRING_DESC_F_WRITE : 0) | (is_last ? 0 : VRING_DESC_F_NEXT),
            .next = i + 1,
        };

        poke_desc(m, table, i, &d);
    }
    if (shape >= 0xe0)
        poke_any_desc(m, table, in);
    return i;
}

/* Publishes a chain, as a driver would that trusts what it reads of its own index. */
static inline void poke_avail(struct guest_mem *m, const struct virtq_state *st, uint16_t head)
{
    uint16_t index;

    if (st->size == 0 || gmem_get(m, gpa(st->avail.v + 2), &index) < 0)
        return;
    poke(m, st->avail.v + 4 + 2u * (index % st->size), &head, sizeof(head));
    index++;
    poke(m, st->avail.v + 2, &index, sizeof(index));
}
