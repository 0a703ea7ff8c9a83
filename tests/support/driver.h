/*
 * A driver's handshake with a device over virtio-mmio, version 2 (virtio 1.2, sections 3.1 and
 * 4.2). Each step can be left out or be done wrong. Who includes this has a `struct driver`, and
 * says how that reaches the device's registers.
 */
#pragma once

#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>

#include "tests/support/ring.h"

#define FEATURE(bit)  (UINT64_C(1) << (bit))
#define DRIVER_STATUS (VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER)

struct driver;
static inline uint32_t reg_read(struct driver *d, uint64_t offset);
static inline void reg_write(struct driver *d, uint64_t offset, uint32_t value);

static inline void driver_begin(struct driver *d)
{
    reg_write(d, VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE);
    reg_write(d, VIRTIO_MMIO_STATUS, DRIVER_STATUS);
}

static inline uint64_t offered_features(struct driver *d)
{
    uint64_t high;

    reg_write(d, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
    high = reg_read(d, VIRTIO_MMIO_DEVICE_FEATURES);
    reg_write(d, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
    return high << 32 | reg_read(d, VIRTIO_MMIO_DEVICE_FEATURES);
}

static inline void driver_accept(struct driver *d, uint64_t features)
{
    for (uint32_t sel = 0; sel < 2; sel++) {
        reg_write(d, VIRTIO_MMIO_DRIVER_FEATURES_SEL, sel);
        reg_write(d, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)(features >> 32 * sel));
    }
}

/* Writes FEATURES_OK; true where the device keeps it. */
static inline bool driver_features_ok(struct driver *d)
{
    reg_write(d, VIRTIO_MMIO_STATUS, DRIVER_STATUS | VIRTIO_CONFIG_S_FEATURES_OK);
    return reg_read(d, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_FEATURES_OK;
}

/* All of this, after a reset. */
static inline bool driver_negotiate(struct driver *d, uint64_t features)
{
    driver_begin(d);
    driver_accept(d, features);
    return driver_features_ok(d);
}

static inline void driver_set_address(struct driver *d, uint64_t low, uint64_t at)
{
    reg_write(d, low, (uint32_t)at);
    reg_write(d, low + 4, (uint32_t)(at >> 32));
}

static inline void driver_set_queue(struct driver *d, const struct ring *r)
{
    reg_write(d, VIRTIO_MMIO_QUEUE_SEL, r->queue);
    reg_write(d, VIRTIO_MMIO_QUEUE_NUM, r->size);
    driver_set_address(d, VIRTIO_MMIO_QUEUE_DESC_LOW, r->desc);
    driver_set_address(d, VIRTIO_MMIO_QUEUE_AVAIL_LOW, r->avail);
    driver_set_address(d, VIRTIO_MMIO_QUEUE_USED_LOW, r->used);
    reg_write(d, VIRTIO_MMIO_QUEUE_READY, 1);
}

static inline bool needs_reset(struct driver *d)
{
    return reg_read(d, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET;
}

static inline void driver_ok(struct driver *d)
{
    reg_write(d, VIRTIO_MMIO_STATUS,
              DRIVER_STATUS | VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
}
