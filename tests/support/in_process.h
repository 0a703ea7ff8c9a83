/*
 * A driver in its device's own process: guest memory is a struct guest_mem, registers are reached
 * through the transport's bus, and the interrupt line counts its edges. No KVM is involved.
 */
#pragma once

#include "tests/support/driver.h"
#include "virtio/mmio.h"

#define RING_DATA 0x10000u /* free for buffers from here on */

struct driver {
    struct guest_mem mem;
    struct ring rings[VIRTIO_QUEUES_MAX];
    struct loop loop;
    struct virtio_mmio transport;
    unsigned edges; /* of the interrupt line */
    _Alignas(8) uint8_t page[LAYOUT_VIRTIO_STEP];
};

static inline void *ring_at(const struct ring *r, uint64_t at, size_t n)
{
    return gmem_host_(r->mem, gpa(at), n);
}

static inline uint32_t reg_read(struct driver *d, uint64_t offset)
{
    struct bus_device *bus = &d->transport.bus;
    uint32_t value = 0;

    bus->ops->read(bus, offset, (uint8_t *)&value, sizeof(value));
    return value;
}

static inline void reg_write(struct driver *d, uint64_t offset, uint32_t value)
{
    struct bus_device *bus = &d->transport.bus;

    bus->ops->write(bus, offset, (const uint8_t *)&value, sizeof(value));
}

/* A ring at the queue's usual place. */
static inline struct ring ring_of(struct guest_mem *m, uint16_t queue, uint16_t size)
{
    const uint64_t at = 0x1000u + 0x4000u * queue;

    return (struct ring){ .mem = m,
                          .desc = at,
                          .avail = at + 0x1000,
                          .used = at + 0x2000,
                          .queue = queue,
                          .size = size };
}

/* What the device is told of it. */
static inline struct virtq_state ring_state(const struct ring *r)
{
    return (struct virtq_state){ .size = r->size,
                                 .ready = true,
                                 .desc = gpa(r->desc),
                                 .avail = gpa(r->avail),
                                 .used = gpa(r->used) };
}

static inline void driver_count_edge(const struct kvm_line *line)
{
    struct virtio_mmio *t = owner_of((struct kvm_line *)line, struct virtio_mmio, line);

    owner_of(t, struct driver, transport)->edges++;
}

/* Puts the device, and a ring of `size` for each of its queues, into memory and loop that are
 * there. */
static inline int driver_attach(struct driver *d, struct virtio_device *device, uint16_t size,
                                struct error *e)
{
    int ret =
        virtio_mmio_init(&d->transport, device, gpa(LAYOUT_VIRTIO), d->page, &d->mem, &d->loop, e);

    d->transport.pulse = driver_count_edge;
    for (uint16_t q = 0; q < device->ops->queue_count; q++)
        d->rings[q] = ring_of(&d->mem, q, size);
    return ret;
}

/* The whole handshake, with rings that are empty; true where the device runs. */
static inline bool driver_start_with(struct driver *d, uint64_t features)
{
    bool is_accepted;

    reg_write(d, VIRTIO_MMIO_STATUS, 0);
    is_accepted = driver_negotiate(d, features);
    for (unsigned q = 0; q < d->transport.device->ops->queue_count; q++) {
        ring_empty(&d->rings[q]);
        driver_set_queue(d, &d->rings[q]);
    }
    driver_ok(d);
    return is_accepted && reg_read(d, VIRTIO_MMIO_STATUS) == 0xf;
}

/* As KVM does when the guest writes QUEUE_NOTIFY: the loop hears of it, or the vCPU's thread. */
static inline void driver_notify(struct driver *d, unsigned queue)
{
    if (d->transport.device->ops->try_serve)
        reg_write(d, VIRTIO_MMIO_QUEUE_NOTIFY, queue);
    else
        loop_signal(d->transport.notifiers[queue].source.fd);
}
