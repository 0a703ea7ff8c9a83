/*
 * virtio/mmio.c under any sequence of accesses, with a device that checks what the transport
 * promises it: one activation between two resets, turns only in between and only for queues that
 * exist, and nothing acknowledged that was not offered.
 */
#include "tests/fuzz/support/device.h"

#define OFFERED (FEATURE(VIRTIO_F_VERSION_1) | FEATURE(VIRTIO_RING_F_EVENT_IDX) | 0x55)

static struct hostile h;
static bool is_active, is_paused, wants_more, breaks;

static void activate(struct virtio_device *d)
{
    MUST(!is_active);
    MUST(!(virtio_acked(d) & ~d->offered) && virtio_acked(d) & FEATURE(VIRTIO_F_VERSION_1));
    is_active = true;
}

static bool serve(struct virtio_device *d, unsigned queue)
{
    bool more = wants_more;

    MUST(is_active && !is_paused && queue < 3 && d->queues[queue].mem);
    MUST(!(reg_read(&h.d, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET));
    if (breaks)
        virtio_needs_reset(d, "it wants to");
    virtio_signal_used(d, queue);
    wants_more = false;
    return more;
}

static void drain(struct virtio_device *d)
{
    (void)d;
    MUST(is_active && is_paused);
}

static void reset(struct virtio_device *d)
{
    (void)d;
    MUST(is_active);
    is_active = false;
}

#define OPS                                                                                        \
    .name = "fuzz", .id = 42, .queue_count = 3, .activate = activate, .serve = serve,              \
    .drain = drain, .reset = reset

static const struct virtio_ops ops = { OPS }, trying_ops = { OPS, .try_serve = serve };

static void check(const struct virtio_device *d)
{
    uint32_t status = reg_read(&h.d, VIRTIO_MMIO_STATUS);

    if (status & VIRTIO_CONFIG_S_DRIVER_OK)
        MUST((status & 0xf) == 0xf);
    if (status & VIRTIO_CONFIG_S_FEATURES_OK)
        MUST((status & 0xb) == 0xb);
    else
        MUST(virtio_acked(d) == 0 && !is_active);
    MUST(!(virtio_acked(d) & ~d->offered));
    MUST(h.d.page[0] == 'v' && h.d.page[VIRTIO_MMIO_DEVICE_ID] == 42);
}

static void change_config(struct virtio_device *d)
{
    virtio_lock(d);
    virtio_config_changed(d);
    virtio_unlock(d);
}

static void attach_anew(struct virtio_device *d)
{
    virtio_mmio_fini(&h.d.transport);
    memset(d->queues, 0, sizeof(d->queues));
    is_active = false;
    hostile_attach(&h, d);
}

/* Another transport goes on from the state of this one, which may have been tampered with: it is
 * refused, or is one that a guest could have led to. */
static void restore(struct virtio_device *d)
{
    struct virtio_mmio_state s;
    uint8_t changes = take8(h.in) % 4;

    is_paused = true;
    virtio_mmio_pause(&h.d.transport);
    virtio_mmio_get_state(&h.d.transport, &s);
    for (unsigned i = 0; i < changes; i++)
        ((uint8_t *)&s)[take16(h.in) % sizeof(s)] ^= take8(h.in);
    s.registers.is_activated = *(uint8_t *)&s.registers.is_activated & 1;
    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++)
        s.queues[i].ready = *(uint8_t *)&s.queues[i].ready & 1;
    attach_anew(d);
    if (virtio_mmio_set_state(&h.d.transport, &s) < 0) {
        MUST(changes > 0);
        attach_anew(d);
    }
    is_paused = false;
    virtio_mmio_resume(&h.d.transport);
}

static void touch(struct virtio_device *d)
{
    static const uint8_t steps[] = { 0, 1, 3, 0xb, 0xf, 0x80 };
    static const uint16_t sizes[] = { 256, 1, 3 };
    uint8_t op = take8(h.in);

    switch (op % 9) {
    case 0: step_register(&h); break;
    case 1: reg_write(&h.d, VIRTIO_MMIO_STATUS, steps[take8(h.in) % sizeof(steps)]); break;
    case 2: step_start(&h); break;
    case 3: step_queue(&h); break;
    case 4:
        wants_more = op & 0x80;
        breaks = op >= 0xe0;
        virtio_serve(d, op >> 3 & 1);
        break;
    case 5:
        is_paused = true;
        virtio_mmio_pause(&h.d.transport);
        break;
    case 6:
        is_paused = false;
        virtio_mmio_resume(&h.d.transport);
        break;
    case 7:
        if (op & 0x80)
            restore(d);
        else
            change_config(d);
        break;
    default: start_device(&h, OFFERED, sizes);
    }
    serve_loop(&h);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t config[60];
    struct input in = { data, size };
    struct virtio_device d = { .ops = &ops, .offered = OFFERED, .config = config };
    uint8_t how = take8(&in);

    d.config_bytes = how % sizeof(config);
    if (how & 1)
        d.ops = &trying_ops;
    is_active = is_paused = wants_more = breaks = false;
    hostile_init(&h, &in);
    hostile_attach(&h, &d);
    while (in.left > 0) {
        touch(&d);
        check(&d);
    }
    virtio_mmio_fini(&h.d.transport);
    loop_fini(&h.d.loop);
    return 0;
}
