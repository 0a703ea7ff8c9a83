#include "smp.h"

#include "boot.h"
#include "interrupts.h"
#include "io.h"
#include "power.h"
#include "report.h"

#define ICR_INIT       0x4500
#define ICR_STARTUP    0x4600
#define AP_STACK_PAGES 1
#define ICR_FIXED      0x4000

uint64_t ap_stack_top; /* entry.S reads it */

extern char ap_trampoline[], ap_trampoline_end[];

static void (*ap_work)(uint32_t apic_id);
static volatile uint32_t ap_running;

uint32_t smp_apic_id(void)
{
    return mmio_read32(LAPIC + LAPIC_ID) >> 24;
}

void ap_start(void);
void ap_start(void)
{
    void (*work)(uint32_t) = ap_work;

    interrupts_init_ap();
    __atomic_store_n(&ap_running, 1, __ATOMIC_RELEASE);
    work(smp_apic_id());
    halt();
}

static void send(uint32_t apic_id, uint32_t command)
{
    mmio_write32(LAPIC + LAPIC_ICR_TO, apic_id << 24);
    mmio_write32(LAPIC + LAPIC_ICR, command);
}

bool smp_start(uint32_t apic_id, void (*work)(uint32_t apic_id))
{
    memcpy((void *)SMP_TRAMPOLINE, ap_trampoline, (size_t)(ap_trampoline_end - ap_trampoline));
    ap_stack_top = (uint64_t)alloc_pages(AP_STACK_PAGES) + AP_STACK_PAGES * 4096;
    ap_work = work;
    ap_running = 0;
    send(apic_id, ICR_INIT);
    send(apic_id, ICR_STARTUP | SMP_TRAMPOLINE >> 12);
    return wait_until(__atomic_load_n(&ap_running, __ATOMIC_ACQUIRE) != 0);
}

void smp_send_ipi(uint32_t apic_id)
{
    send(apic_id, ICR_FIXED | VECTOR_IPI);
}
