#include "interrupts.h"

#include <stddef.h>

#include "io.h"
#include "report.h"

#define TICK_NS    2000000 /* KVM's local APIC timer counts nanoseconds */
#define WAIT_TICKS 5000

struct gate {
    uint16_t offset_low, selector, attributes, offset_middle;
    uint32_t offset_high, reserved;
};

struct table_pointer {
    uint16_t limit;
    uint64_t base;
} __attribute__((packed));

volatile uint64_t interrupt_count[VECTORS];

extern char interrupt_stubs[];

static struct gate table[VECTORS];
static interrupt_handler *handlers[VECTORS];
static uint64_t ticks_left;
static bool pic_in_use;

static uint32_t lapic_read(unsigned reg)
{
    return mmio_read32(LAPIC + reg);
}

static void lapic_write(unsigned reg, uint32_t value)
{
    mmio_write32(LAPIC + reg, value);
}

/* A vector's bit in the registers that begin at `reg`. */
static bool lapic_has(unsigned reg, unsigned vector)
{
    return (lapic_read(reg + vector / 32 * 0x10) >> vector % 32 & 1) != 0;
}

/* The PICs deliver without the local APIC taking the vector in service, and want their own word. */
static void acknowledge(unsigned vector)
{
    if (vector == VECTOR_SPURIOUS)
        return;
    if (!pic_in_use || lapic_has(LAPIC_ISR, vector)) {
        lapic_write(LAPIC_EOI, 0);
        return;
    }
    if (vector >= VECTOR_GSI0 + 8)
        outb(0xa0, 0x20);
    outb(0x20, 0x20);
}

void interrupt_dispatch(unsigned vector, uint64_t error, uint64_t rip);
void interrupt_dispatch(unsigned vector, uint64_t error, uint64_t rip)
{
    __atomic_fetch_add(&interrupt_count[vector], 1, __ATOMIC_SEQ_CST);
    if (vector < VECTOR_GSI0) {
        print("not ok no_exception: vector %u, error 0x%lx, rip 0x%lx\n", vector, error, rip);
        give_up("no_exception", "the guest can't go on");
    }
    if (handlers[vector] != NULL)
        handlers[vector](vector);
    acknowledge(vector);
}

void interrupt_handle(unsigned vector, interrupt_handler *handler)
{
    handlers[vector] = handler;
}

void interrupts_init_ap(void)
{
    struct table_pointer pointer = { sizeof(table) - 1, (uint64_t)table };

    __asm__ volatile("lidt %0" : : "m"(pointer));
    lapic_write(LAPIC_SVR, 0x100 | VECTOR_SPURIOUS);
}

void interrupts_init(void)
{
    uint16_t code;

    __asm__ volatile("movw %%cs, %0" : "=r"(code));
    for (unsigned i = 0; i < VECTORS; i++) {
        uint64_t stub = (uint64_t)interrupt_stubs + i * 16;
        table[i] = (struct gate){ (uint16_t)stub,         code, 0x8e00, (uint16_t)(stub >> 16),
                                  (uint32_t)(stub >> 32), 0 };
    }
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    interrupts_init_ap();
}

uint32_t ioapic_read(unsigned reg)
{
    mmio_write32(IOAPIC, reg);
    return mmio_read32(IOAPIC + 0x10);
}

void ioapic_write(unsigned reg, uint32_t value)
{
    mmio_write32(IOAPIC, reg);
    mmio_write32(IOAPIC + 0x10, value);
}

void ioapic_route(unsigned gsi)
{
    ioapic_write(0x11 + gsi * 2, lapic_read(LAPIC_ID));
    ioapic_write(0x10 + gsi * 2, VECTOR_GSI0 + gsi);
}

void ioapic_mask(unsigned gsi)
{
    ioapic_write(0x10 + gsi * 2, 0x10000);
    /* One that is on its way is taken here, and not later by whoever expects none. A processor that
     * KVM emulates may let an open window pass without taking it. */
    do
        __asm__ volatile("sti; nop; cli" ::: "memory");
    while (lapic_has(LAPIC_IRR, VECTOR_GSI0 + gsi));
}

void pic_enable(uint16_t mask)
{
    pic_in_use = true;
    outb(0x20, 0x11);
    outb(0x21, VECTOR_GSI0);
    outb(0x21, 4);
    outb(0x21, 1);
    outb(0xa0, 0x11);
    outb(0xa1, VECTOR_GSI0 + 8);
    outb(0xa1, 2);
    outb(0xa1, 1);
    outb(0x21, (uint8_t)mask);
    outb(0xa1, (uint8_t)(mask >> 8));
}

void wait_begin(void)
{
    ticks_left = interrupt_count[VECTOR_TIMER] + WAIT_TICKS;
    lapic_write(LAPIC_DIVIDE, 0xb);
    lapic_write(LAPIC_TIMER, 0x20000 | VECTOR_TIMER); /* periodic */
    lapic_write(LAPIC_INITIAL, TICK_NS);
}

bool wait_more(void)
{
    __asm__ volatile("sti; hlt; cli" ::: "memory");
    return interrupt_count[VECTOR_TIMER] < ticks_left;
}

void wait_end(void)
{
    lapic_write(LAPIC_INITIAL, 0);
    lapic_write(LAPIC_TIMER, 0x10000);
}
