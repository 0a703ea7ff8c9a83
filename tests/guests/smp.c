/* Each vCPU starts, is who the tables say, runs beside the others and takes interrupts. */
#include "runtime/boot.h"
#include "runtime/interrupts.h"
#include "runtime/io.h"
#include "runtime/report.h"
#include "runtime/smp.h"

#define ADDITIONS 50

static volatile uint32_t ids_seen, ids_in_cpuid, answered, sum, go, added;

static void work(uint32_t apic_id)
{
    uint32_t cpuid_id = cpuid(1, 0).ebx >> 24;

    if (cpuid_id == apic_id && cpuid(0xb, 0).edx == apic_id)
        __atomic_fetch_or(&ids_in_cpuid, 1u << apic_id, __ATOMIC_SEQ_CST);
    __atomic_fetch_or(&ids_seen, 1u << apic_id, __ATOMIC_SEQ_CST);
    __asm__ volatile("sti; hlt; cli" ::: "memory");
    __atomic_fetch_add(&answered, 1, __ATOMIC_SEQ_CST);
    while (!__atomic_load_n(&go, __ATOMIC_ACQUIRE))
        __asm__ volatile("pause");
    for (unsigned i = 0; i < ADDITIONS; i++)
        __atomic_fetch_add(&sum, 1, __ATOMIC_SEQ_CST);
    __atomic_fetch_add(&added, 1, __ATOMIC_SEQ_CST);
}

void guest_main(void)
{
    uint32_t vcpus = (uint32_t)boot_number("vcpus", 1), started = 0;

    for (uint32_t id = 1; id < vcpus; id++)
        started += smp_start(id, work);
    expect_equal(started, vcpus - 1, "init_and_sipi_start_each_vcpu");
    expect(wait_until(ids_seen == (uint32_t)((1ul << vcpus) - 2)), "each_vcpu_has_its_apic_id");
    expect_equal(ids_in_cpuid, ids_seen, "cpuid_agrees_on_each_vcpu");
    for (uint32_t id = 1; id < vcpus; id++)
        smp_send_ipi(id);
    expect(wait_until(answered == started), "an_ipi_wakes_each_vcpu");
    expect_equal(interrupt_count[VECTOR_IPI], started, "each_ipi_arrives_once");
    __atomic_store_n(&go, 1, __ATOMIC_RELEASE);
    expect(wait_until(added == started), "all_vcpus_run_to_their_end");
    expect_equal(sum, started * ADDITIONS, "atomic_additions_are_not_lost");
}
