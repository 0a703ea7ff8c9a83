/* What CPUID tells the first vCPU, and the registers a kernel relies on. */
#include "runtime/boot.h"
#include "runtime/interrupts.h"
#include "runtime/io.h"
#include "runtime/report.h"
#include "runtime/smp.h"

#define MSR_TSC         0x10
#define MSR_APIC_BASE   0x1b
#define MSR_MISC_ENABLE 0x1a0
#define MSR_MTRR_DEF    0x2ff
#define MSR_KVM_CLOCK   0x4b564d01

/* Layout of pvclock_vcpu_time_info: version, padding, tsc, system time, multiplier, shift, flags.
 */
static volatile uint32_t clock[8] __attribute__((aligned(64)));

static void check_basic(uint64_t vcpus)
{
    struct cpuid one = cpuid(1, 0);

    expect((one.ecx >> 31 & 1) != 0, "the_hypervisor_bit_is_set");
    expect((one.ecx >> 24 & 1) != 0, "the_tsc_deadline_bit_is_set");
    expect((one.ecx >> 15 & 1) == 0, "performance_capabilities_are_hidden");
    if (vcpus > 1) /* with one vCPU the host's KVM may set it all the same */
        expect((one.edx >> 28 & 1) != 0, "the_htt_bit_is_set");
    expect_equal(one.ebx >> 24, smp_apic_id(), "leaf_1_has_the_apic_id");
    expect((one.ebx >> 16 & 0xff) >= vcpus, "leaf_1_counts_the_vcpus");
    expect_equal(one.ebx >> 8 & 0xff, 8, "leaf_1_has_the_cache_line");
    expect_equal(cpuid(10, 0).eax & 0xff, 0, "the_performance_monitor_is_hidden");
}

static void check_topology(uint64_t vcpus)
{
    struct cpuid thread = cpuid(0xb, 0), core = cpuid(0xb, 1), end = cpuid(0xb, 2);

    expect_equal(thread.ecx >> 8 & 0xff, 1, "leaf_b_0_is_the_thread_level");
    expect_equal(core.ecx >> 8 & 0xff, 2, "leaf_b_1_is_the_core_level");
    expect_equal(core.ebx & 0xffff, vcpus, "leaf_b_1_counts_the_vcpus");
    expect(1ul << (core.eax & 0x1f) >= vcpus, "leaf_b_1_shifts_past_the_vcpus");
    expect_equal(end.ecx >> 8 & 0xff, 0, "leaf_b_2_ends_the_list");
    expect_equal(thread.edx, smp_apic_id(), "leaf_b_has_the_apic_id");
}

static void check_kvm(void)
{
    struct cpuid kvm = cpuid(0x40000000, 0);

    expect(kvm.ebx == 0x4b4d564b && kvm.ecx == 0x564b4d56 && kvm.edx == 0x4d, "kvm_signs");
    expect(kvm.eax >= 0x40000001, "kvm_has_a_feature_leaf");
    if (!expect((cpuid(0x40000001, 0).eax >> 3 & 1) != 0, "kvm_offers_its_clock"))
        return;
    wrmsr(MSR_KVM_CLOCK, (uint64_t)clock | 1);
    (void)cpuid(0, 0); /* an exit: KVM fills the page in before the next entry */
    expect(clock[0] != 0 && clock[0] % 2 == 0, "the_clock_page_has_an_even_version");
    expect(clock[6] != 0, "the_clock_page_has_a_multiplier");
}

static void check_msrs(void)
{
    uint64_t before = rdmsr(MSR_TSC), base = rdmsr(MSR_APIC_BASE);

    expect(rdmsr(MSR_TSC) > before && rdtsc() > before, "the_tsc_counts");
    expect_equal(base & ~0xffful, 0xfee00000, "the_apic_base_is_the_usual");
    expect((base & 0x900) == 0x900, "the_first_vcpu_is_the_boot_processor");
    expect((rdmsr(MSR_MISC_ENABLE) & 1) != 0, "fast_strings_are_on");
    expect_equal(rdmsr(MSR_MTRR_DEF) & 0xcff, 0x806, "the_default_memory_type_is_write_back");
}

static volatile uint32_t dumped;

static void dump_leaf(uint32_t apic_id, uint32_t leaf, uint32_t subleaf)
{
    struct cpuid r = cpuid(leaf, subleaf);

    print("cpu%u %x.%u %x %x %x %x\n", apic_id, leaf, subleaf, r.eax, r.ebx, r.ecx, r.edx);
}

/* All leaves, for a comparison outside. */
static void dump(uint32_t apic_id)
{
    for (uint32_t leaf = 0; leaf <= 0xd; leaf++)
        for (uint32_t sub = 0; sub <= (leaf == 0xb ? 7 : leaf == 0xd ? 2 : 0); sub++)
            dump_leaf(apic_id, leaf, sub);
    for (uint32_t leaf = 0x40000000; leaf <= 0x40000001; leaf++)
        dump_leaf(apic_id, leaf, 0);
    for (uint32_t leaf = 0x80000000; leaf <= 0x8000000a; leaf++)
        dump_leaf(apic_id, leaf, 0);
    __atomic_store_n(&dumped, 1, __ATOMIC_RELEASE);
}

static void dump_all(uint64_t vcpus)
{
    for (uint32_t id = 0; id < vcpus; id++) {
        dumped = 0;
        if (id == 0)
            dump(0);
        else
            expect(smp_start(id, dump) && wait_until(dumped), "a_vcpu_tells_its_cpuid");
    }
}

void guest_main(void)
{
    uint64_t vcpus = boot_number("vcpus", 1);

    if (boot_has("dump")) {
        dump_all(vcpus);
        return;
    }
    check_basic(vcpus);
    check_topology(vcpus);
    check_kvm();
    check_msrs();
}
