/* Port and memory-mapped I/O where nobody answers, and in every width where somebody does. */
#include "runtime/boot.h"
#include "runtime/io.h"
#include "runtime/report.h"
#include "runtime/virtio.h"

#define COM1  0x3f8
#define I8042 0x60

static void check_unowned_ports(void)
{
    static const uint16_t ports[] = { 0x80, 0x2f8, 0xcf8, 0xcfc, 0x1234, 0xfff8 };
    unsigned wrong = 0;

    for (unsigned i = 0; i < sizeof(ports) / sizeof(ports[0]); i++) {
        outb(ports[i], 0);
        outw(ports[i], 0);
        outl(ports[i], 0);
        wrong += inb(ports[i]) != 0 || inw(ports[i]) != 0 || inl(ports[i]) != 0;
    }
    expect_equal(wrong, 0, "unowned_ports_read_zero_in_each_width");
}

static void string_read(uint16_t port, void *to, uint64_t n)
{
    __asm__ volatile("rep insb" : "+D"(to), "+c"(n) : "d"(port) : "memory");
}

static void check_string_io(void)
{
    static const char text[] = "a string in one instruction\n";
    uint8_t bytes[6] = { 1, 2, 3, 4, 5, 6 };
    const void *from = text;
    uint64_t n = sizeof(text) - 1;

    __asm__ volatile("rep outsb" : "+S"(from), "+c"(n) : "d"((uint16_t)COM1) : "memory");
    outb(COM1 + 7, 0x5a);
    string_read(COM1 + 7, bytes, 5);
    expect(memcmp(bytes, "\x5a\x5a\x5a\x5a\x5a\x06", 6) == 0, "a_string_read_reads_each_time");
    string_read(0x1234, bytes, 5);
    expect(memcmp(bytes, "\0\0\0\0\0\x06", 6) == 0, "a_string_read_from_nobody_reads_zeroes");
    from = bytes;
    n = 3;
    __asm__ volatile("rep outsw" : "+S"(from), "+c"(n) : "d"((uint16_t)0x1234) : "memory");
    expect_equal(n, 0, "a_string_write_to_nobody_ends");
}

/* Wide and unaligned accesses to byte-wide devices: whatever they read, the device stands. */
static void check_odd_port_access(void)
{
    outb(COM1 + 7, 0x5a);
    for (uint16_t port = COM1 - 3; port <= COM1 + 8; port++) {
        (void)inw(port);
        (void)inl(port);
    }
    for (uint16_t port = I8042 - 3; port <= I8042 + 5; port++) {
        if (port + 1 == 0x61 || port == 0x61)
            continue;
        (void)inw(port);
        (void)inl(port);
    }
    outw(COM1 + 7, 0x1111); /* half outside */
    outl(COM1 + 6, 0x22222222);
    outl(0x62, 0xfefefefe); /* no reset: the command port takes bytes */
    expect_equal(inb(COM1 + 7), 0x5a, "wide_writes_leave_the_serial_port_alone");
    expect_equal(inb(COM1 + 5) & 0x60, 0x60, "the_serial_port_is_idle_after_odd_accesses");
    expect(inb(0x64) != 0xff, "the_keyboard_controller_answers_after_odd_accesses");
}

static void check_unowned_memory(void)
{
    static const uint64_t places[] = { 0xc0100000, 0xd0000003, 0xeec00000, 0xfec01000, 0xfed00000 };
    unsigned wrong = 0;

    for (unsigned i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        uint64_t at = places[i];
        mmio_write8(at, 0);
        mmio_write16(at, 0);
        mmio_write32(at, 0);
        mmio_write64(at, 0);
        wrong += mmio_read8(at) != 0xff || mmio_read16(at) != 0xffff ||
                 mmio_read32(at) != 0xffffffff || mmio_read64(at) != ~0ul;
    }
    expect_equal(wrong, 0, "unowned_memory_reads_all_ones_in_each_width");
}

/* Every width, every alignment, over the registers and across the edges of the window. */
static void check_odd_memory_access(struct driver *d)
{
    uint32_t status = reg_read(d, VIRTIO_MMIO_STATUS);

    for (uint64_t at = d->base - 7; at < d->base + 0x10c; at += at < d->base + 8 ? 1 : 13) {
        (void)mmio_read8(at);
        (void)mmio_read16(at);
        (void)mmio_read32(at);
        (void)mmio_read64(at);
    }
    for (uint64_t at = d->base + 0xff5; at < d->base + 0x1000; at++) {
        (void)mmio_read64(at);
        mmio_write64(at, 0x4141414141414141);
    }
    mmio_write8(d->base + VIRTIO_MMIO_STATUS, 1);
    mmio_write16(d->base + VIRTIO_MMIO_STATUS, 1);
    mmio_write64(d->base + VIRTIO_MMIO_STATUS, 1);
    mmio_write32(d->base + VIRTIO_MMIO_STATUS + 1, 1);
    mmio_write32(d->base + VIRTIO_MMIO_STATUS - 1, 1 << 8);
    expect_equal(reg_read(d, VIRTIO_MMIO_MAGIC_VALUE), 0x74726976,
                 "the_magic_stands_after_odd_accesses");
    expect_equal(reg_read(d, VIRTIO_MMIO_STATUS), status, "odd_writes_leave_the_status_alone");
}

void guest_main(void)
{
    struct driver d;

    check_unowned_ports();
    check_string_io();
    check_odd_port_access();
    check_unowned_memory();
    if (expect(virtio_find(0, &d), "the_first_device_answers"))
        check_odd_memory_access(&d);
    expect(!virtio_find(18, &d), "no_device_answers_behind_the_last");
}
