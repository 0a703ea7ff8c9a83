/*
 * A driver in its device's process, and what tests ask of it.
 */
#pragma once

#include <criterion/criterion.h>
#include <string.h>

#include "tests/support/in_process.h"

static inline void put16(const struct ring *r, uint64_t at, uint16_t value)
{
    cr_assert_eq(gmem_put(r->mem, gpa(at), &value), 0);
}

static inline uint16_t get16(const struct ring *r, uint64_t at)
{
    uint16_t value;

    cr_assert_eq(gmem_get(r->mem, gpa(at), &value), 0);
    return value;
}

/* 1 MiB of guest memory, and rings of `size` entries in it. d->loop may be there already. */
static inline void driver_init(struct driver *d, struct virtio_device *device, uint16_t size)
{
    struct error e;

    cr_assert_eq(gmem_init(&d->mem, 1, HUGE_PAGES_NONE, &e), 0, "%s", e.msg);
    if (d->loop.epoll_fd <= 0)
        cr_assert_eq(loop_init(&d->loop, &e), 0, "%s", e.msg);
    cr_assert_eq(driver_attach(d, device, size, &e), 0, "%s", e.msg);
}

/* Another device takes the place of the one that was saved, over the same guest memory, and is
 * paused. */
static inline void driver_restore(struct driver *d, struct virtio_device *device,
                                  const struct virtio_mmio_state *s)
{
    struct error e;

    virtio_mmio_fini(&d->transport);
    memset(d->page, 0, sizeof(d->page));
    cr_assert_eq(
        virtio_mmio_init(&d->transport, device, gpa(LAYOUT_VIRTIO), d->page, &d->mem, &d->loop, &e),
        0, "%s", e.msg);
    d->transport.pulse = driver_count_edge;
    cr_assert_eq(virtio_mmio_set_state(&d->transport, s), 0);
}

static inline void driver_fini(struct driver *d)
{
    virtio_mmio_fini(&d->transport);
    loop_fini(&d->loop);
    gmem_fini(&d->mem);
}

/* The whole handshake with everything offered. */
static inline void driver_start(struct driver *d)
{
    cr_assert(driver_start_with(d, offered_features(d)));
}

/* One turn of the device, as the event loop gives it. True: it asked for another. */
static inline bool driver_serve_at(struct driver *d, unsigned queue)
{
    struct loop_source *src = &d->transport.notifiers[queue].source;

    src->on_ready(src, EPOLLIN);
    return loop_drain(src->fd) > 0;
}

static inline bool driver_serve(struct driver *d)
{
    return driver_serve_at(d, 0);
}

/* How often the interrupt line was raised since the last call. */
static inline unsigned driver_interrupts(struct driver *d)
{
    unsigned edges = d->edges;

    d->edges = 0;
    return edges;
}
