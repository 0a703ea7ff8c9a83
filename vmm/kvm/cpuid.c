#include "vmm/kvm/cpuid.h"

#include <cpuid.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

/* Replaces the bits [high:low] of a register. */
static void set_bits(uint32_t *reg, unsigned high, unsigned low, uint32_t value)
{
    uint32_t mask = (uint32_t)(((UINT64_C(1) << (high - low + 1)) - 1) << low);

    *reg = (*reg & ~mask) | (value << low & mask);
}

static void set_bit(uint32_t *reg, unsigned bit, bool value)
{
    set_bits(reg, bit, bit, value);
}

int cpuid_supported(struct cpuid *c, int kvm_fd, struct error *e)
{
    c->nent = CPUID_ENTRIES_MAX - 2; /* cpuid_normalise may add the topology leaf's two */
    if (ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, c) < 0)
        return fail_os(e, errno, "KVM_GET_SUPPORTED_CPUID");
    return 0;
}

struct kvm_cpuid_entry2 *cpuid_leaf(struct cpuid *c, uint32_t function, uint32_t index)
{
    for (unsigned i = 0; i < c->nent; i++)
        if (c->entries[i].function == function && c->entries[i].index == index)
            return &c->entries[i];
    return NULL;
}

static void remove_leaf(struct cpuid *c, uint32_t function)
{
    unsigned kept = 0;

    for (unsigned i = 0; i < c->nent; i++)
        if (c->entries[i].function != function)
            c->entries[kept++] = c->entries[i];
    c->nent = kept;
}

static void add_leaf(struct cpuid *c, const struct kvm_cpuid_entry2 *entry)
{
    if (c->nent < CPUID_ENTRIES_MAX)
        c->entries[c->nent++] = *entry;
}

/* The bits of an APIC id that tell apart the threads of one core. */
static unsigned smt_bits(const struct cpu_topology *t)
{
    return t->smt && t->vcpu_count > 1 ? 1 : 0;
}

/* What the host's processor says, for leaves that KVM leaves zero. */
static void from_host(struct cpuid *c, uint32_t function)
{
    struct kvm_cpuid_entry2 *l = cpuid_leaf(c, function, 0);

    if (l)
        __cpuid(function, l->eax, l->ebx, l->ecx, l->edx);
}

static void normalise_features(struct cpuid *c, const struct cpu_topology *t)
{
    struct kvm_cpuid_entry2 *l = cpuid_leaf(c, 1, 0);

    if (!l)
        return;
    set_bits(&l->ebx, 15, 8, 8);              /* CLFLUSH line, in units of 8 bytes */
    set_bits(&l->ebx, 23, 16, t->vcpu_count); /* logical processors in the package */
    set_bit(&l->ecx, 15, false);              /* PDCM: no performance monitoring */
    set_bit(&l->ecx, 24, true);               /* TSC deadline timer, of the in-kernel LAPIC */
    set_bit(&l->ecx, 31, true);               /* running under a hypervisor */
    set_bit(&l->edx, 28, t->vcpu_count > 1);  /* HTT: the count above is valid */
}

/* Leaf 0xB (and Intel's 0x1F, whose first two levels have the same form): threads, then cores. */
static void normalise_topology(struct cpuid *c, uint32_t function, const struct cpu_topology *t)
{
    enum { LEVEL_THREADS = 1 << 8, LEVEL_CORES = 2 << 8, PACKAGE_SHIFT = 5 };
    unsigned threads = 1u << smt_bits(t);

    if (!cpuid_leaf(c, function, 0))
        return;
    remove_leaf(c, function);
    add_leaf(c, &(struct kvm_cpuid_entry2){ .function = function,
                                            .index = 0,
                                            .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                                            .eax = smt_bits(t),
                                            .ebx = threads,
                                            .ecx = LEVEL_THREADS });
    add_leaf(c, &(struct kvm_cpuid_entry2){ .function = function,
                                            .index = 1,
                                            .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                                            .eax = PACKAGE_SHIFT,
                                            .ebx = t->vcpu_count,
                                            .ecx = LEVEL_CORES | 1 });
}

/* Leaf 4 (Intel) and 0x8000001D (AMD): who shares each cache. First and second level belong to a
 * core, the third to the package. */
static void normalise_cache_sharing(struct cpuid *c, uint32_t function,
                                    const struct cpu_topology *t)
{
    for (unsigned i = 0; i < c->nent; i++) {
        struct kvm_cpuid_entry2 *l = &c->entries[i];
        unsigned level = l->eax >> 5 & 7;

        if (l->function != function || (l->eax & 0x1f) == 0)
            continue;
        set_bits(&l->eax, 25, 14, level < 3 ? (1u << smt_bits(t)) - 1 : t->vcpu_count - 1);
        if (function == 4)
            set_bits(&l->eax, 31, 26, (t->vcpu_count >> smt_bits(t)) - 1); /* cores, less one */
    }
}

/* 48 bytes over three leaves. */
static void set_brand(struct cpuid *c, const char brand[48])
{
    for (uint32_t i = 0; i < 3; i++) {
        struct kvm_cpuid_entry2 *l = cpuid_leaf(c, 0x80000002u + i, 0);

        if (!l)
            continue;
        memcpy(&l->eax, brand + 16 * i, 4);
        memcpy(&l->ebx, brand + 16 * i + 4, 4);
        memcpy(&l->ecx, brand + 16 * i + 8, 4);
        memcpy(&l->edx, brand + 16 * i + 12, 4);
    }
}

/* The host's frequency, as its brand string ends in it ("... @ 2.50GHz"), without the model. */
static void normalise_brand_intel(struct cpuid *c)
{
    char host[49] = { 0 }, brand[48] = { 0 };
    const char *frequency;

    for (uint32_t i = 0; i < 3; i++) {
        uint32_t r[4];

        __cpuid(0x80000002u + i, r[0], r[1], r[2], r[3]);
        memcpy(host + 16 * i, r, 16);
    }
    frequency = strstr(host, " @ ");
    snprintf(brand, sizeof(brand), "Intel(R) Xeon(R) Processor%.16s", frequency ? frequency : "");
    set_brand(c, brand);
}

/* XCR0 takes both states of the tiles or neither, and their instructions need both. */
static void normalise_tiles(struct cpuid *c)
{
    struct kvm_cpuid_entry2 *l = cpuid_leaf(c, 0xd, 0);

    if (!l || (l->eax >> CPUID_XTILE_CFG & 3) == 3)
        return;
    set_bits(&l->eax, CPUID_XTILE_DATA, CPUID_XTILE_CFG, 0);
    for (uint32_t state = CPUID_XTILE_CFG; state <= CPUID_XTILE_DATA; state++) {
        l = cpuid_leaf(c, 0xd, state);
        if (l)
            l->eax = l->ebx = l->ecx = l->edx = 0;
    }
    l = cpuid_leaf(c, 7, 0);
    if (l) {
        set_bit(&l->edx, 22, false);  /* AMX-BF16 */
        set_bits(&l->edx, 25, 24, 0); /* AMX-TILE, AMX-INT8 */
    }
    l = cpuid_leaf(c, 7, 1);
    if (l) {
        set_bit(&l->eax, 21, false); /* AMX-FP16 */
        set_bit(&l->edx, 8, false);  /* AMX-COMPLEX */
    }
}

static void normalise_intel(struct cpuid *c, const struct cpu_topology *t)
{
    struct kvm_cpuid_entry2 *l;

    normalise_cache_sharing(c, 4, t);
    l = cpuid_leaf(c, 6, 0);
    if (l) {
        set_bit(&l->eax, 1, false); /* turbo */
        set_bit(&l->ecx, 3, false); /* energy performance bias */
    }
    l = cpuid_leaf(c, 7, 0);
    if (l) {
        set_bit(&l->ebx, 6, true);  /* x87 data pointer only on exceptions */
        set_bit(&l->ebx, 13, true); /* x87 CS and DS deprecated */
        set_bit(&l->ecx, 5, false); /* WAITPKG: a guest must not idle unseen */
    }
    l = cpuid_leaf(c, 0xa, 0);
    if (l)
        l->eax = l->ebx = l->ecx = l->edx = 0; /* no performance monitoring */
    normalise_topology(c, 0x1f, t);
    normalise_brand_intel(c);
}

static void normalise_amd(struct cpuid *c, const struct cpu_topology *t)
{
    struct kvm_cpuid_entry2 *l;

    l = cpuid_leaf(c, 7, 0);
    if (l)
        set_bit(&l->edx, 29, false); /* ARCH_CAPABILITIES: an Intel register that KVM emulates */
    l = cpuid_leaf(c, 0x80000001u, 0);
    if (l)
        set_bit(&l->ecx, 22, true); /* topology extensions */
    l = cpuid_leaf(c, 0x80000008u, 0);
    if (l) {
        set_bits(&l->ecx, 7, 0, t->vcpu_count - 1); /* threads in the package, less one */
        set_bits(&l->ecx, 15, 12, 7);               /* bits of an APIC id that count them */
    }
    normalise_cache_sharing(c, 0x8000001du, t);
    l = cpuid_leaf(c, 0x8000001eu, 0);
    if (l) {
        set_bits(&l->ebx, 15, 8, smt_bits(t)); /* threads a core, less one */
        l->ecx = 0;                            /* one node */
    }
    set_brand(c, (const char[48]){ "AMD EPYC" });
}

void cpuid_normalise(struct cpuid *c, const struct cpu_topology *t)
{
    const struct kvm_cpuid_entry2 *vendor = cpuid_leaf(c, 0, 0);

    if (!vendor)
        return;
    normalise_features(c, t);
    normalise_tiles(c);
    normalise_topology(c, 0xb, t);
    from_host(c, 0x80000005u); /* caches and TLBs */
    from_host(c, 0x80000006u);
    if (vendor->ebx == signature_INTEL_ebx)
        normalise_intel(c, t);
    else if (vendor->ebx == signature_AMD_ebx)
        normalise_amd(c, t);
}

void cpuid_set_vcpu(struct cpuid *c, unsigned vcpu, const struct cpu_topology *t)
{
    for (unsigned i = 0; i < c->nent; i++) {
        struct kvm_cpuid_entry2 *l = &c->entries[i];

        switch (l->function) {
        case 1: set_bits(&l->ebx, 31, 24, vcpu); break;
        case 0xb:
        case 0x1f: l->edx = vcpu; break;
        case 0x8000001eu:
            l->eax = vcpu;
            set_bits(&l->ebx, 7, 0, vcpu >> smt_bits(t)); /* core id */
            break;
        default: break;
        }
    }
}
