#include "vmm/kvm/cpu_template.h"

#include <cpuid.h>
#include <stdbool.h>

#define MSR_IA32_ARCH_CAPABILITIES 0x10au

/*
 * What the named templates change is a fact of the platforms that use them: a guest that was tuned
 * on one host must find the same on another, under whatever VMM. Bits are those of Intel SDM volume
 * 2A "CPUID" and AMD APM volume 3 appendix E. In words:
 *
 *   leaf 1   family, model and stepping of one processor; no debug store, monitor, VMX, power
 *            management, trusted execution, context id, DTES64, direct cache access
 *   leaf 7   what Haswell (C3: Ivy Bridge) had: no AVX-512, MPX, RDT, SGX, HLE and RTM, PT, ...
 *   leaf 0xd no saved state for what is gone; XSAVEC, XSAVES and XGETBV(1) are gone too
 *   extended leaves: no prefetchw, MONITORX, 1 GiB pages, WBNOINVD
 */
#define LEAF(l, s, ...)                                                                            \
    {                                                                                              \
        .leaf = (l), .subleaf = (s),                                                               \
        .registers = (struct cpuid_register_modifier[]){ __VA_ARGS__ },                            \
        .register_count = sizeof((struct cpuid_register_modifier[]){ __VA_ARGS__ }) /              \
                          sizeof(struct cpuid_register_modifier)                                   \
    }
#define EAX(mask, value)                                                                           \
    {                                                                                              \
        CPUID_EAX,                                                                                 \
        {                                                                                          \
            (mask), (value)                                                                        \
        }                                                                                          \
    }
#define EBX(mask, value)                                                                           \
    {                                                                                              \
        CPUID_EBX,                                                                                 \
        {                                                                                          \
            (mask), (value)                                                                        \
        }                                                                                          \
    }
#define ECX(mask, value)                                                                           \
    {                                                                                              \
        CPUID_ECX,                                                                                 \
        {                                                                                          \
            (mask), (value)                                                                        \
        }                                                                                          \
    }
#define EDX(mask, value)                                                                           \
    {                                                                                              \
        CPUID_EDX,                                                                                 \
        {                                                                                          \
            (mask), (value)                                                                        \
        }                                                                                          \
    }

#define SIGNATURE_MASK 0x0fff3fffu
#define IVY_BRIDGE     0x306e4u
#define HASWELL        0x306f2u

/* No MPX, AVX-512 or PKRU state. */
#define NO_WIDE_STATE LEAF(0xd, 0, EAX(0x2f8, 0)), LEAF(0xd, 1, EAX(0xe, 0))

#define HASWELL_LEAF_1                                                                             \
    LEAF(1, 0, EAX(SIGNATURE_MASK, HASWELL), ECX(0x4cdfc, 0), EDX(0xe8641080, 0x1080))

static struct cpuid_modifier c3_leaves[] = {
    LEAF(1, 0, EAX(SIGNATURE_MASK, IVY_BRIDGE), ECX(0x40dd3c, 0), EDX(0xa8641080, 0x1080)),
    LEAF(7, 0, EBX(0xffafdd3c, 0), ECX(0x4041481e, 0), EDX(0xc, 0)),
    NO_WIDE_STATE,
    LEAF(0x80000001, 0, ECX(0x120, 0), EDX(0x4000000, 0)),
};

static struct cpuid_modifier t2_leaves[] = {
    HASWELL_LEAF_1,
    LEAF(7, 0, EBX(0xffefda14, 0x200), ECX(0x40415f5e, 0), EDX(0x11c, 0)),
    NO_WIDE_STATE,
    LEAF(0x80000001, 0, ECX(0x20000100, 0), EDX(0x4000000, 0)),
    LEAF(0x80000008, 0, EBX(0x200, 0)),
};

static struct cpuid_modifier t2cl_leaves[] = {
    HASWELL_LEAF_1,
    LEAF(7, 0, EBX(0xffefda14, 0x200), ECX(0x40415f5e, 0), EDX(0x11c, 0)),
    NO_WIDE_STATE,
    LEAF(0x80000001, 0, ECX(0x200001c0, 0), EDX(0x7c00000, 0)),
    LEAF(0x80000008, 0, EBX(0x200, 0)),
};

static struct cpuid_modifier t2a_leaves[] = {
    HASWELL_LEAF_1,
    LEAF(7, 0, EBX(0xffeffa54, 0x200), ECX(0x40415f5e, 0), EDX(0x11c, 0)),
    NO_WIDE_STATE,
    LEAF(0x80000001, 0, ECX(0x200001c0, 0), EDX(0x7c00000, 0)),
    LEAF(0x80000008, 0, EBX(0xc0205, 0xc0000)),
};

/* T2S: one set of mitigation bits, which holds for both Skylake and Cascade Lake. T2CL: the
 * processor's own bits, without those that no Cascade Lake has. */
static struct msr_modifier t2s_msrs[] = {
    { MSR_IA32_ARCH_CAPABILITIES, { UINT64_MAX, 0x80c4c } },
};
static struct msr_modifier t2cl_msrs[] = {
    { MSR_IA32_ARCH_CAPABILITIES, { 0xfffffffff2f51e00, 0 } },
};

#define LEAVES(list) .leaves = (list), .leaf_count = sizeof(list) / sizeof(*(list))
#define MSRS(list)   .msrs = (list), .msr_count = sizeof(list) / sizeof(*(list))

/* Signatures (leaf 1, eax) without the reserved bits and the stepping, unless that tells two
 * generations apart. */
#define SKYLAKE      0x50654u
#define CASCADE_LAKE 0x50657u
#define ICE_LAKE     0x606a6u
#define MILAN        0xa00f11u

static const struct named_template {
    uint32_t vendor_ebx;
    uint32_t models[4]; /* signatures; 0 ends them */
    struct cpu_config config;
} templates[] = {
    [CPU_TEMPLATE_C3] = { signature_INTEL_ebx,
                          { SKYLAKE, CASCADE_LAKE, ICE_LAKE },
                          { LEAVES(c3_leaves) } },
    [CPU_TEMPLATE_T2] = { signature_INTEL_ebx,
                          { SKYLAKE, CASCADE_LAKE, ICE_LAKE },
                          { LEAVES(t2_leaves) } },
    [CPU_TEMPLATE_T2S] = { signature_INTEL_ebx,
                           { SKYLAKE, CASCADE_LAKE },
                           { LEAVES(t2_leaves), MSRS(t2s_msrs) } },
    [CPU_TEMPLATE_T2CL] = { signature_INTEL_ebx,
                            { CASCADE_LAKE, ICE_LAKE },
                            { LEAVES(t2cl_leaves), MSRS(t2cl_msrs) } },
    [CPU_TEMPLATE_T2A] = { signature_AMD_ebx, { MILAN }, { LEAVES(t2a_leaves) } },
};

int cpu_template_find(const struct cpu_config **out, enum cpu_template name, struct processor on,
                      struct error *e)
{
    const struct named_template *t = &templates[name];

    *out = NULL;
    if (name == CPU_TEMPLATE_NONE)
        return 0;
    if (t->vendor_ebx != on.vendor_ebx)
        return fail(e, ERR_HOST,
                    "Failed to get CPU template: CPU vendor mismatched between actual CPU and CPU "
                    "template.");
    for (const uint32_t *model = t->models; *model; model++)
        if ((on.signature & SIGNATURE_MASK) == *model) {
            *out = &t->config;
            return 0;
        }
    return fail(e, ERR_HOST,
                "Failed to get CPU template: The current CPU model is not permitted to apply the "
                "CPU template.");
}

static uint32_t *register_of(struct kvm_cpuid_entry2 *l, enum cpuid_register r)
{
    switch (r) {
    case CPUID_EAX: return &l->eax;
    case CPUID_EBX: return &l->ebx;
    case CPUID_ECX: return &l->ecx;
    case CPUID_EDX: return &l->edx;
    }
    BUG_ON(true);
}

int cpu_template_apply(const struct cpu_config *t, struct cpuid *c, struct error *e)
{
    for (size_t i = 0; i < t->leaf_count; i++) {
        const struct cpuid_modifier *m = &t->leaves[i];
        struct kvm_cpuid_entry2 *l = cpuid_leaf(c, m->leaf, m->subleaf);

        if (!l)
            return fail(e, ERR_HOST,
                        "Failed to apply CPU template: Template changes a CPUID entry not "
                        "supported by KVM: Leaf: %x, Subleaf: %x",
                        m->leaf, m->subleaf);
        for (size_t r = 0; r < m->register_count; r++) {
            const struct cpuid_register_modifier *change = &m->registers[r];
            uint32_t *reg = register_of(l, change->reg);

            *reg = (uint32_t)((*reg & ~change->bits.mask) | change->bits.value);
        }
    }
    return 0;
}
