/* The i8042: its command byte, its answers, and scan codes by IRQ 1. With "keys", or with a command
 * line that clients write for Linux ("console=ttyS0"), it waits for Ctrl-Alt-Del; with "ignore" it
 * never reads, with "masked" it turns the interrupt off. */
#include "runtime/boot.h"
#include "runtime/interrupts.h"
#include "runtime/io.h"
#include "runtime/power.h"
#include "runtime/report.h"

#define KEYBOARD_GSI 1

static volatile unsigned codes;
static uint8_t code[16];

static bool has_output(void)
{
    return (inb(0x64) & 1) != 0;
}

static void on_interrupt(unsigned vector)
{
    (void)vector;
    while (has_output() && codes < sizeof(code))
        code[codes++] = inb(0x60);
}

static uint8_t command_byte(void)
{
    outb(0x64, 0x20);
    return inb(0x60);
}

static void check_controller(void)
{
    uint8_t before = command_byte();

    expect((before & 1) != 0, "the_keyboard_interrupt_is_on_at_first");
    outb(0x64, 0x60);
    outb(0x60, before & 0xfe);
    expect_equal(command_byte(), before & 0xfe, "the_command_byte_keeps_its_value");
    outb(0x64, 0x60);
    outb(0x60, before);
    expect(!has_output(), "the_buffer_is_empty");
    outb(0x64, 0xaa);
    expect(has_output() && inb(0x60) == 0x55, "the_self_test_passes");
    for (unsigned i = 0; i < 40; i++)
        outb(0x64, 0x20);
    for (unsigned i = 0; i < 40; i++)
        (void)inb(0x60);
    expect(!has_output(), "an_overrun_buffer_empties_again");
    for (unsigned i = 0; i < 0xf0; i++) /* 0xf0 to 0xff pulse lines, reset among them */
        outb(0x64, (uint8_t)i);
    expect((inb(0x64) & 4) != 0, "unknown_commands_are_survived");
}

static void wait_for_keys(void)
{
    static const uint8_t wanted[] = { 0x14, 0x11, 0xe0, 0x71 };

    interrupt_handle(VECTOR_GSI0 + KEYBOARD_GSI, on_interrupt);
    ioapic_route(KEYBOARD_GSI);
    print("ready\n");
    expect(wait_until(codes >= 4), "ctrl_alt_del_interrupts");
    expect(memcmp(code, wanted, 4) == 0, "the_scan_codes_are_ctrl_alt_del");
    expect_equal(codes, 4, "nothing_follows_the_scan_codes");
}

void guest_main(void)
{
    if (boot_has("keys") || boot_has("console=ttyS0")) {
        wait_for_keys();
        return;
    }
    if (boot_has("masked")) {
        uint8_t before = command_byte();
        outb(0x64, 0x60);
        outb(0x60, before & 0xfe);
    }
    if (boot_has("masked") || boot_has("ignore")) {
        print("ready\n");
        halt();
    }
    check_controller();
}
