#include "vmm/legacy/i8042.h"

#include <criterion/criterion.h>
#include <string.h>
#include <sys/eventfd.h>

#include "tests/unit/support/lock.h"
#include "vmm/base/loop.h"
#include "vmm/base/metrics.h"

#define DATA    0u
#define COMMAND 4u

static struct i8042 k;
static struct guest_end end;
static int irq;

static void count_edge(const struct kvm_line *line)
{
    loop_signal(line->vm_fd);
}

static void set_up(void)
{
    irq = eventfd(0, EFD_NONBLOCK);
    end = (struct guest_end){ .event_fd = eventfd(0, EFD_NONBLOCK) };
    i8042_init(&k, (struct kvm_line){ .vm_fd = irq }, &end);
    k.pulse = count_edge;
}

TestSuite(i8042, .init = set_up);

static uint8_t in8(unsigned port)
{
    uint8_t value = 0x5a;

    k.bus.ops->read(&k.bus, port, &value, 1);
    return value;
}

static void out8(unsigned port, uint8_t value)
{
    k.bus.ops->write(&k.bus, port, &value, 1);
}

static void expect_bytes(const uint8_t *want, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        cr_expect_eq(in8(COMMAND) & 1, 1, "byte %u is there", i);
        cr_expect_eq(in8(DATA), want[i], "byte %u", i);
    }
    cr_expect_eq(in8(COMMAND) & 1, 0, "nothing more");
}

Test(i8042, tells_of_a_reset_once_with_code_zero)
{
    out8(COMMAND, 0xfe);
    out8(COMMAND, 0xfe);
    cr_expect(end.ended);
    cr_expect_eq(end.exit_code, 0);
    cr_expect_eq(loop_drain(end.event_fd), 1);
}

Test(i8042, resets_for_no_other_command)
{
    for (unsigned c = 0; c < 0xfe; c++) {
        out8(COMMAND, (uint8_t)c);
        out8(DATA, 0xfe);
    }
    cr_expect_not(end.ended);
}

Test(i8042, passes_its_self_tests)
{
    out8(COMMAND, 0xaa);
    expect_bytes((const uint8_t[]){ 0x55 }, 1);
    out8(COMMAND, 0xab);
    expect_bytes((const uint8_t[]){ 0x00 }, 1);
    out8(COMMAND, 0xa9);
    cr_expect_neq(in8(DATA), 0, "there is no auxiliary port");
    cr_expect_eq(in8(COMMAND) & 1, 0, "nothing more");
}

Test(i8042, keeps_the_command_byte)
{
    out8(COMMAND, 0x60);
    out8(DATA, 0x47);
    out8(COMMAND, 0x20);
    expect_bytes((const uint8_t[]){ 0x47 }, 1);
}

Test(i8042, has_a_keyboard_that_acknowledges)
{
    out8(DATA, 0xf2);
    expect_bytes((const uint8_t[]){ 0xfa, 0xab, 0x83 }, 3);
    out8(DATA, 0xff);
    expect_bytes((const uint8_t[]){ 0xfa, 0xaa }, 2);
    out8(DATA, 0xed);
    expect_bytes((const uint8_t[]){ 0xfa }, 1);
    out8(DATA, 0xf2);
    expect_bytes((const uint8_t[]){ 0xfa }, 1); /* the parameter of 0xed */
    out8(DATA, 0xee);
    expect_bytes((const uint8_t[]){ 0xee }, 1); /* which has one alone */
}

Test(i8042, types_ctrl_alt_del_with_an_interrupt_a_byte)
{
    static const uint8_t keys[] = { 0x14, 0x11, 0xe0, 0x71 };
    struct error e;

    cr_assert_eq(i8042_ctrl_alt_del(&k, &e), 0, "%s", e.msg);
    for (unsigned i = 0; i < sizeof(keys); i++) {
        cr_expect_eq(loop_drain(irq), 1, "for byte %u", i);
        cr_expect_eq(in8(DATA), keys[i]);
    }
    cr_expect_eq(loop_drain(irq), 0);
}

Test(i8042, refuses_ctrl_alt_del_when_nobody_reads)
{
    struct error e;

    for (unsigned i = 0; i < 4; i++)
        cr_assert_eq(i8042_ctrl_alt_del(&k, &e), 0, "%s", e.msg);
    cr_expect_eq(i8042_ctrl_alt_del(&k, &e), -1);
    cr_expect(strstr(e.msg, "I8042 error"), "%s", e.msg);
    cr_expect_eq(k.state.count, I8042_BUFFER_BYTES);
}

Test(i8042, refuses_ctrl_alt_del_when_the_interrupt_is_masked)
{
    struct error e;

    out8(COMMAND, 0x60);
    out8(DATA, 0x00);
    cr_expect_eq(i8042_ctrl_alt_del(&k, &e), -1);
    cr_expect(strstr(e.msg, "I8042 error"), "%s", e.msg);
    cr_expect_eq(k.state.count, 0);
}

Test(i8042, survives_every_byte_in_any_order)
{
    unsigned x = 12345;

    for (unsigned i = 0; i < 200000; i++) {
        x = x * 1103515245 + 12345;
        switch (x >> 29) {
        case 0: out8(COMMAND, (uint8_t)(x >> 16) == 0xfe ? 0 : (uint8_t)(x >> 16)); break;
        case 1:
        case 2: in8(DATA); break;
        case 3: in8(x >> 16 & 3); break;
        default: out8(x >> 16 & 3, (uint8_t)(x >> 8));
        }
        cr_assert_leq(k.state.count, I8042_BUFFER_BYTES);
    }
}

Test(i8042, counts_what_it_is_asked_and_what_it_does_not_understand)
{
    uint8_t bytes[4] = { 0 };

    out8(DATA, 0xed);
    out8(COMMAND, 0xa9);
    in8(DATA);
    k.bus.ops->write(&k.bus, DATA, bytes, 2);
    k.bus.ops->write(&k.bus, DATA, bytes, 4);
    k.bus.ops->write(&k.bus, COMMAND, bytes, 4);
    k.bus.ops->read(&k.bus, DATA, bytes, 2);
    k.bus.ops->read(&k.bus, DATA, bytes, 4);
    cr_expect_eq(metric_get(&metrics.i8042.write_count), 2);
    cr_expect_eq(metric_get(&metrics.i8042.read_count), 1);
    cr_expect_eq(metric_get(&metrics.i8042.missed_write_count), 3);
    cr_expect_eq(metric_get(&metrics.i8042.missed_read_count), 2);
}

Test(i8042, goes_on_with_what_was_queued)
{
    const struct i8042_state none = { .command_byte = 1 };
    const struct i8042_state two = {
        .command_byte = 1, .buffer = { 7, [15] = 6 }, .head = 15, .count = 2
    };
    const struct i8042_state masked = { .buffer = { 7 }, .count = 1 };

    i8042_restore(&k, &none);
    i8042_restore(&k, &masked);
    cr_expect_eq(loop_drain(irq), 0);
    i8042_restore(&k, &two);
    cr_expect_eq(loop_drain(irq), 1);
    expect_bytes((const uint8_t[]){ 6, 7 }, 2);
}

static void read_a_byte(void)
{
    in8(DATA);
}

static void write_a_command(void)
{
    out8(COMMAND, 0xaa);
}

static void press_ctrl_alt_del(void)
{
    cr_expect_eq(i8042_ctrl_alt_del(&k, &(struct error){ 0 }), 0);
}

/* vCPUs, and a client. */
Test(i8042, is_used_by_one_thread_at_a_time)
{
    cr_expect(waits_for(&k.lock, read_a_byte));
    cr_expect(waits_for(&k.lock, write_a_command));
    cr_expect(waits_for(&k.lock, press_ctrl_alt_del));
}
