/*
 * A hostile driver for any virtio device: the input is a program of register writes, memory writes,
 * chains, kicks and turns of the event loop. It runs alone, so that it can be repeated, or with a
 * second thread that scribbles over the rings all the while.
 *
 * A fuzzer of a device makes the device, gives `hooks` for what only that device has, and calls
 * hostile_run(). See block_fuzz.c.
 */
#pragma once

#include <linux/virtio_mmio.h>
#include <pthread.h>

#include "tests/fuzz/support/ring.h"
#include "virtio/mmio.h"
#include "vmm/base/log.h"

struct hostile {
    struct guest_mem *mem;
    struct loop loop;
    struct virtio_mmio transport;
    struct virtio_device *device;
    struct input *in;
    struct virtq_state told[VIRTIO_QUEUES_MAX]; /* where chains are put */
    pthread_t scribbler;
    bool stop; /* atomic */
    uint32_t seed;
    _Alignas(8) uint8_t page[LAYOUT_VIRTIO_STEP];
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

static inline void count_no_edge(const struct kvm_line *line)
{
    (void)line;
}

static inline void write_register(struct hostile *h, uint64_t offset, uint32_t value)
{
    h->transport.bus.ops->write(&h->transport.bus, offset, (const uint8_t *)&value, sizeof(value));
}

static inline uint32_t read_status(struct hostile *h)
{
    uint32_t value = 0;

    h->transport.bus.ops->read(&h->transport.bus, VIRTIO_MMIO_STATUS, (uint8_t *)&value,
                               sizeof(value));
    return value;
}

static inline void set_queue(struct hostile *h, unsigned queue, const struct virtq_state *st)
{
    const gpa_t at[] = { st->desc, st->avail, st->used };
    const uint64_t low[] = { VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_AVAIL_LOW,
                             VIRTIO_MMIO_QUEUE_USED_LOW };

    h->told[queue] = *st;
    write_register(h, VIRTIO_MMIO_QUEUE_SEL, queue);
    write_register(h, VIRTIO_MMIO_QUEUE_NUM, st->size);
    for (unsigned i = 0; i < 3; i++) {
        write_register(h, low[i], (uint32_t)at[i].v);
        write_register(h, low[i] + 4, (uint32_t)(at[i].v >> 32));
    }
    write_register(h, VIRTIO_MMIO_QUEUE_READY, st->ready);
}

static inline void start_device(struct hostile *h, uint64_t features, const uint16_t *sizes)
{
    const uint8_t steps[] = { 0, 1, 3 };

    for (unsigned i = 0; i < sizeof(steps); i++)
        write_register(h, VIRTIO_MMIO_STATUS, steps[i]);
    for (uint32_t sel = 0; sel < 2; sel++) {
        write_register(h, VIRTIO_MMIO_DRIVER_FEATURES_SEL, sel);
        write_register(h, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)(features >> 32 * sel));
    }
    write_register(h, VIRTIO_MMIO_STATUS, 0xb);
    for (unsigned q = 0; q < h->device->ops->queue_count; q++) {
        const struct virtq_state st = ring_state(q, sizes[q]);

        poke(h->mem, st.avail.v, "\0\0\0", 4);
        set_queue(h, q, &st);
    }
    write_register(h, VIRTIO_MMIO_STATUS, 0xf);
}

/* Serves what is ready now, until nothing is or it was a lot. */
static inline void serve_loop(struct hostile *h)
{
    for (unsigned turn = 0; turn < TURNS_MAX && loop_turn(&h->loop, 0); turn++)
        ;
}

static inline unsigned take_queue(struct hostile *h)
{
    return take8(h->in) % h->device->ops->queue_count;
}

static inline void step_chain(struct hostile *h, const struct hostile_hooks *hooks)
{
    uint8_t count = take8(h->in);
    const struct virtq_state *st = &h->told[take_queue(h)];
    uint16_t head = take8(h->in);

    for (count &= 15; count > 0; count--) {
        uint64_t at = HEADERS_AT + 64u * (head % 64u);
        uint16_t next = poke_chain(h->mem, st->desc.v, head, h->in, at, hooks->header(h, at));

        poke_avail(h->mem, st, head);
        head = next;
    }
}

static inline void step_indirect(struct hostile *h, const struct hostile_hooks *hooks)
{
    const struct virtq_state *st = &h->told[take_queue(h)];
    uint16_t head = take8(h->in);
    uint16_t end = poke_chain(h->mem, TABLE_AT, 0, h->in, HEADERS_AT, hooks->header(h, HEADERS_AT));
    struct vring_desc d = { TABLE_AT, (uint32_t)sizeof(d) * end, VRING_DESC_F_INDIRECT, 0 };

    if (take8(h->in) >= 0xe0) {
        d.len = take_length(h->in);
        d.flags = take16(h->in);
    }
    poke_desc(h->mem, st->desc.v, head, &d);
    poke_avail(h->mem, st, head);
}

static inline void step_register(struct hostile *h)
{
    uint8_t how = take8(h->in);
    uint64_t offset = how & 0x80 ? take16(h->in) % (LAYOUT_VIRTIO_STEP - 8) : 4u * (how % 64u);
    uint8_t bytes[8];

    take_bytes(h->in, bytes, sizeof(bytes));
    h->transport.bus.ops->write(&h->transport.bus, offset, bytes, how & 0x40 ? 1u << (how & 3) : 4);
    h->transport.bus.ops->read(&h->transport.bus, offset, bytes, 1u << (how & 3));
}

static inline void step_start(struct hostile *h)
{
    uint8_t how = take8(h->in);
    uint64_t features = h->device->offered;
    uint16_t sizes[VIRTIO_QUEUES_MAX];

    if (how & 0x80)
        features &= take64(h->in) | UINT64_C(1) << VIRTIO_F_VERSION_1;
    for (unsigned q = 0; q < VIRTIO_QUEUES_MAX; q++)
        sizes[q] = (uint16_t)(1u << (how >> q & 15));
    start_device(h, features, sizes);
}

static inline void step_queue(struct hostile *h)
{
    unsigned queue = take_queue(h);
    struct virtq_state st = ring_state(queue, take16(h->in));

    st.desc = gpa(take_address(h->in));
    st.avail = gpa(take_address(h->in));
    st.used = gpa(take_address(h->in));
    st.ready = take8(h->in) & 1;
    set_queue(h, queue, &st);
}

static inline void step_pause(struct hostile *h, const struct hostile_hooks *hooks)
{
    virtio_mmio_pause(&h->transport);
    hooks->check_drained(h);
    virtio_mmio_resume(&h->transport);
}

static inline void step(struct hostile *h, const struct hostile_hooks *hooks)
{
    uint8_t words[16];

    switch (take8(h->in) % 12) {
    case 0:
    case 1: step_chain(h, hooks); break;
    case 2: step_indirect(h, hooks); break;
    case 3: loop_signal(h->transport.notifiers[take_queue(h)].source.fd); break;
    case 4: step_register(h); break;
    case 5: step_start(h); break;
    case 6: step_queue(h); break;
    case 7: poke_any_desc(h->mem, h->told[take_queue(h)].desc.v, h->in); break;
    case 8:
        take_bytes(h->in, words, sizeof(words));
        poke(h->mem, take_address(h->in), words, sizeof(words));
        break;
    case 9: step_pause(h, hooks); break;
    case 10: hooks->event(h); break;
    default: poke_avail(h->mem, &h->told[take_queue(h)], take8(h->in));
    }
    serve_loop(h);
}

/* The other vCPU: writes into the rings and the headers, for as long as the program runs. */
static inline void *scribble(void *arg)
{
    struct hostile *h = arg;
    uint32_t state = h->seed;
    uint8_t *low = h->mem->regions[0].host;

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

    *h = (struct hostile){ .mem = zeroed_memory(), .in = in };
    log_set_options((struct log_options){ .level = LOG_OFF });
    MUST(loop_init(&h->loop, &e) == 0);
}

static inline void hostile_attach(struct hostile *h, struct virtio_device *d)
{
    struct error e;

    h->device = d;
    MUST(virtio_mmio_init(&h->transport, d, gpa(LAYOUT_VIRTIO), h->page, h->mem, &h->loop, &e) ==
         0);
    h->transport.pulse = count_no_edge;
}

/* Attaches the device, runs the program, and takes the transport apart. The loop and the device are
 * the caller's. */
static inline void hostile_run(struct hostile *h, struct virtio_device *d,
                               const struct hostile_hooks *hooks)
{
    static const uint16_t sizes[VIRTIO_QUEUES_MAX] = { 256, 256, 256 };
    bool has_scribbler;

    hostile_attach(h, d);
    start_device(h, d->offered, sizes);
    MUST(read_status(h) == 0xf);
    h->seed = take8(h->in);
    has_scribbler = h->seed >= 0xf0;
    if (has_scribbler)
        MUST(pthread_create(&h->scribbler, NULL, scribble, h) == 0);
    while (h->in->left > 0)
        step(h, hooks);
    write_register(h, VIRTIO_MMIO_STATUS, 0);
    hooks->check_drained(h);
    if (has_scribbler) {
        __atomic_store_n(&h->stop, true, __ATOMIC_RELAXED);
        pthread_join(h->scribbler, NULL);
    }
    virtio_mmio_fini(&h->transport);
}
