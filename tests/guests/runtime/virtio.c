#include "virtio.h"

#include "boot.h"
#include "interrupts.h"
#include "report.h"

#define MAGIC      0x74726976u
#define PAGE_BYTES 4096u

static void on_interrupt(unsigned vector)
{
    struct driver d = { .base = VIRTIO_BASE + (vector - VECTOR_GSI0 - VIRTIO_GSI) * VIRTIO_STEP };

    reg_write(&d, VIRTIO_MMIO_INTERRUPT_ACK, reg_read(&d, VIRTIO_MMIO_INTERRUPT_STATUS));
}

bool virtio_find(unsigned slot, struct driver *d)
{
    *d = (struct driver){ .base = VIRTIO_BASE + slot * VIRTIO_STEP, .gsi = VIRTIO_GSI + slot };
    if (reg_read(d, VIRTIO_MMIO_MAGIC_VALUE) != MAGIC || reg_read(d, VIRTIO_MMIO_DEVICE_ID) == 0)
        return false;
    interrupt_handle(VECTOR_GSI0 + d->gsi, on_interrupt);
    ioapic_route(d->gsi);
    return true;
}

void virtio_reset(struct driver *d)
{
    reg_write(d, VIRTIO_MMIO_STATUS, 0);
    if (!wait_until(reg_read(d, VIRTIO_MMIO_STATUS) == 0))
        give_up("a_reset_completes", "the status never became 0");
}

bool virtio_negotiate(struct driver *d, uint64_t wanted)
{
    driver_begin(d);
    d->features = offered_features(d) & (wanted | F_VERSION_1);
    driver_accept(d, d->features);
    return driver_features_ok(d);
}

void virtq_init(struct ring *q, uint16_t queue, uint16_t size)
{
    if (q->desc == 0) {
        q->desc = (uint64_t)alloc_pages(1);
        q->avail = (uint64_t)alloc_pages(1);
        q->used = (uint64_t)alloc_pages(1);
    }
    q->queue = queue;
    q->size = size;
    memset(desc_of(q), 0, PAGE_BYTES);
    memset((void *)q->avail, 0, PAGE_BYTES);
    memset((void *)q->used, 0, PAGE_BYTES);
    ring_empty(q);
}

bool virtio_start(struct driver *d, uint64_t wanted, uint16_t queue_size)
{
    virtio_reset(d);
    if (!virtio_negotiate(d, wanted))
        return false;
    virtq_init(&d->queue, d->queue.queue, queue_size);
    driver_set_queue(d, &d->queue);
    driver_ok(d);
    return reg_read(d, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_DRIVER_OK && !needs_reset(d);
}

void virtio_kick(struct driver *d)
{
    reg_write(d, VIRTIO_MMIO_QUEUE_NOTIFY, d->queue.queue);
}

uint64_t virtio_interrupts(const struct driver *d)
{
    return interrupt_count[VECTOR_GSI0 + d->gsi];
}

bool virtio_wait(struct driver *d)
{
    bool answered = wait_until(ring_used_idx(&d->queue) == d->queue.offered);

    d->queue.taken = ring_used_idx(&d->queue);
    return answered;
}
