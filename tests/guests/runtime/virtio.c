#include "virtio.h"

#include "boot.h"
#include "interrupts.h"
#include "io.h"
#include "report.h"

#define MAGIC 0x74726976u

uint32_t virtio_read(const struct virtio_device *d, uint32_t reg)
{
    return mmio_read32(d->base + reg);
}

void virtio_write(const struct virtio_device *d, uint32_t reg, uint32_t value)
{
    mmio_write32(d->base + reg, value);
}

static void write_address(const struct virtio_device *d, uint32_t reg, const volatile void *at)
{
    virtio_write(d, reg, (uint32_t)(uint64_t)at);
    virtio_write(d, reg + 4, (uint32_t)((uint64_t)at >> 32));
}

static void on_interrupt(unsigned vector)
{
    struct virtio_device d = { .base = VIRTIO_BASE +
                                       (vector - VECTOR_GSI0 - VIRTIO_GSI) * VIRTIO_STEP };
    virtio_write(&d, VIRTIO_INTERRUPT_ACK, virtio_read(&d, VIRTIO_INTERRUPT_STATUS));
}

bool virtio_find(unsigned slot, struct virtio_device *d)
{
    *d = (struct virtio_device){ .base = VIRTIO_BASE + slot * VIRTIO_STEP,
                                 .gsi = VIRTIO_GSI + slot };
    if (virtio_read(d, VIRTIO_MAGIC) != MAGIC || virtio_read(d, VIRTIO_DEVICE_ID) == 0)
        return false;
    interrupt_handle(VECTOR_GSI0 + d->gsi, on_interrupt);
    ioapic_route(d->gsi);
    return true;
}

void virtio_reset(struct virtio_device *d)
{
    virtio_write(d, VIRTIO_STATUS, 0);
    if (!wait_until(virtio_read(d, VIRTIO_STATUS) == 0))
        give_up("a_reset_completes", "the status never became 0");
}

uint64_t virtio_offered(const struct virtio_device *d)
{
    uint64_t low;

    virtio_write(d, VIRTIO_DEVICE_FEATURES_SEL, 0);
    low = virtio_read(d, VIRTIO_DEVICE_FEATURES);
    virtio_write(d, VIRTIO_DEVICE_FEATURES_SEL, 1);
    return low | (uint64_t)virtio_read(d, VIRTIO_DEVICE_FEATURES) << 32;
}

void virtio_accept(struct virtio_device *d, uint64_t features)
{
    d->features = features;
    virtio_write(d, VIRTIO_DRIVER_FEATURES_SEL, 0);
    virtio_write(d, VIRTIO_DRIVER_FEATURES, (uint32_t)features);
    virtio_write(d, VIRTIO_DRIVER_FEATURES_SEL, 1);
    virtio_write(d, VIRTIO_DRIVER_FEATURES, (uint32_t)(features >> 32));
}

bool virtio_negotiate(struct virtio_device *d, uint64_t wanted)
{
    uint32_t status = STATUS_ACKNOWLEDGE | STATUS_DRIVER;

    virtio_write(d, VIRTIO_STATUS, STATUS_ACKNOWLEDGE);
    virtio_write(d, VIRTIO_STATUS, status);
    virtio_accept(d, virtio_offered(d) & (wanted | F_VERSION_1));
    virtio_write(d, VIRTIO_STATUS, status | STATUS_FEATURES_OK);
    return (virtio_read(d, VIRTIO_STATUS) & STATUS_FEATURES_OK) != 0;
}

void virtq_init(struct virtq *q, uint16_t index, uint16_t size)
{
    if (q->desc == NULL) {
        q->desc = alloc_pages(1);
        q->avail = alloc_pages(1);
        q->used = alloc_pages(1);
    }
    q->index = index;
    q->size = size;
    q->offered = 0;
    q->taken = 0;
    memset(q->desc, 0, size * sizeof(struct virtq_desc));
    memset((void *)q->avail, 0, 6 + 2ul * size);
    memset((void *)q->used, 0, 6 + 8ul * size);
}

void virtq_tell(struct virtio_device *d, const struct virtq *q)
{
    virtio_write(d, VIRTIO_QUEUE_SEL, q->index);
    virtio_write(d, VIRTIO_QUEUE_NUM, q->size);
    write_address(d, VIRTIO_QUEUE_DESC, q->desc);
    write_address(d, VIRTIO_QUEUE_DRIVER, q->avail);
    write_address(d, VIRTIO_QUEUE_DEVICE, q->used);
    virtio_write(d, VIRTIO_QUEUE_READY, 1);
}

void virtio_go(struct virtio_device *d)
{
    virtio_write(d, VIRTIO_STATUS, virtio_read(d, VIRTIO_STATUS) | STATUS_DRIVER_OK);
}

bool virtio_start(struct virtio_device *d, uint64_t wanted, uint16_t queue_size)
{
    virtio_reset(d);
    if (!virtio_negotiate(d, wanted))
        return false;
    virtq_init(&d->queue, 0, queue_size);
    virtq_tell(d, &d->queue);
    virtio_go(d);
    return (virtio_read(d, VIRTIO_STATUS) & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET)) ==
           STATUS_DRIVER_OK;
}

void virtq_set(struct virtq *q, uint16_t i, const void *at, uint32_t bytes, uint16_t flags)
{
    q->desc[i] = (struct virtq_desc){ (uint64_t)at, bytes, flags,
                                      (uint16_t)((flags & DESC_NEXT) != 0 ? i + 1 : 0) };
}

void virtq_offer(struct virtq *q, uint16_t head)
{
    q->avail[2 + q->offered % q->size] = head;
    q->offered++;
    /* The descriptors and the ring entry are there before the index says so. */
    __atomic_store_n(&q->avail[1], q->offered, __ATOMIC_SEQ_CST);
}

void virtio_kick(struct virtio_device *d)
{
    virtio_write(d, VIRTIO_QUEUE_NOTIFY, d->queue.index);
}

uint16_t virtq_used_index(const struct virtq *q)
{
    return __atomic_load_n(&q->used[1], __ATOMIC_ACQUIRE);
}

struct virtq_used virtq_used_entry(const struct virtq *q, uint16_t at)
{
    const volatile uint32_t *entry = (const volatile uint32_t *)(q->used + 2) + at % q->size * 2;
    return (struct virtq_used){ entry[0], entry[1] };
}

void virtq_set_used_event(struct virtq *q, uint16_t at)
{
    __atomic_store_n(&q->avail[2 + q->size], at, __ATOMIC_SEQ_CST);
}

uint16_t virtq_avail_event(const struct virtq *q)
{
    return __atomic_load_n(&q->used[2 + q->size * 4], __ATOMIC_SEQ_CST);
}

uint64_t virtio_interrupts(const struct virtio_device *d)
{
    return interrupt_count[VECTOR_GSI0 + d->gsi];
}

bool virtio_wait(struct virtio_device *d)
{
    bool answered = wait_until(virtq_used_index(&d->queue) == d->queue.offered);

    d->queue.taken = virtq_used_index(&d->queue);
    return answered;
}
