#include "vmm/kvm/bus.h"

#include <string.h>

#include "vmm/base/error.h"

void bus_read_zeroes(struct bus_device *d, uint64_t offset, uint8_t *data, unsigned bytes)
{
    (void)d;
    (void)offset;
    memset(data, 0, bytes);
}

void bus_add(struct bus *b, struct bus_device *d)
{
    BUG_ON(b->count == BUS_DEVICES_MAX);
    b->devices[b->count++] = d;
}

static struct bus_device *device_at(const struct bus *b, uint64_t addr, unsigned bytes)
{
    for (unsigned i = 0; i < b->count; i++) {
        struct bus_device *d = b->devices[i];
        uint64_t offset = addr - d->base;

        if (offset < d->bytes)
            return bytes <= d->bytes - offset ? d : NULL;
    }
    return NULL;
}

void bus_read(const struct bus *b, uint64_t addr, uint8_t *data, unsigned bytes)
{
    struct bus_device *d = device_at(b, addr, bytes);

    memset(data, b->idle_byte, bytes);
    if (d)
        d->ops->read(d, addr - d->base, data, bytes);
}

void bus_write(const struct bus *b, uint64_t addr, const uint8_t *data, unsigned bytes)
{
    struct bus_device *d = device_at(b, addr, bytes);

    if (d)
        d->ops->write(d, addr - d->base, data, bytes);
}
