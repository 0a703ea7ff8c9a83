/* Almost valid virtqueues: what a hostile driver puts in memory. */
#pragma once

#include "tests/fuzz/support/memory.h"
#include "tests/support/in_process.h"

#define DATA_AT RING_DATA

static inline void poke(struct guest_mem *m, uint64_t at, const void *bytes, size_t n)
{
    if (gmem_write_(m, gpa(at), bytes, n) < 0)
        return; /* the input aims beside memory */
}

/* A descriptor that may do anything. */
static inline void poke_any_desc(const struct ring *r, struct input *in)
{
    uint8_t at = take8(in), flags = take8(in);
    struct vring_desc d = { take_address(in), take_length(in), flags & 7, take8(in) };

    if (flags >= 0xf8)
        d.flags = take16(in);
    ring_desc(r, at, d.addr, d.len, d.flags, d.next);
}

/* A chain as a good driver lays it: the header, some readable buffers, some writable ones and a
 * writable byte, linked one to the next from descriptor `first` on. The input spoils a link now and
 * then. Returns the descriptor behind it. */
static inline uint16_t poke_chain(const struct ring *r, uint16_t first, struct input *in,
                                  uint64_t header, uint32_t header_bytes)
{
    uint8_t shape = take8(in);
    unsigned readable = shape & 3, writable = shape >> 2 & 3, count = 1 + readable + writable + 1;
    uint16_t i = first;

    for (unsigned n = 0; n < count; n++, i++) {
        bool is_last = n + 1 == count;
        uint32_t len = n == 0 ? header_bytes : is_last ? 1 : take_length(in);

        ring_buffer(r, i, n == 0 ? header : DATA_AT + 0x1000u * n, len,
                    (n > readable ? VRING_DESC_F_WRITE : 0) | (is_last ? 0 : VRING_DESC_F_NEXT));
    }
    if (shape >= 0xe0)
        poke_any_desc(r, in);
    return i;
}

/* Publishes a chain, as a driver would that trusts what it reads of its own index. */
static inline void poke_avail(struct ring *r, uint16_t head)
{
    if (r->size == 0)
        return;
    r->offered = ring_get(r, r->avail + offsetof(struct vring_avail, idx));
    ring_offer(r, head);
}
