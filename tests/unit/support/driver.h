/*
 * A guest driver's side of a virtio-mmio device: registers through its bus, kicks through its loop
 * source, interrupts as edges it counts. No KVM is involved.
 */
#pragma once

#include <linux/virtio_mmio.h>

#include "tests/unit/support/ring.h"
#include "virtio/mmio.h"

struct driver {
    struct ring ring;
    struct loop loop;
    struct virtio_mmio transport;
    unsigned edges; /* of the interrupt line */
    _Alignas(8) uint8_t page[LAYOUT_VIRTIO_STEP];
};

#define STATUS_ACK       1u
#define STATUS_DRIVER    2u
#define STATUS_DRIVER_OK 4u
#define STATUS_FEATURES  8u
#define STATUS_RESET_ME  0x40u
#define STATUS_FAILED    0x80u

static inline uint32_t reg_read(struct driver *d, uint64_t offset)
{
    uint32_t value = 0;

    d->transport.bus.ops->read(&d->transport.bus, offset, (uint8_t *)&value, 4);
    return value;
}

static inline void reg_write(struct driver *d, uint64_t offset, uint32_t value)
{
    d->transport.bus.ops->write(&d->transport.bus, offset, (const uint8_t *)&value, 4);
}

static inline void driver_count_edge(const struct kvm_line *line)
{
    struct virtio_mmio *t = owner_of((struct kvm_line *)line, struct virtio_mmio, line);

    owner_of(t, struct driver, transport)->edges++;
}

/* d->loop may be there already. */
static inline void driver_init(struct driver *d, struct virtio_device *device, uint16_t ring_size)
{
    struct error e;

    ring_init(&d->ring, ring_size);
    if (d->loop.epoll_fd <= 0)
        cr_assert_eq(loop_init(&d->loop, &e), 0, "%s", e.msg);
    cr_assert_eq(virtio_mmio_init(&d->transport, device, gpa(0xc0001000u), d->page, &d->ring.mem,
                                  &d->loop, &e),
                 0, "%s", e.msg);
    d->transport.pulse = driver_count_edge;
}

/* Another device takes the place of the one that was saved, over the same guest memory, and is
 * paused. */
static inline void driver_restore(struct driver *d, struct virtio_device *device,
                                  const struct virtio_mmio_state *s)
{
    struct error e;

    virtio_mmio_fini(&d->transport);
    memset(d->page, 0, sizeof(d->page));
    cr_assert_eq(virtio_mmio_init(&d->transport, device, gpa(0xc0001000u), d->page, &d->ring.mem,
                                  &d->loop, &e),
                 0, "%s", e.msg);
    d->transport.pulse = driver_count_edge;
    cr_assert_eq(virtio_mmio_set_state(&d->transport, s), 0);
}

static inline void driver_fini(struct driver *d)
{
    virtio_mmio_fini(&d->transport);
    loop_fini(&d->loop);
    ring_fini(&d->ring);
}

static inline uint64_t offered_features(struct driver *d)
{
    uint64_t features;

    reg_write(d, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
    features = (uint64_t)reg_read(d, VIRTIO_MMIO_DEVICE_FEATURES) << 32;
    reg_write(d, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
    return features | reg_read(d, VIRTIO_MMIO_DEVICE_FEATURES);
}

/* The handshake up to FEATURES_OK; true where the device accepts the features. */
static inline bool driver_negotiate(struct driver *d, uint64_t features)
{
    reg_write(d, VIRTIO_MMIO_STATUS, 0);
    reg_write(d, VIRTIO_MMIO_STATUS, STATUS_ACK);
    reg_write(d, VIRTIO_MMIO_STATUS, STATUS_ACK | STATUS_DRIVER);
    for (uint32_t sel = 0; sel < 2; sel++) {
        reg_write(d, VIRTIO_MMIO_DRIVER_FEATURES_SEL, sel);
        reg_write(d, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)(features >> 32 * sel));
    }
    reg_write(d, VIRTIO_MMIO_STATUS, STATUS_ACK | STATUS_DRIVER | STATUS_FEATURES);
    return reg_read(d, VIRTIO_MMIO_STATUS) & STATUS_FEATURES;
}

static inline void driver_set_queue_at(struct driver *d, uint32_t queue,
                                       const struct virtq_state *st)
{
    reg_write(d, VIRTIO_MMIO_QUEUE_SEL, queue);
    reg_write(d, VIRTIO_MMIO_QUEUE_NUM, st->size);
    reg_write(d, VIRTIO_MMIO_QUEUE_DESC_LOW, (uint32_t)st->desc.v);
    reg_write(d, VIRTIO_MMIO_QUEUE_DESC_HIGH, (uint32_t)(st->desc.v >> 32));
    reg_write(d, VIRTIO_MMIO_QUEUE_AVAIL_LOW, (uint32_t)st->avail.v);
    reg_write(d, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, (uint32_t)(st->avail.v >> 32));
    reg_write(d, VIRTIO_MMIO_QUEUE_USED_LOW, (uint32_t)st->used.v);
    reg_write(d, VIRTIO_MMIO_QUEUE_USED_HIGH, (uint32_t)(st->used.v >> 32));
    reg_write(d, VIRTIO_MMIO_QUEUE_READY, st->ready);
}

static inline void driver_set_queue(struct driver *d, const struct virtq_state *st)
{
    driver_set_queue_at(d, 0, st);
}

static inline void driver_ok(struct driver *d)
{
    reg_write(d, VIRTIO_MMIO_STATUS,
              STATUS_ACK | STATUS_DRIVER | STATUS_FEATURES | STATUS_DRIVER_OK);
}

/* The whole handshake with everything offered, and an empty ring. */
static inline void driver_start(struct driver *d)
{
    struct virtq_state st;

    cr_assert(driver_negotiate(d, offered_features(d)));
    ring_describe(&d->ring, &st);
    driver_set_queue(d, &st);
    driver_ok(d);
    cr_assert_eq(reg_read(d, VIRTIO_MMIO_STATUS), 0xf);
}

/* One turn of the device, as the event loop gives it. True: it asked for another. */
static inline bool driver_kick_at(struct driver *d, unsigned queue)
{
    struct loop_source *src = &d->transport.notifiers[queue].source;

    src->on_ready(src, EPOLLIN);
    return loop_drain(src->fd) > 0;
}

static inline bool driver_kick(struct driver *d)
{
    return driver_kick_at(d, 0);
}

/* How often the interrupt line was raised since the last call. */
static inline unsigned driver_interrupts(struct driver *d)
{
    unsigned edges = d->edges;

    d->edges = 0;
    return edges;
}
