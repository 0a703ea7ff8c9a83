#include "vmm/kvm/cpuid.h"

#include <cpuid.h>
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

static struct cpuid c;

static void add(uint32_t function, uint32_t index, uint32_t eax, uint32_t ebx, uint32_t ecx,
                uint32_t edx)
{
    c.entries[c.nent++] = (struct kvm_cpuid_entry2){
        .function = function, .index = index, .eax = eax, .ebx = ebx, .ecx = ecx, .edx = edx
    };
}

static const struct kvm_cpuid_entry2 *get(uint32_t function, uint32_t index)
{
    for (unsigned i = 0; i < c.nent; i++)
        if (c.entries[i].function == function && c.entries[i].index == index)
            return &c.entries[i];
    return NULL;
}

static void vendor(const char name[13])
{
    uint32_t r[3];

    c.nent = 0;
    memcpy(r, name, 12);
    add(0, 0, 0x1f, r[0], r[2], r[1]);
    add(1, 0, 0x000806f8, 0x00400000, 0x7ffafbff, 0x1f8bfbff);
    add(7, 0, 0, 0, 0x20, 0x20000000);
    add(0xb, 0, 9, 9, 9, 9);
    add(0xb, 1, 9, 9, 9, 9);
    add(0xb, 2, 9, 9, 9, 9);
    for (uint32_t i = 2; i < 5; i++)
        add(0x80000000u + i, 0, 0x41414141, 0x41414141, 0x41414141, 0x41414141);
}

static void intel(void)
{
    vendor("GenuineIntel");
    add(4, 0, 0x121, 0, 0, 0);      /* L1 data */
    add(4, 1, 0x122, 0, 0, 0);      /* L1 code */
    add(4, 2, 0x143, 0, 0, 0);      /* L2 */
    add(4, 3, 0xfc1fc163, 0, 0, 0); /* L3 */
    add(4, 4, 0, 0, 0, 0);
    add(6, 0, 0x6, 0, 0x9, 0);
    add(0xa, 0, 0x7300404, 1, 2, 3);
    add(0x1f, 0, 9, 9, 9, 9);
}

static void amd(void)
{
    vendor("AuthenticAMD");
    add(0x80000001u, 0, 0, 0, 0x77, 0);
    add(0x80000008u, 0, 0x3928, 0, 0x1001, 0);
    add(0x8000001du, 0, 0x4121, 0, 0, 0);
    add(0x8000001du, 1, 0x4163, 0, 0, 0);
    add(0x8000001eu, 0, 5, 0xff03, 0x300, 0);
}

/* As the kernel knows it; bits 12 to 15 and the highest four of a signature are no part of that. */
Test(cpuid_processor, is_the_one_that_this_runs_on)
{
    FILE *f = fopen("/proc/cpuinfo", "re");
    unsigned family, model, stepping, shown_family;
    char line[4096], vendor[16];
    struct processor p = cpuid_processor();
    int found = 0;

    cr_assert_not_null(f);
    while (found < 4 && fgets(line, sizeof(line), f))
        found += sscanf(line, "vendor_id : %15s", vendor) == 1 ||
                 sscanf(line, "cpu family : %u", &family) == 1 ||
                 sscanf(line, "model : %u", &model) == 1 ||
                 sscanf(line, "stepping : %u", &stepping) == 1;
    fclose(f);
    cr_assert_eq(found, 4);
    cr_expect_arr_eq(&p.vendor_ebx, vendor, sizeof(p.vendor_ebx));
    shown_family = family < 15 ? family : 15;
    cr_expect_eq(p.signature & 0x0fff0fff, (family - shown_family) << 20 | (model & 0xf0) << 12 |
                                               shown_family << 8 | (model & 0xf) << 4 | stepping);
}

Test(cpuid_normalise, shows_package_features_for_the_vcpu_count)
{
    intel();
    cpuid_normalise(&c, &(struct cpu_topology){ .vcpu_count = 4 });
    cr_expect_eq(get(1, 0)->ebx, 0x00040800);
    cr_expect(get(1, 0)->ecx & 1u << 31, "hypervisor");
    cr_expect(get(1, 0)->ecx & 1u << 24, "TSC deadline");
    cr_expect_not(get(1, 0)->ecx & 1u << 15, "PDCM");
    cr_expect(get(1, 0)->edx & 1u << 28, "HTT");
    intel();
    cpuid_normalise(&c, &(struct cpu_topology){ .vcpu_count = 1 });
    cr_expect_not(get(1, 0)->edx & 1u << 28, "HTT");
}

/* KVM says of them what it knows, not what there is. */
Test(cpuid_normalise, shows_the_host_s_caches)
{
    uint32_t r[4];

    for (uint32_t leaf = 0x80000005u; leaf <= 0x80000006u; leaf++) {
        intel();
        add(leaf, 0, 1, 2, 3, 4);
        cpuid_normalise(&c, &(struct cpu_topology){ .vcpu_count = 1 });
        __cpuid(leaf, r[0], r[1], r[2], r[3]);
        cr_expect_eq(get(leaf, 0)->eax, r[0], "leaf %x", leaf);
        cr_expect_eq(get(leaf, 0)->ebx, r[1], "leaf %x", leaf);
        cr_expect_eq(get(leaf, 0)->ecx, r[2], "leaf %x", leaf);
        cr_expect_eq(get(leaf, 0)->edx, r[3], "leaf %x", leaf);
    }
}

Test(cpuid_normalise, has_two_topology_levels)
{
    static const struct {
        unsigned vcpus;
        bool smt;
        uint32_t shift, threads;
    } cases[] = { { 1, false, 0, 1 }, { 2, false, 0, 1 }, { 8, true, 1, 2 }, { 1, true, 0, 1 } };

    for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        intel();
        cpuid_normalise(&c, &(struct cpu_topology){ cases[i].vcpus, cases[i].smt });
        cr_expect_eq(get(0xb, 0)->eax, cases[i].shift, "case %u", i);
        cr_expect_eq(get(0xb, 0)->ebx, cases[i].threads, "case %u", i);
        cr_expect_eq(get(0xb, 0)->ecx, 0x100);
        cr_expect_eq(get(0xb, 1)->eax, 5);
        cr_expect_eq(get(0xb, 1)->ebx, cases[i].vcpus);
        cr_expect_eq(get(0xb, 1)->ecx, 0x201);
        cr_expect_null(get(0xb, 2));
        cr_expect_eq(get(0x1f, 1)->ebx, cases[i].vcpus);
    }
}

Test(cpuid_normalise, hides_intel_s_power_and_performance_monitoring)
{
    intel();
    cpuid_normalise(&c, &(struct cpu_topology){ .vcpu_count = 2 });
    cr_expect_eq(get(6, 0)->eax, 0x4);
    cr_expect_eq(get(6, 0)->ecx, 0x1);
    cr_expect_eq(get(0xa, 0)->eax | get(0xa, 0)->ebx | get(0xa, 0)->ecx | get(0xa, 0)->edx, 0);
    cr_expect_eq(get(7, 0)->ebx, 1u << 6 | 1u << 13);
    cr_expect_eq(get(7, 0)->ecx, 0, "WAITPKG");
}

Test(cpuid_normalise, shares_intel_caches_as_the_topology_says)
{
    intel();
    cpuid_normalise(&c, &(struct cpu_topology){ .vcpu_count = 8, .smt = true });
    for (unsigned i = 0; i < 3; i++)
        cr_expect_eq(get(4, i)->eax >> 14 & 0xfff, 1, "level %u", i);
    cr_expect_eq(get(4, 3)->eax >> 14 & 0xfff, 7);
    cr_expect_eq(get(4, 3)->eax >> 26, 3, "four cores");
    cr_expect_eq(get(4, 4)->eax, 0, "the end of the list stays");
}

/* The states of AMX's tiles are bits 17 and 18 of XCR0, which are set together or not at all: hosts
 * of Linux 5.17 to 6.3 show one, and a template can. */
Test(cpuid_normalise, shows_both_states_of_the_tiles_or_nothing_of_them)
{
    static const struct {
        uint32_t given, shown;
    } cases[] = {
        { 0x602e7, 0x602e7 },
        { 0x202e7, 0x2e7 },
        { 0x402e7, 0x2e7 },
        { 0x2e7, 0x2e7 },
    };

    for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        bool is_shown = cases[i].shown >> 17;

        intel();
        add(7, 1, 1 << 21 | 1 << 4, 0, 0, 1 << 8 | 1 << 4);
        add(0xd, 0, cases[i].given, 0x2b00, 0x2b00, 0);
        add(0xd, 17, 0x40, 0xac0, 2, 0);
        add(0xd, 18, 0x2000, 0xb00, 6, 0);
        cpuid_leaf(&c, 7, 0)->edx = 1 << 22 | 1 << 23 | 3 << 24;
        cpuid_normalise(&c, &(struct cpu_topology){ .vcpu_count = 1 });
        cr_expect_eq(get(0xd, 0)->eax, cases[i].shown, "case %u: 0x%x", i, get(0xd, 0)->eax);
        cr_expect_eq(get(0xd, 17)->eax, is_shown ? 0x40 : 0);
        cr_expect_eq(get(0xd, 18)->ebx, is_shown ? 0xb00 : 0);
        cr_expect_eq(get(7, 0)->edx, 1 << 23 | (is_shown ? 1 << 22 | 3 << 24 : 0));
        cr_expect_eq(get(7, 1)->eax, 1 << 4 | (is_shown ? 1 << 21 : 0));
        cr_expect_eq(get(7, 1)->edx, 1 << 4 | (is_shown ? 1 << 8 : 0));
    }
}

Test(cpuid_normalise, shares_caches_in_whatever_order_they_come)
{
    intel();
    c.entries[c.nent++] = c.entries[0];
    c.entries[0] = *get(4, 3);
    cpuid_normalise(&c, &(struct cpu_topology){ .vcpu_count = 8 });
    cr_expect_eq(get(4, 3)->eax >> 14 & 0xfff, 7);
}

/* Of the host's own there is the frequency, where its name ends in one. */
Test(cpuid_normalise, names_a_generic_processor)
{
    char brand[48];

    char line[4096], expected[48] = "Intel(R) Xeon(R) Processor";
    const char *frequency = NULL;
    FILE *f = fopen("/proc/cpuinfo", "re");

    cr_assert_not_null(f);
    while (!frequency && fgets(line, sizeof(line), f))
        if (!strncmp(line, "model name", 10) && (frequency = strstr(line, " @ ")))
            strncat(expected, strtok(line + (frequency - line), "\n"), 16);
    fclose(f);
    intel();
    cpuid_normalise(&c, &(struct cpu_topology){ .vcpu_count = 1 });
    for (uint32_t i = 0; i < 3; i++)
        memcpy(brand + 16 * i, &get(0x80000002u + i, 0)->eax, 16);
    cr_expect_arr_eq(brand, expected, sizeof(brand), "%.48s", brand);
    amd();
    cpuid_normalise(&c, &(struct cpu_topology){ .vcpu_count = 1 });
    for (uint32_t i = 0; i < 3; i++)
        memcpy(brand + 16 * i, &get(0x80000002u + i, 0)->eax, 16);
    cr_expect_str_eq(brand, "AMD EPYC");
}

Test(cpuid_normalise, gives_amd_its_topology_extensions)
{
    amd();
    cpuid_normalise(&c, &(struct cpu_topology){ .vcpu_count = 4, .smt = true });
    cr_expect_eq(get(7, 0)->edx, 0, "ARCH_CAPABILITIES");
    cr_expect_eq(get(0x80000001u, 0)->ecx, 0x77 | 1u << 22);
    cr_expect_eq(get(0x80000008u, 0)->ecx, 0x7003);
    cr_expect_eq(get(0x8000001du, 0)->eax >> 14 & 0xfff, 1);
    cr_expect_eq(get(0x8000001du, 1)->eax >> 14 & 0xfff, 3);
    cr_expect_eq(get(0x8000001eu, 0)->ebx >> 8 & 0xff, 1);
    cr_expect_eq(get(0x8000001eu, 0)->ecx, 0);
}

Test(cpuid_normalise, leaves_other_vendors_and_empty_tables_alone)
{
    c.nent = 0;
    cpuid_normalise(&c, &(struct cpu_topology){ .vcpu_count = 1 });
    cr_expect_eq(c.nent, 0);
    intel();
    c.nent = 1; /* leaf 0 alone */
    cpuid_normalise(&c, &(struct cpu_topology){ .vcpu_count = 1 });
    cr_expect_eq(c.entries[0].eax, 0x1f);
    vendor("CentaurHauls");
    cpuid_normalise(&c, &(struct cpu_topology){ .vcpu_count = 2 });
    cr_expect_eq(get(0x80000002u, 0)->eax, 0x41414141);
    cr_expect_eq(get(1, 0)->ebx, 0x00020800);
}

Test(cpuid_set_vcpu, writes_the_apic_id_everywhere)
{
    amd();
    cpuid_normalise(&c, &(struct cpu_topology){ .vcpu_count = 4, .smt = true });
    for (unsigned vcpu = 0; vcpu < 4; vcpu++) {
        cpuid_leaf(&c, 1, 0)->ebx |= 0xff000000; /* what a template may have left */
        cpuid_set_vcpu(&c, vcpu, &(struct cpu_topology){ .vcpu_count = 4, .smt = true });
        cr_expect_eq(get(1, 0)->ebx >> 24, vcpu);
        cr_expect_eq(get(0xb, 0)->edx, vcpu);
        cr_expect_eq(get(0xb, 1)->edx, vcpu);
        cr_expect_eq(get(0x8000001eu, 0)->eax, vcpu);
        cr_expect_eq(get(0x8000001eu, 0)->ebx & 0xff, vcpu / 2, "core");
    }
}

static void expect_covered(const struct cpuid *host, const struct cpuid *guest, const char *lacks)
{
    struct cpuid supported = *host, seen = *guest;
    struct error e = { .msg = "" };

    cr_expect_eq(cpuid_covers(&supported, &seen, &e), lacks ? -1 : 0, "%s", e.msg);
    if (lacks)
        cr_expect(strstr(e.msg, lacks), "\"%s\" is not in \"%s\"", lacks, e.msg);
}

/* With leaf 0 alone. */
static void maker(const char name[13])
{
    vendor(name);
    c.nent = 1;
}

Test(cpuid_covers, names_what_a_processor_lacks)
{
    struct cpuid host, less;

    maker("GenuineIntel");
    add(1, 0, 0, 0, 1u << 31 | 1u << 25, 0x1);
    add(7, 0, 0, 1u << 5 | 1u << 16, 0, 0);
    host = c;
    expect_covered(&host, &host, NULL);
    less = host;
    less.entries[2].ebx = 1u << 5;
    expect_covered(&host, &less, NULL);
    expect_covered(&less, &host, "another: avx512f");
    less = host;
    less.entries[1].ecx = 0;
    less.entries[1].edx = 0;
    expect_covered(&less, &host, "another: aes CPUID.0x1.0.EDX[0]"); /* not the hypervisor's bit */
    less = host;
    less.nent--;
    expect_covered(&less, &host, "another: avx2 avx512f");
}

Test(cpuid_covers, refuses_another_maker_and_a_cpuid_without_one)
{
    struct cpuid intel, none = { .nent = 0 };

    maker("GenuineIntel");
    intel = c;
    maker("AuthenticAMD");
    expect_covered(&c, &intel, "another maker");
    expect_covered(&intel, &none, "another maker");
    expect_covered(&none, &intel, "another maker");
}

/* However many there are, the text ends. */
Test(cpuid_covers, bounds_what_it_says)
{
    struct cpuid all;

    maker("GenuineIntel");
    all = c;
    for (unsigned i = 0; i < 3; i++)
        add((const uint32_t[]){ 1, 7, 0x80000001 }[i], 0, ~0u, ~0u, ~0u, ~0u);
    expect_covered(&all, &c, "pclmulqdq");
}
