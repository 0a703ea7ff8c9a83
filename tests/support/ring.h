/*
 * The driver's side of a split virtqueue (virtio 1.2, section 2.7): of a driver in a guest as of
 * one in the device's own process. Who includes this says where guest memory is, by ring_at().
 *
 * Nothing is judged here: a test that breaks the rules does so with the same functions, by what it
 * gives them. A word that has no place in memory, or no even address, is not written, and reads as
 * zero.
 */
#pragma once

#include <linux/virtio_ring.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct guest_mem;

struct ring {
    struct guest_mem *mem;      /* NULL in a guest, which is in it */
    uint64_t desc, avail, used; /* guest-physical addresses of its parts */
    uint16_t queue, size;       /* its number in the device, and its entries */
    uint16_t offered, taken;    /* free running: chains given to the device, answers seen */
};

/* Where n bytes of guest memory are, or NULL where there is none. */
static inline void *ring_at(const struct ring *r, uint64_t at, size_t n);

static inline uint64_t ring_avail_at(const struct ring *r, uint16_t i)
{
    return r->avail + offsetof(struct vring_avail, ring) + sizeof(uint16_t) * i;
}

static inline uint64_t ring_used_at(const struct ring *r, uint16_t i)
{
    return r->used + offsetof(struct vring_used, ring) + sizeof(struct vring_used_elem) * i;
}

static inline uint16_t ring_get(const struct ring *r, uint64_t at)
{
    const uint16_t *word = at % sizeof(*word) == 0 ? ring_at(r, at, sizeof(*word)) : NULL;

    return word ? __atomic_load_n(word, __ATOMIC_SEQ_CST) : 0;
}

/* What was written before is there before this is. */
static inline void ring_put(const struct ring *r, uint64_t at, uint16_t value)
{
    uint16_t *word = at % sizeof(*word) == 0 ? ring_at(r, at, sizeof(*word)) : NULL;

    if (word)
        __atomic_store_n(word, value, __ATOMIC_SEQ_CST);
}

/* As it is when the driver has just made it. */
static inline void ring_empty(struct ring *r)
{
    r->offered = r->taken = 0;
    ring_put(r, r->avail + offsetof(struct vring_avail, flags), 0);
    ring_put(r, r->avail + offsetof(struct vring_avail, idx), 0);
    ring_put(r, r->used + offsetof(struct vring_used, flags), 0);
    ring_put(r, r->used + offsetof(struct vring_used, idx), 0);
}

static inline void ring_desc(const struct ring *r, uint16_t i, uint64_t addr, uint32_t len,
                             unsigned flags, unsigned next)
{
    const struct vring_desc d = { addr, len, (uint16_t)flags, (uint16_t)next };
    void *at = ring_at(r, r->desc + sizeof(d) * i, sizeof(d));

    if (at)
        __builtin_memcpy(at, &d, sizeof(d));
}

/* The same; a chain that goes on does so in descriptor i + 1. */
static inline void ring_buffer(const struct ring *r, uint16_t i, uint64_t addr, uint32_t len,
                               unsigned flags)
{
    ring_desc(r, i, addr, len, flags, flags & VRING_DESC_F_NEXT ? i + 1u : 0);
}

/* Gives the device a chain, which it sees once it is published. */
static inline void ring_add(struct ring *r, uint16_t head)
{
    ring_put(r, ring_avail_at(r, r->offered++ % r->size), head);
}

static inline void ring_publish(const struct ring *r)
{
    ring_put(r, r->avail + offsetof(struct vring_avail, idx), r->offered);
}

static inline void ring_offer(struct ring *r, uint16_t head)
{
    ring_add(r, head);
    ring_publish(r);
}

static inline uint16_t ring_used_idx(const struct ring *r)
{
    return ring_get(r, r->used + offsetof(struct vring_used, idx));
}

static inline struct vring_used_elem ring_used(const struct ring *r, uint16_t i)
{
    const void *at = ring_at(r, ring_used_at(r, i % r->size), sizeof(struct vring_used_elem));
    struct vring_used_elem elem = { 0 };

    if (at)
        __builtin_memcpy(&elem, at, sizeof(elem));
    return elem;
}

/* The next answer; false where there is none yet. */
static inline bool ring_take(struct ring *r, struct vring_used_elem *elem)
{
    if (r->taken == ring_used_idx(r))
        return false;
    *elem = ring_used(r, r->taken++);
    return true;
}

/* EVENT_IDX (section 2.7.10): "interrupt me when used passes this", and the device's "notify me
 * when avail does". */
static inline void ring_set_used_event(const struct ring *r, uint16_t value)
{
    ring_put(r, ring_avail_at(r, r->size), value);
}

static inline uint16_t ring_avail_event(const struct ring *r)
{
    return ring_get(r, ring_used_at(r, r->size));
}
