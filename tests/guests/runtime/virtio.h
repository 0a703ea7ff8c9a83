/*
 * A guest's driver of a virtio-mmio device, low enough for tests that break the rules: rings are
 * plain memory, and every step can be left out.
 */
#pragma once

#include "io.h"
#include "tests/support/driver.h"

#define VIRTIO_BASE 0xc0001000ul
#define VIRTIO_STEP 0x1000ul
#define VIRTIO_GSI  5u

#define F_INDIRECT_DESC FEATURE(VIRTIO_RING_F_INDIRECT_DESC)
#define F_EVENT_IDX     FEATURE(VIRTIO_RING_F_EVENT_IDX)
#define F_VERSION_1     FEATURE(VIRTIO_F_VERSION_1)

#define VIRTQ_SIZE_MAX 256

struct driver {
    uint64_t base;
    unsigned gsi;
    uint64_t features; /* negotiated */
    struct ring queue;
};

/* Addresses of the guest are its pointers. */
static inline void *ring_at(const struct ring *r, uint64_t at, size_t n)
{
    (void)r;
    (void)n;
    return (void *)at;
}

static inline uint32_t reg_read(struct driver *d, uint64_t offset)
{
    return mmio_read32(d->base + offset);
}

static inline void reg_write(struct driver *d, uint64_t offset, uint32_t value)
{
    mmio_write32(d->base + offset, value);
}

/* The parts of a ring, for a driver that spoils them. */
static inline struct vring_desc *desc_of(const struct ring *r)
{
    return (struct vring_desc *)r->desc;
}

static inline volatile struct vring_avail *avail_of(const struct ring *r)
{
    return (volatile struct vring_avail *)r->avail;
}

static inline volatile struct vring_used *used_of(const struct ring *r)
{
    return (volatile struct vring_used *)r->used;
}

static inline void ring_lay(const struct ring *r, uint16_t i, const void *at, uint32_t bytes,
                            unsigned flags)
{
    ring_buffer(r, i, (uint64_t)at, bytes, flags);
}

/* The device in slot n (0: the first); false where none answers. Routes its interrupt. */
bool virtio_find(unsigned slot, struct driver *d);

/* The steps of initialisation that are more than a function of driver.h. virtio_negotiate() takes
 * VERSION_1 and those of `wanted` that are offered; false where the device does not keep
 * FEATURES_OK. */
void virtio_reset(struct driver *d);
bool virtio_negotiate(struct driver *d, uint64_t wanted);
void virtq_init(struct ring *q, uint16_t queue, uint16_t size); /* empty, in memory of its own */

/* All steps, with the one queue d->queue of this size: 0, unless its number was set. */
bool virtio_start(struct driver *d, uint64_t wanted, uint16_t queue_size);

/* Notifies d->queue. */
void virtio_kick(struct driver *d);

/* Interrupts taken from this device; the handler acknowledges what the device shows. */
uint64_t virtio_interrupts(const struct driver *d);

/* Waits until all that was offered is used; false on a time-out. */
bool virtio_wait(struct driver *d);
