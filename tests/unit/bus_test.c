#include "vmm/kvm/bus.h"

#include <criterion/criterion.h>
#include <string.h>

static struct seen {
    unsigned reads, writes;
    uint64_t offset;
    unsigned bytes;
} seen;

static void probe_read(struct bus_device *d, uint64_t offset, uint8_t *data, unsigned bytes)
{
    (void)d;
    seen = (struct seen){ seen.reads + 1, seen.writes, offset, bytes };
    memset(data, 0x11, bytes);
}

static void probe_write(struct bus_device *d, uint64_t offset, const uint8_t *data, unsigned bytes)
{
    (void)d;
    (void)data;
    seen = (struct seen){ seen.reads, seen.writes + 1, offset, bytes };
}

static const struct bus_ops probe_ops = { .read = probe_read, .write = probe_write };

Test(bus, reaches_a_device_only_with_accesses_that_lie_within_it)
{
    struct bus_device device = { .ops = &probe_ops, .base = 0x1000, .bytes = 16 };
    struct bus b = { .idle_byte = 0xff };
    static const struct {
        uint64_t addr;
        unsigned bytes;
        bool hit;
    } cases[] = {
        { 0xfff, 1, false },      { 0xfff, 2, false }, { 0x1000, 1, true },  { 0x100f, 1, true },
        { 0x100f, 2, false },     { 0x1008, 8, true }, { 0x1009, 8, false }, { 0x1010, 1, false },
        { UINT64_MAX, 8, false }, { 0, 8, false },
    };

    bus_add(&b, &device);
    for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        uint8_t data[8] = { 0 };

        memset(&seen, 0, sizeof(seen));
        bus_read(&b, cases[i].addr, data, cases[i].bytes);
        bus_write(&b, cases[i].addr, data, cases[i].bytes);
        cr_expect_eq(seen.reads, cases[i].hit, "case %u", i);
        cr_expect_eq(seen.writes, cases[i].hit, "case %u", i);
        for (unsigned k = 0; k < 8; k++)
            cr_expect_eq(data[k], k >= cases[i].bytes ? 0 : cases[i].hit ? 0x11 : 0xff);
        if (cases[i].hit)
            cr_expect_eq(seen.offset, cases[i].addr - 0x1000);
    }
}
