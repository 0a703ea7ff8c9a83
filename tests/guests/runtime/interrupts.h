/*
 * Interrupts of the first vCPU: the table, the local APIC, the IOAPIC and the two PICs, and waiting
 * for something with a time limit. Interrupts are off except inside wait_until().
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define VECTOR_GSI0     32 /* GSI n arrives at vector 32 + n */
#define VECTOR_TIMER    56 /* the local APIC's timer */
#define VECTOR_IPI      57
#define VECTOR_SPURIOUS 63
#define VECTORS         64

#define LAPIC         0xfee00000ul
#define LAPIC_ID      0x20
#define LAPIC_VERSION 0x30
#define LAPIC_EOI     0xb0
#define LAPIC_SVR     0xf0
#define LAPIC_ISR     0x100 /* in service */
#define LAPIC_IRR     0x200 /* requested */
#define LAPIC_ICR     0x300
#define LAPIC_ICR_TO  0x310
#define LAPIC_TIMER   0x320
#define LAPIC_LINT0   0x350
#define LAPIC_LINT1   0x360
#define LAPIC_INITIAL 0x380
#define LAPIC_DIVIDE  0x3e0

#define IOAPIC 0xfec00000ul

/* How often each vector has been taken. */
extern volatile uint64_t interrupt_count[VECTORS];

typedef void interrupt_handler(unsigned vector);

/* Loads the table, masks both PICs, enables the local APIC. */
void interrupts_init(void);

/* The same for another vCPU: table and local APIC. */
void interrupts_init_ap(void);

/* Called on each interrupt of the vector, before the acknowledgement; NULL: just counted. */
void interrupt_handle(unsigned vector, interrupt_handler *handler);

uint32_t ioapic_read(unsigned reg);
void ioapic_write(unsigned reg, uint32_t value);

/* Routes a GSI to the first vCPU, edge triggered, or masks it. */
void ioapic_route(unsigned gsi);
void ioapic_mask(unsigned gsi);

/* Lets the PICs deliver, IRQ n at vector 32 + n, through LINT0 as the VMM set it up; `mask` has a
 * bit for each IRQ kept off. interrupts_init() leaves all of them off. */
void pic_enable(uint16_t mask);

/* Waits with HLT until `condition` holds; false where it does not within some seconds. A tick of
 * the local APIC's timer looks again every few milliseconds. */
#define wait_until(condition)                                                                      \
    ({                                                                                             \
        bool met_;                                                                                 \
        wait_begin();                                                                              \
        while (!(met_ = (condition)) && wait_more())                                               \
            ;                                                                                      \
        wait_end();                                                                                \
        met_;                                                                                      \
    })

void wait_begin(void);
bool wait_more(void);
void wait_end(void);
