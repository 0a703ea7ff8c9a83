/*
 * The UART at 0x3f8 (PC16550D). Modes by command line:
 *   (none)  its registers
 *   echo    takes input by interrupt and sends it back until 'q'
 *   late    lets input pile up, clears the receive FIFO, then echoes
 *   flood   writes flood_kib KiB as fast as it can
 */
#include "runtime/boot.h"
#include "runtime/interrupts.h"
#include "runtime/io.h"
#include "runtime/report.h"

#define COM1       0x3f8
#define SERIAL_GSI 4

enum { DATA, IER, IIR, LCR, MCR, LSR, MSR, SCRATCH };

static bool quit;

static uint8_t get(unsigned reg)
{
    return inb((uint16_t)(COM1 + reg));
}

static void set(unsigned reg, uint8_t value)
{
    outb((uint16_t)(COM1 + reg), value);
}

/* Printing goes through the same registers: what is to be judged is read first. */
static void check_registers(void)
{
    uint8_t low, high, first, second;

    set(SCRATCH, 0x5a);
    first = get(SCRATCH);
    set(SCRATCH, 0xa5);
    second = get(SCRATCH);
    expect(first == 0x5a && second == 0xa5, "the_scratch_register_keeps_its_value");
    set(LCR, 0x83);
    set(DATA, 0x34);
    set(IER, 0x12);
    low = get(DATA);
    high = get(IER);
    set(LCR, 0x03);
    expect(low == 0x34 && high == 0x12, "the_divisor_latch_keeps_its_value");
    expect_equal(get(LCR), 0x03, "the_line_control_keeps_its_value");
    expect_equal(get(IER), 0, "the_divisor_is_not_the_interrupt_enable");
    set(IER, 0xff);
    first = get(IER);
    set(IER, 0);
    expect_equal(first, 0x0f, "the_interrupt_enable_keeps_four_bits");
    expect_equal(get(LSR) & 0x61, 0x60, "the_line_is_idle_and_has_no_input");
    expect_equal(get(MSR) & 0xb0, 0xb0, "the_modem_lines_are_up");
    set(LSR, 0);
    set(MSR, 0);
    expect_equal(get(LSR) & 0x60, 0x60, "the_status_registers_are_read_only");
}

static void check_loopback(void)
{
    uint8_t lines, full, byte, empty;

    set(MCR, 0x1a);
    lines = get(MSR);
    set(DATA, 'x');
    full = get(LSR);
    byte = get(DATA);
    empty = get(LSR);
    set(MCR, 0x08);
    expect_equal(lines & 0xf0, 0x90, "loopback_ties_the_modem_lines");
    expect((full & 1) == 1 && byte == 'x', "loopback_makes_output_input");
    expect_equal(empty & 1, 0, "the_input_is_gone_once_read");
}

static void check_identification(void)
{
    volatile uint64_t *taken = &interrupt_count[VECTOR_GSI0 + SERIAL_GSI];
    uint8_t fifo, quiet, cause, after, last;
    bool first, second;

    set(IIR, 0x01);
    (void)get(IIR);
    fifo = get(IIR);
    quiet = get(IIR);
    ioapic_route(SERIAL_GSI);
    set(IER, 0x02);
    first = wait_until(*taken == 1);
    cause = get(IIR);
    after = get(IIR);
    set(DATA, '\n');
    second = wait_until(*taken == 2);
    set(IER, 0);
    last = get(IIR);
    expect_equal(fifo & 0xc0, 0xc0, "the_fifos_show_once_enabled");
    expect_equal(quiet & 0x0f, 0x01, "nothing_is_pending");
    expect(first, "an_empty_transmitter_interrupts");
    expect_equal(cause & 0x0f, 0x02, "the_cause_is_the_empty_transmitter");
    expect_equal(after & 0x0f, 0x01, "reading_the_cause_clears_it");
    expect(second, "each_byte_sent_interrupts");
    expect_equal(last & 0x0f, 0x01, "a_disabled_interrupt_is_not_pending");
}

static void on_interrupt(unsigned vector)
{
    (void)vector;
    while ((get(IIR) & 0x0f) == 0x04)
        while ((get(LSR) & 1) != 0) {
            uint8_t byte = get(DATA);
            quit |= byte == 'q';
            set(DATA, byte);
        }
}

static void echo(void)
{
    interrupt_handle(VECTOR_GSI0 + SERIAL_GSI, on_interrupt);
    ioapic_route(SERIAL_GSI);
    set(IIR, 0x01);
    set(IER, 0x01);
    print("ready\n");
    expect(wait_until(quit), "input_arrives");
    set(IER, 0);
}

/* What a kernel does that opens its console late: the FIFO is full and is thrown away. A scan code
 * says when it is. */
static void late(void)
{
    set(IIR, 0x01);
    print("waiting\n");
    expect(wait_until((inb(0x64) & 1) != 0), "the_fifo_filled");
    set(IIR, 0x03); /* clear the receive FIFO */
    echo();
}

static void flood(void)
{
    static char block[1024];
    uint64_t kib = boot_number("flood_kib", 256);

    memset(block, 'x', sizeof(block));
    block[sizeof(block) - 1] = '\n';
    for (; kib > 0; kib--) {
        const void *from = block;
        uint64_t n = sizeof(block);
        __asm__ volatile("rep outsb" : "+S"(from), "+c"(n) : "d"((uint16_t)COM1) : "memory");
    }
}

void guest_main(void)
{
    if (boot_has("echo")) {
        echo();
    } else if (boot_has("late")) {
        late();
    } else if (boot_has("flood")) {
        flood();
    } else {
        check_registers();
        check_loopback();
        check_identification();
    }
}
