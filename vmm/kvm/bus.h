/*
 * Dispatch of port and memory-mapped I/O that a vCPU exits with. Filled while the VM is built, read
 * by every vCPU thread afterwards; a device guards its own state.
 */
#pragma once

#include <stdint.h>

struct bus_device;

/* data holds `bytes` (1, 2, 4 or 8) little-endian bytes; [offset, offset + bytes) lies within the
 * device. */
struct bus_ops {
    void (*read)(struct bus_device *d, uint64_t offset, uint8_t *data, unsigned bytes);
    void (*write)(struct bus_device *d, uint64_t offset, const uint8_t *data, unsigned bytes);
};

/* Embedded in each device (owner_of leads back). */
struct bus_device {
    const struct bus_ops *ops;
    uint64_t base, bytes;
};

#define BUS_DEVICES_MAX 24

struct bus {
    struct bus_device *devices[BUS_DEVICES_MAX];
    unsigned count;
    uint8_t idle_byte; /* what a read sees where no device drives the data lines */
};

/* For a device whose registers all read as zero. */
void bus_read_zeroes(struct bus_device *d, uint64_t offset, uint8_t *data, unsigned bytes);

/* Borrows d, whose range overlaps no other's. */
void bus_add(struct bus *b, struct bus_device *d);

/* Reads where no device answers give idle bytes; writes there vanish. */
void bus_read(const struct bus *b, uint64_t addr, uint8_t *data, unsigned bytes);
void bus_write(const struct bus *b, uint64_t addr, const uint8_t *data, unsigned bytes);
