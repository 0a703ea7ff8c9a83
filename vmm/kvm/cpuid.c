#include "vmm/kvm/cpuid.h"

#include <cpuid.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "vmm/base/config.h"

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

struct processor cpuid_processor(void)
{
    uint32_t eax, vendor_ebx, signature, ebx, ecx, edx;

    __cpuid(0, eax, vendor_ebx, ecx, edx);
    __cpuid(1, signature, ebx, ecx, edx);
    return (struct processor){ vendor_ebx, signature };
}

int cpuid_supported(struct cpuid *c, int kvm_fd, struct error *e)
{
    c->nent = CPUID_ENTRIES_MAX - 2; /* cpuid_normalise may add the topology leaf's two */
    if (ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, c) < 0)
        return fail_os(e, errno, "KVM_GET_SUPPORTED_CPUID");
    return 0;
}

void cpuid_host(uint32_t words[CPUID_HOST_WORDS])
{
    uint32_t ignored; /* leaf 1's ebx: it names the processor that this runs on */

    memset(words, 0, CPUID_HOST_WORDS * sizeof(*words));
    __get_cpuid(0, &words[0], &words[1], &words[2], &words[3]);
    __get_cpuid(1, &words[4], &ignored, &words[5], &words[6]);
    __get_cpuid_count(7, 0, &words[7], &words[8], &words[9], &words[10]);
    __get_cpuid_count(7, 1, &words[11], &ignored, &ignored, &ignored);
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

/* Registers whose bits are features, but for those that a VMM, a guest or KVM sets for other
 * reasons; with names for the features that processors of one decade differ in. */
static const struct feature_word {
    uint32_t leaf, subleaf;
    enum cpuid_register reg;
    uint32_t ignored;
    const char *names; /* from bit 0 on; - for one that has none; NULL: none has */
} feature_words[] = {
    { 1, 0, CPUID_ECX, 1u << 3 | 1u << 24 | 1u << 27 | 1u << 31,
      "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - "
      "pcid dca sse4_1 sse4_2 x2apic movbe popcnt - aes xsave - avx f16c rdrand" },
    { 1, 0, CPUID_EDX, 1u << 9 | 1u << 28, NULL },
    { 7, 0, CPUID_EBX, 0,
      "fsgsbase tsc_adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm cqm - mpx rdt_a avx512f "
      "avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd "
      "sha_ni avx512bw avx512vl" },
    { 7, 0, CPUID_ECX, 1u << 4,
      "- avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni "
      "avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - "
      "movdiri movdir64b enqcmd sgx_lc pks" },
    { 7, 0, CPUID_EDX, 0,
      "- - avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect - md_clear - - - "
      "serialize - tsxldtrk - arch_lbr ibt - - amx_bf16 avx512_fp16 amx_tile amx_int8 ibrs stibp "
      "flush_l1d arch_capabilities core_capabilities ssbd" },
    { 7, 1, CPUID_EAX, 0, "- - - - avx_vnni avx512_bf16" },
    { 0xd, 0, CPUID_EAX, 0, NULL }, /* states of XSAVE */
    { 0xd, 1, CPUID_EAX, 0, "xsaveopt xsavec xgetbv1 xsaves xfd" },
    { 0x80000001, 0, CPUID_ECX, 1u << 1 | 1u << 22,
      "lahf_lm - svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit "
      "wdt "
      "- lwp fma4" },
    { 0x80000001, 0, CPUID_EDX, 0, NULL },
    { 0x80000008, 0, CPUID_EBX, 0, "clzero irperf xsaveerptr rdpru - - mba - - wbnoinvd" },
};

static uint32_t feature_bits(struct cpuid *c, const struct feature_word *w)
{
    const struct kvm_cpuid_entry2 *entry = cpuid_leaf(c, w->leaf, w->subleaf);

    if (!entry)
        return 0;
    switch (w->reg) {
    case CPUID_EAX: return entry->eax;
    case CPUID_EBX: return entry->ebx;
    case CPUID_ECX: return entry->ecx;
    case CPUID_EDX: return entry->edx;
    }
    return 0;
}

/* " NAME", or where the bit is. Returns the length. */
static size_t name_feature(char *out, size_t size, const struct feature_word *w, unsigned bit)
{
    static const char *const registers[] = { "EAX", "EBX", "ECX", "EDX" };
    const char *name = w->names ? w->names : "";

    for (unsigned i = 0; i < bit && *name; i++) {
        name += strcspn(name, " ");
        name += *name == ' ';
    }
    if (*name && *name != '-')
        return (size_t)snprintf(out, size, " %.*s", (int)strcspn(name, " "), name);
    return (size_t)snprintf(out, size, " CPUID.0x%x.%u.%s[%u]", w->leaf, w->subleaf,
                            registers[w->reg], bit);
}

static bool same_maker(struct cpuid *a, struct cpuid *b)
{
    const struct kvm_cpuid_entry2 *first = cpuid_leaf(a, 0, 0), *second = cpuid_leaf(b, 0, 0);

    return first && second && first->ebx == second->ebx && first->ecx == second->ecx &&
           first->edx == second->edx;
}

int cpuid_covers(struct cpuid *supported, struct cpuid *seen, struct error *e)
{
    char missing[512] = "";
    size_t n = 0;

    if (!same_maker(supported, seen))
        return fail(e, ERR_HOST, "the guest has run on a processor of another maker");
    for (size_t i = 0; i < sizeof(feature_words) / sizeof(*feature_words); i++) {
        const struct feature_word *w = &feature_words[i];
        uint32_t lacks = feature_bits(seen, w) & ~feature_bits(supported, w) & ~w->ignored;

        for (; lacks && n < sizeof(missing) - 40; lacks &= lacks - 1)
            n += name_feature(missing + n, sizeof(missing) - n, w, (unsigned)__builtin_ctz(lacks));
    }
    return n ? fail(e, ERR_HOST, "this processor lacks what the guest has seen on another:%s",
                    missing)
             : 0;
}
