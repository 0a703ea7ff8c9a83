/*
 * The driver's side of a virtqueue in real guest memory: what a test needs to be a guest.
 */
#pragma once

#include <criterion/criterion.h>
#include <string.h>

#include "virtio/queue.h"

#define RING_DESC  0x1000u
#define RING_AVAIL 0x2000u
#define RING_USED  0x3000u
#define RING_DATA  0x10000u /* free for buffers from here on */

struct ring {
    struct guest_mem mem;
    uint64_t base; /* added to the three above: a second ring in the same memory has another */
    uint16_t size;
    uint16_t avail_idx;
};

static inline void put16(struct ring *r, uint64_t at, uint16_t value)
{
    cr_assert_eq(gmem_put(&r->mem, gpa(at), &value), 0);
}

static inline uint16_t get16(const struct ring *r, uint64_t at)
{
    uint16_t value;

    cr_assert_eq(gmem_get(&r->mem, gpa(at), &value), 0);
    return value;
}

/* 1 MiB of guest memory with an empty ring of `size` entries in it. */
static inline void ring_init(struct ring *r, uint16_t size)
{
    struct error e;

    *r = (struct ring){ .size = size };
    cr_assert_eq(gmem_init(&r->mem, 1, HUGE_PAGES_NONE, &e), 0, "%s", e.msg);
}

static inline void ring_fini(struct ring *r)
{
    gmem_fini(&r->mem);
}

static inline void ring_describe(const struct ring *r, struct virtq_state *st)
{
    *st = (struct virtq_state){
        .size = r->size,
        .ready = true,
        .desc = gpa(r->base + RING_DESC),
        .avail = gpa(r->base + RING_AVAIL),
        .used = gpa(r->base + RING_USED),
    };
}

static inline void ring_desc(struct ring *r, uint16_t i, uint64_t addr, uint32_t len,
                             uint16_t flags, uint16_t next)
{
    struct vring_desc d = { .addr = addr, .len = len, .flags = flags, .next = next };

    cr_assert_eq(gmem_put(&r->mem, gpa(r->base + RING_DESC + 16u * i), &d), 0);
}

/* Publishes a chain. */
static inline void ring_offer(struct ring *r, uint16_t head)
{
    put16(r, r->base + RING_AVAIL + 4 + 2u * (r->avail_idx % r->size), head);
    put16(r, r->base + RING_AVAIL + 2, ++r->avail_idx);
}

static inline uint16_t ring_used_idx(const struct ring *r)
{
    return get16(r, r->base + RING_USED + 2);
}

static inline struct vring_used_elem ring_used(const struct ring *r, uint16_t i)
{
    struct vring_used_elem elem;

    cr_assert_eq(gmem_get(&r->mem, gpa(r->base + RING_USED + 4 + 8u * (i % r->size)), &elem), 0);
    return elem;
}

/* The words of EVENT_IDX: used_event is the driver's, avail_event the device's. */
static inline void ring_set_used_event(struct ring *r, uint16_t value)
{
    put16(r, r->base + RING_AVAIL + 4 + 2u * r->size, value);
}

static inline uint16_t ring_avail_event(const struct ring *r)
{
    return get16(r, r->base + RING_USED + 4 + 8u * r->size);
}
