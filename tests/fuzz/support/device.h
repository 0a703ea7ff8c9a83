/*
 * A hostile driver for any virtio device: the input is a program of register writes, memory writes,
 * chains, kicks and turns of the event loop. It runs alone, so that it can be repeated, or with a
 * second thread that scribbles over the rings all the while.
 *
 * A fuzzer of a device makes the device, gives `hooks` for what only that device has, and calls
 * hostile_run(). See block_fuzz.c.
 */
#pragma once

#include <pthread.h>

#include "tests/fuzz/support/ring.h"
#include "vmm/base/log.h"

struct hostile {
    struct driver d; /* its rings are where chains are put */
    struct input *in;
    pthread_t scribbler;
    bool stop; /* atomic */
    uint32_t seed;
};

struct hostile_hooks {
    /* Writes a request's header at a guest address; returns its length. */
    uint32_t (*header)(struct hostile *h, uint64_t at);
    /* Something else that happens to the device (the API, its host side). */
    void (*event)(struct hostile *h);
    /* What must hold whenever the device is drained. */
    void (*check_drained)(struct hostile *h);
};

#define HEADERS_AT (DATA_AT + 0x8000u)
#define TABLE_AT   (DATA_AT + 0xc000u) /* an indirect one */
#define TURNS_MAX  64                  /* of the event loop, after each step of the program */

static inline void start_device(struct hostile *h, uint64_t features, const uint16_t *sizes)
{
    for (uint16_t q = 0; q < h->d.transport.device->ops->queue_count; q++)
        h->d.rings[q] = ring_of(&h->d.mem, q, sizes[q]);
    (void)driver_start_with(&h->d, features);
}

/* Serves what is ready now, until nothing is or it was a lot. */
static inline void serve_loop(struct hostile *h)
{
    for (unsigned turn = 0; turn < TURNS_MAX && loop_turn(&h->d.loop, 0); turn++)
        ;
}

static inline uint16_t take_queue(struct hostile *h)
{
    return (uint16_t)(take8(h->in) % h->d.transport.device->ops->queue_count);
}

static inline struct ring *take_ring(struct hostile *h)
{
    return &h->d.rings[take_queue(h)];
}

static inline void step_chain(struct hostile *h, const struct hostile_hooks *hooks)
{
    uint8_t count = take8(h->in);
    struct ring *r = take_ring(h);
    uint16_t head = take8(h->in);

    for (count &= 15; count > 0; count--) {
        uint64_t at = HEADERS_AT + 64u * (head % 64u);
        uint16_t next = poke_chain(r, head, h->in, at, hooks->header(h, at));

        poke_avail(r, head);
        head = next;
    }
}

static inline void step_indirect(struct hostile *h, const struct hostile_hooks *hooks)
{
    struct ring *r = take_ring(h);
    uint16_t head = take8(h->in);
    const struct ring table = { .mem = &h->d.mem, .desc = TABLE_AT };
    uint16_t end = poke_chain(&table, 0, h->in, HEADERS_AT, hooks->header(h, HEADERS_AT));
    uint32_t bytes = (uint32_t)sizeof(struct vring_desc) * end;
    uint16_t flags = VRING_DESC_F_INDIRECT;

    if (take8(h->in) >= 0xe0) {
        bytes = take_length(h->in);
        flags = take16(h->in);
    }
    ring_desc(r, head, TABLE_AT, bytes, flags, 0);
    poke_avail(r, head);
}

static inline void step_register(struct hostile *h)
{
    struct bus_device *bus = &h->d.transport.bus;
    uint8_t how = take8(h->in);
    uint64_t offset = how & 0x80 ? take16(h->in) % (LAYOUT_VIRTIO_STEP - 8) : 4u * (how % 64u);
    uint8_t bytes[8];

    take_bytes(h->in, bytes, sizeof(bytes));
    bus->ops->write(bus, offset, bytes, how & 0x40 ? 1u << (how & 3) : 4);
    bus->ops->read(bus, offset, bytes, 1u << (how & 3));
}

static inline void step_start(struct hostile *h)
{
    uint8_t how = take8(h->in);
    uint64_t features = h->d.transport.device->offered;
    uint16_t sizes[VIRTIO_QUEUES_MAX];

    if (how & 0x80)
        features &= take64(h->in) | FEATURE(VIRTIO_F_VERSION_1);
    for (unsigned q = 0; q < VIRTIO_QUEUES_MAX; q++)
        sizes[q] = (uint16_t)(1u << (how >> q & 15));
    start_device(h, features, sizes);
}

static inline void step_queue(struct hostile *h)
{
    struct ring *r = take_ring(h);

    r->size = take16(h->in);
    r->desc = take_address(h->in);
    r->avail = take_address(h->in);
    r->used = take_address(h->in);
    driver_set_queue(&h->d, r);
    if (!(take8(h->in) & 1))
        reg_write(&h->d, VIRTIO_MMIO_QUEUE_READY, 0);
}

static inline void step_pause(struct hostile *h, const struct hostile_hooks *hooks)
{
    virtio_mmio_pause(&h->d.transport);
    hooks->check_drained(h);
    virtio_mmio_resume(&h->d.transport);
}

static inline void step(struct hostile *h, const struct hostile_hooks *hooks)
{
    uint8_t words[16];
    struct ring *r;

    switch (take8(h->in) % 12) {
    case 0:
    case 1: step_chain(h, hooks); break;
    case 2: step_indirect(h, hooks); break;
    case 3: driver_notify(&h->d, take_queue(h)); break;
    case 4: step_register(h); break;
    case 5: step_start(h); break;
    case 6: step_queue(h); break;
    case 7: poke_any_desc(take_ring(h), h->in); break;
    case 8:
        take_bytes(h->in, words, sizeof(words));
        poke(&h->d.mem, take_address(h->in), words, sizeof(words));
        break;
    case 9: step_pause(h, hooks); break;
    case 10: hooks->event(h); break;
    default: r = take_ring(h); poke_avail(r, take8(h->in));
    }
    serve_loop(h);
}

/* The other vCPU: writes into the rings and the headers, for as long as the program runs. */
static inline void *scribble(void *arg)
{
    struct hostile *h = arg;
    uint32_t state = h->seed;
    uint8_t *low = h->d.mem.regions[0].host;

    while (!__atomic_load_n(&h->stop, __ATOMIC_RELAXED)) {
        uint32_t at;

        state = state * 1664525 + 1013904223;
        at = state >> 8 & 0x3fff;
        if (state & 0x80)
            at = HEADERS_AT + (at & 0x7ff);
        __atomic_store_n(low + at, (uint8_t)(state >> 24), __ATOMIC_RELAXED);
    }
    return NULL;
}

/* Before the device is made, which needs the loop. */
static inline void hostile_init(struct hostile *h, struct input *in)
{
    struct error e;

    *h = (struct hostile){ .d.mem = *zeroed_memory(), .in = in };
    log_set_options((struct log_options){ .level = LOG_OFF });
    MUST(loop_init(&h->d.loop, &e) == 0);
}

static inline void hostile_attach(struct hostile *h, struct virtio_device *d)
{
    struct error e;

    MUST(driver_attach(&h->d, d, 256, &e) == 0);
}

/* Attaches the device, runs the program, and takes the transport apart. The loop and the device are
 * the caller's. */
static inline void hostile_run(struct hostile *h, struct virtio_device *d,
                               const struct hostile_hooks *hooks)
{
    bool has_scribbler;

    hostile_attach(h, d);
    MUST(driver_start_with(&h->d, d->offered));
    h->seed = take8(h->in);
    has_scribbler = h->seed >= 0xf0;
    if (has_scribbler)
        MUST(pthread_create(&h->scribbler, NULL, scribble, h) == 0);
    while (h->in->left > 0)
        step(h, hooks);
    reg_write(&h->d, VIRTIO_MMIO_STATUS, 0);
    hooks->check_drained(h);
    if (has_scribbler) {
        __atomic_store_n(&h->stop, true, __ATOMIC_RELAXED);
        pthread_join(h->scribbler, NULL);
    }
    virtio_mmio_fini(&h->d.transport);
}
