/* HLT and what ends it: the local APIC's timer, an IPI to oneself, the PIT through the IOAPIC and
 * through the PIC, the serial port through the IOAPIC. */
#include "runtime/boot.h"
#include "runtime/interrupts.h"
#include "runtime/io.h"
#include "runtime/report.h"
#include "runtime/smp.h"

#define COM1       0x3f8
#define PIT_GSI    0
#define SERIAL_GSI 4

static void pit_start(void)
{
    outb(0x43, 0x34); /* channel 0, rate generator */
    outb(0x40, 0x00);
    outb(0x40, 0x10); /* 4096 / 1193182 Hz: 3.4 ms */
}

static void check_timer(void)
{
    uint64_t before = interrupt_count[VECTOR_TIMER];

    expect(wait_until(interrupt_count[VECTOR_TIMER] >= before + 3), "the_timer_ends_a_halt");
    before = interrupt_count[VECTOR_TIMER];
    mmio_write32(LAPIC + LAPIC_TIMER, VECTOR_TIMER); /* one shot */
    mmio_write32(LAPIC + LAPIC_INITIAL, 1000);
    __asm__ volatile("sti; hlt; cli" ::: "memory");
    expect_equal(interrupt_count[VECTOR_TIMER], before + 1, "a_one_shot_timer_fires_once");
}

static void check_ipi(void)
{
    uint64_t before = interrupt_count[VECTOR_IPI];

    smp_send_ipi(smp_apic_id());
    __asm__ volatile("sti; hlt; cli" ::: "memory");
    expect_equal(interrupt_count[VECTOR_IPI], before + 1, "an_ipi_to_oneself_ends_a_halt");
}

static void check_ioapic(void)
{
    volatile uint64_t *pit = &interrupt_count[VECTOR_GSI0 + PIT_GSI];
    volatile uint64_t *serial = &interrupt_count[VECTOR_GSI0 + SERIAL_GSI];

    expect_equal(ioapic_read(1) >> 16 & 0xff, 23, "the_ioapic_has_24_lines");
    ioapic_route(PIT_GSI);
    pit_start();
    expect(wait_until(*pit >= 3), "the_pit_arrives_through_the_ioapic");
    ioapic_mask(PIT_GSI);

    outb(COM1 + 4, 0x08); /* OUT2 opens the interrupt line on a PC */
    ioapic_route(SERIAL_GSI);
    expect_equal(*serial, 0, "the_serial_port_is_quiet_at_first");
    outb(COM1 + 1, 0x02); /* transmitter empty */
    expect(wait_until(*serial == 1), "the_serial_port_arrives_through_the_ioapic");
    outb(COM1 + 1, 0);
    ioapic_mask(SERIAL_GSI);
}

/* A kernel with "noapic" takes everything through the PICs. */
static void check_pic(void)
{
    volatile uint64_t *pit = &interrupt_count[VECTOR_GSI0 + PIT_GSI];
    volatile uint64_t *serial = &interrupt_count[VECTOR_GSI0 + SERIAL_GSI];
    uint64_t pit_before = *pit, serial_before = *serial;

    expect_equal(mmio_read32(LAPIC + LAPIC_LINT0) & 0x700, 0x700, "lint0_is_for_the_pic");
    expect_equal(mmio_read32(LAPIC + LAPIC_LINT1) & 0x700, 0x400, "lint1_is_for_nmi");
    (void)inb(COM1 + 2);
    pic_enable((uint16_t) ~(1u << PIT_GSI | 1u << SERIAL_GSI));
    expect(wait_until(*pit >= pit_before + 3), "the_pit_arrives_through_the_pic");
    outb(COM1 + 1, 0x02);
    expect(wait_until(*serial > serial_before), "the_serial_port_arrives_through_the_pic");
    outb(COM1 + 1, 0);
}

void guest_main(void)
{
    check_timer();
    check_ipi();
    check_ioapic();
    check_pic();
}
