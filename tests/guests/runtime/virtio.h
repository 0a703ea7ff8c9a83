/*
 * A driver for virtio-mmio version 2 and split virtqueues (VIRTIO 1.2, sections 4.2 and 2.7), low
 * enough for tests that break the rules: rings are plain memory, and every step can be left out.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define VIRTIO_BASE 0xc0001000ul
#define VIRTIO_STEP 0x1000ul
#define VIRTIO_GSI  5u

enum virtio_register {
    VIRTIO_MAGIC = 0x000,
    VIRTIO_VERSION = 0x004,
    VIRTIO_DEVICE_ID = 0x008,
    VIRTIO_VENDOR_ID = 0x00c,
    VIRTIO_DEVICE_FEATURES = 0x010,
    VIRTIO_DEVICE_FEATURES_SEL = 0x014,
    VIRTIO_DRIVER_FEATURES = 0x020,
    VIRTIO_DRIVER_FEATURES_SEL = 0x024,
    VIRTIO_QUEUE_SEL = 0x030,
    VIRTIO_QUEUE_NUM_MAX = 0x034,
    VIRTIO_QUEUE_NUM = 0x038,
    VIRTIO_QUEUE_READY = 0x044,
    VIRTIO_QUEUE_NOTIFY = 0x050,
    VIRTIO_INTERRUPT_STATUS = 0x060,
    VIRTIO_INTERRUPT_ACK = 0x064,
    VIRTIO_STATUS = 0x070,
    VIRTIO_QUEUE_DESC = 0x080,
    VIRTIO_QUEUE_DRIVER = 0x090,
    VIRTIO_QUEUE_DEVICE = 0x0a0,
    VIRTIO_CONFIG_GENERATION = 0x0fc,
    VIRTIO_CONFIG = 0x100,
};

#define STATUS_ACKNOWLEDGE 1u
#define STATUS_DRIVER      2u
#define STATUS_DRIVER_OK   4u
#define STATUS_FEATURES_OK 8u
#define STATUS_NEEDS_RESET 64u
#define STATUS_FAILED      128u

#define F_INDIRECT_DESC (1ul << 28)
#define F_EVENT_IDX     (1ul << 29)
#define F_VERSION_1     (1ul << 32)

#define DESC_NEXT     1
#define DESC_WRITE    2 /* the device writes */
#define DESC_INDIRECT 4

#define VIRTQ_SIZE_MAX 256

struct virtq_desc {
    uint64_t addr;
    uint32_t bytes;
    uint16_t flags, next;
};

struct virtq_used {
    uint32_t head, bytes;
};

struct virtq {
    uint16_t size, index;    /* its number in the device */
    uint16_t offered, taken; /* free running: heads given to the device, answers seen */
    struct virtq_desc *desc;
    volatile uint16_t *avail; /* flags, idx, ring[size], used_event */
    volatile uint16_t *used;  /* flags, idx, then struct virtq_used[size], then avail_event */
};

struct virtio_device {
    uint64_t base;
    unsigned gsi;
    uint64_t features; /* negotiated */
    struct virtq queue;
};

uint32_t virtio_read(const struct virtio_device *d, uint32_t reg);
void virtio_write(const struct virtio_device *d, uint32_t reg, uint32_t value);

/* The device in slot n (0: the first); false where none answers. Routes its interrupt. */
bool virtio_find(unsigned slot, struct virtio_device *d);

/* The steps of initialisation, in order. virtio_negotiate() takes VERSION_1 and those of `wanted`
 * that are offered; false where the device does not keep FEATURES_OK. */
void virtio_reset(struct virtio_device *d);
uint64_t virtio_offered(const struct virtio_device *d);
void virtio_accept(struct virtio_device *d, uint64_t features);
bool virtio_negotiate(struct virtio_device *d, uint64_t wanted);
void virtq_init(struct virtq *q, uint16_t index, uint16_t size); /* empty rings in own memory */
void virtq_tell(struct virtio_device *d, const struct virtq *q); /* its addresses, and ready */
void virtio_go(struct virtio_device *d);                         /* DRIVER_OK */

/* All of them, with queue 0 of this size. */
bool virtio_start(struct virtio_device *d, uint64_t wanted, uint16_t queue_size);

void virtq_set(struct virtq *q, uint16_t i, const void *at, uint32_t bytes, uint16_t flags);
void virtq_offer(struct virtq *q, uint16_t head); /* visible to the device, without a kick */
void virtio_kick(struct virtio_device *d);

uint16_t virtq_used_index(const struct virtq *q);
struct virtq_used virtq_used_entry(const struct virtq *q, uint16_t at);

/* EVENT_IDX: "interrupt me when used passes this" and the device's "kick me when avail does". */
void virtq_set_used_event(struct virtq *q, uint16_t at);
uint16_t virtq_avail_event(const struct virtq *q);

/* Interrupts taken from this device; the handler acknowledges what the device shows. */
uint64_t virtio_interrupts(const struct virtio_device *d);

/* Waits until all that was offered is used; false on a time-out. */
bool virtio_wait(struct virtio_device *d);
