#include "vmm/kvm/cpu_template.h"

#include <cpuid.h>
#include <criterion/criterion.h>
#include <string.h>

#include "api/cpu_schema.h"

static struct error e;
static const struct cpu_config *found;

static const char *find(enum cpu_template name, uint32_t vendor, uint32_t signature)
{
    struct processor on = { vendor, signature };

    e.msg[0] = '\0';
    return cpu_template_find(&found, name, on, &e) < 0 ? e.msg : "";
}

Test(cpu_template, is_for_one_vendor)
{
    static const char text[] = "Failed to get CPU template: CPU vendor mismatched between actual "
                               "CPU and CPU template.";

    cr_expect_str_eq(find(CPU_TEMPLATE_T2A, signature_INTEL_ebx, 0x50657), text);
    cr_expect_str_eq(find(CPU_TEMPLATE_T2, signature_AMD_ebx, 0xa00f11), text);
    cr_expect_str_eq(find(CPU_TEMPLATE_T2CL, 0, 0), text);
}

Test(cpu_template, is_for_some_models)
{
    cr_expect_str_eq(find(CPU_TEMPLATE_T2, signature_INTEL_ebx, 0x50654), "");
    cr_expect_str_eq(find(CPU_TEMPLATE_T2A, signature_AMD_ebx, 0xa00f11), "");
    cr_expect_not_null(found);
    cr_expect_str_eq(find(CPU_TEMPLATE_T2CL, signature_INTEL_ebx, 0x50654),
                     "Failed to get CPU template: The current CPU model is not permitted to apply "
                     "the CPU template.");
    cr_expect_null(found);
}

/* Each template, and a processor of each kind that any is for; what is beside it is for none. */
Test(cpu_template, is_for_the_processors_that_it_makes_alike)
{
    static const uint32_t kinds[] = { 0x50654, 0x50657, 0x606a6, 0xa00f11 };
    static const struct {
        enum cpu_template name;
        uint32_t vendor;
        bool is_for[4];
    } rows[] = {
        { CPU_TEMPLATE_C3, signature_INTEL_ebx, { true, true, true, false } },
        { CPU_TEMPLATE_T2, signature_INTEL_ebx, { true, true, true, false } },
        { CPU_TEMPLATE_T2S, signature_INTEL_ebx, { true, true, false, false } },
        { CPU_TEMPLATE_T2CL, signature_INTEL_ebx, { false, true, true, false } },
        { CPU_TEMPLATE_T2A, signature_AMD_ebx, { false, false, false, true } },
    };

    for (unsigned i = 0; i < sizeof(rows) / sizeof(*rows); i++)
        for (unsigned k = 0; k < 4; k++) {
            cr_expect_eq(*find(rows[i].name, rows[i].vendor, kinds[k]) == '\0', rows[i].is_for[k],
                         "template %d, 0x%x", rows[i].name, kinds[k]);
            cr_expect_eq(*find(rows[i].name, rows[i].vendor, kinds[k] | 0xf000c000) == '\0',
                         rows[i].is_for[k], "reserved bits count");
            for (uint32_t bit = 1; bit < 0x10000000; bit <<= 1)
                if (!(bit & 0xc000) && kinds[k] != (0x50654 ^ bit) && kinds[k] != (0x50657 ^ bit))
                    cr_expect_neq(*find(rows[i].name, rows[i].vendor, kinds[k] ^ bit), '\0',
                                  "template %d, 0x%x", rows[i].name, kinds[k] ^ bit);
        }
}

#define ALL UINT32_MAX

/* What a guest sees of a processor that has nothing, and of one that has everything: eax to edx. */
struct seen {
    uint32_t leaf, subleaf, of_nothing[4], of_all[4];
};

static const struct seen c3_seen[] = {
    { 0x1, 0, { 0x306e4, 0, 0, 0x1080 }, { 0xf003c6e4, ALL, 0xffbf22c3, 0x579bffff } },
    { 0x7, 0, { 0, 0, 0, 0 }, { ALL, 0x5022c3, 0xbfbeb7e1, 0xfffffff3 } },
    { 0xd, 0, { 0, 0, 0, 0 }, { 0xfffffd07, ALL, ALL, ALL } },
    { 0xd, 1, { 0, 0, 0, 0 }, { 0xfffffff1, ALL, ALL, ALL } },
    { 0x80000001, 0, { 0, 0, 0, 0 }, { ALL, ALL, 0xfffffedf, 0xfbffffff } },
};

static const struct seen t2_seen[] = {
    { 0x1, 0, { 0x306f2, 0, 0, 0x1080 }, { 0xf003c6f2, ALL, 0xfffb3203, 0x179bffff } },
    { 0x7, 0, { 0, 0x200, 0, 0 }, { ALL, 0x1027eb, 0xbfbea0a1, 0xfffffee3 } },
    { 0xd, 0, { 0, 0, 0, 0 }, { 0xfffffd07, ALL, ALL, ALL } },
    { 0xd, 1, { 0, 0, 0, 0 }, { 0xfffffff1, ALL, ALL, ALL } },
    { 0x80000001, 0, { 0, 0, 0, 0 }, { ALL, ALL, 0xdffffeff, 0xfbffffff } },
    { 0x80000008, 0, { 0, 0, 0, 0 }, { ALL, 0xfffffdff, ALL, ALL } },
};

static const struct seen t2cl_seen[] = {
    { 0x1, 0, { 0x306f2, 0, 0, 0x1080 }, { 0xf003c6f2, ALL, 0xfffb3203, 0x179bffff } },
    { 0x7, 0, { 0, 0x200, 0, 0 }, { ALL, 0x1027eb, 0xbfbea0a1, 0xfffffee3 } },
    { 0xd, 0, { 0, 0, 0, 0 }, { 0xfffffd07, ALL, ALL, ALL } },
    { 0xd, 1, { 0, 0, 0, 0 }, { 0xfffffff1, ALL, ALL, ALL } },
    { 0x80000001, 0, { 0, 0, 0, 0 }, { ALL, ALL, 0xdffffe3f, 0xf83fffff } },
    { 0x80000008, 0, { 0, 0, 0, 0 }, { ALL, 0xfffffdff, ALL, ALL } },
};

static const struct seen t2a_seen[] = {
    { 0x1, 0, { 0x306f2, 0, 0, 0x1080 }, { 0xf003c6f2, ALL, 0xfffb3203, 0x179bffff } },
    { 0x7, 0, { 0, 0x200, 0, 0 }, { ALL, 0x1007ab, 0xbfbea0a1, 0xfffffee3 } },
    { 0xd, 0, { 0, 0, 0, 0 }, { 0xfffffd07, ALL, ALL, ALL } },
    { 0xd, 1, { 0, 0, 0, 0 }, { 0xfffffff1, ALL, ALL, ALL } },
    { 0x80000001, 0, { 0, 0, 0, 0 }, { ALL, ALL, 0xdffffe3f, 0xf83fffff } },
    { 0x80000008, 0, { 0, 0xc0000, 0, 0 }, { ALL, 0xfffffdfa, ALL, ALL } },
};

static struct cpuid filled(uint32_t value)
{
    static const uint32_t leaves[][2] = { { 1, 0 },   { 7, 0 },          { 0xd, 0 },
                                          { 0xd, 1 }, { 0x80000001, 0 }, { 0x80000008, 0 } };
    struct cpuid c = { .nent = sizeof(leaves) / sizeof(*leaves) };

    for (unsigned i = 0; i < c.nent; i++)
        c.entries[i] = (struct kvm_cpuid_entry2){ .function = leaves[i][0],
                                                  .index = leaves[i][1],
                                                  .eax = value,
                                                  .ebx = value,
                                                  .ecx = value,
                                                  .edx = value };
    return c;
}

static void expect_registers(struct cpuid *c, uint32_t leaf, uint32_t subleaf,
                             const uint32_t *expected)
{
    const struct kvm_cpuid_entry2 *l = cpuid_leaf(c, leaf, subleaf);

    cr_expect_eq(l->eax, expected[0], "leaf 0x%x.%u: eax 0x%x", leaf, subleaf, l->eax);
    cr_expect_eq(l->ebx, expected[1], "leaf 0x%x.%u: ebx 0x%x", leaf, subleaf, l->ebx);
    cr_expect_eq(l->ecx, expected[2], "leaf 0x%x.%u: ecx 0x%x", leaf, subleaf, l->ecx);
    cr_expect_eq(l->edx, expected[3], "leaf 0x%x.%u: edx 0x%x", leaf, subleaf, l->edx);
}

/* In the leaves of `seen` what stands there; any other is as it was. */
static void expect_seen(enum cpu_template name, uint32_t vendor, uint32_t signature,
                        const struct seen *seen, size_t count)
{
    struct cpuid nothing = filled(0), all = filled(ALL);
    size_t n = 0;

    cr_assert_str_eq(find(name, vendor, signature), "");
    cr_assert_eq(cpu_template_apply(found, &nothing, &e), 0, "%s", e.msg);
    cr_assert_eq(cpu_template_apply(found, &all, &e), 0, "%s", e.msg);
    for (unsigned i = 0; i < all.nent; i++) {
        static const uint32_t zeroes[4], ones[4] = { ALL, ALL, ALL, ALL };
        const struct kvm_cpuid_entry2 *l = &all.entries[i];
        bool is_changed = n < count && seen[n].leaf == l->function && seen[n].subleaf == l->index;

        expect_registers(&nothing, l->function, l->index, is_changed ? seen[n].of_nothing : zeroes);
        expect_registers(&all, l->function, l->index, is_changed ? seen[n].of_all : ones);
        n += is_changed;
    }
    cr_expect_eq(n, count);
}

#define EXPECT_SEEN(name, vendor, signature, seen)                                                 \
    expect_seen(name, vendor, signature, seen, sizeof(seen) / sizeof(*(seen)))

/* Guests move between hosts on which another VMM applied the template of that name. */
Test(cpu_template, shows_a_guest_the_same_wherever_it_is)
{
    EXPECT_SEEN(CPU_TEMPLATE_C3, signature_INTEL_ebx, 0x50657, c3_seen);
    EXPECT_SEEN(CPU_TEMPLATE_T2, signature_INTEL_ebx, 0x50657, t2_seen);
    EXPECT_SEEN(CPU_TEMPLATE_T2S, signature_INTEL_ebx, 0x50657, t2_seen);
    EXPECT_SEEN(CPU_TEMPLATE_T2CL, signature_INTEL_ebx, 0x50657, t2cl_seen);
    EXPECT_SEEN(CPU_TEMPLATE_T2A, signature_AMD_ebx, 0xa00f11, t2a_seen);
}

Test(cpu_template, says_which_mitigations_a_processor_needs)
{
    cr_assert_str_eq(find(CPU_TEMPLATE_T2S, signature_INTEL_ebx, 0x50657), "");
    cr_assert_eq(found->msr_count, 1);
    cr_expect_eq(found->msrs[0].index, 0x10a);
    cr_expect_eq(found->msrs[0].bits.mask, UINT64_MAX);
    cr_expect_eq(found->msrs[0].bits.value, 0x80c4c);
    cr_assert_str_eq(find(CPU_TEMPLATE_T2CL, signature_INTEL_ebx, 0x50657), "");
    cr_assert_eq(found->msr_count, 1);
    cr_expect_eq(found->msrs[0].index, 0x10a);
    cr_expect_eq(found->msrs[0].bits.mask, 0xfffffffff2f51e00);
    cr_expect_eq(found->msrs[0].bits.value, 0);
}
Test(cpu_template, may_be_none_anywhere)
{
    cr_expect_str_eq(find(CPU_TEMPLATE_NONE, 0, 0), "");
    cr_expect_null(found);
}

static struct cpuid two_leaves(void)
{
    struct cpuid c = { .nent = 2 };

    c.entries[0] = (struct kvm_cpuid_entry2){ .function = 1, .ecx = 0xff };
    c.entries[1] = (struct kvm_cpuid_entry2){ .function = 7, .index = 1, .edx = UINT32_MAX };
    return c;
}

static struct cpu_config decoded;

static const char *decode(const char *text)
{
    cpu_config_fini(&decoded);
    e.msg[0] = '\0';
    uint32_t given;

    return schema_decode(&cpu_config_schema, &decoded, text, strlen(text), &given, &e) < 0 ? e.msg
                                                                                           : "";
}

Test(cpu_template, changes_the_bits_that_are_not_x)
{
    struct cpuid c = two_leaves();

    cr_assert_str_eq(decode("{\"cpuid_modifiers\":[{\"leaf\":\"0x1\",\"subleaf\":\"0b0\",\"flags\":"
                            "0,\"modifiers\":[{\"register\":\"ecx\",\"bitmap\":\"0b1_0x0\"}]},"
                            "{\"leaf\":\"0x7\",\"subleaf\":\"0x1\",\"flags\":1,\"modifiers\":["
                            "{\"register\":\"edx\",\"bitmap\":"
                            "\"0b0xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"}]}]}"),
                     "");
    cr_assert_eq(cpu_template_apply(&decoded, &c, &e), 0, "%s", e.msg);
    cr_expect_eq(c.entries[0].ecx, 0xfa);
    cr_expect_eq(c.entries[1].edx, 0x7fffffff);
}

Test(cpu_template, names_a_leaf_that_is_not_there)
{
    struct cpuid c = two_leaves();

    cr_assert_str_eq(decode("{\"cpuid_modifiers\":[{\"leaf\":\"0x7\",\"subleaf\":\"0x0\",\"flags\":"
                            "0,\"modifiers\":[]}]}"),
                     "");
    cr_expect_eq(cpu_template_apply(&decoded, &c, &e), -1);
    cr_expect(strstr(e.msg, "Leaf: 7, Subleaf: 0"), "%s", e.msg);
}

Test(cpu_config, keeps_numbers_of_every_size)
{
    cr_assert_str_eq(
        decode("{\"kvm_capabilities\":[\"121\",\"!56\"],\"msr_modifiers\":[{\"addr\":"
               "\"0xFFFFffff\",\"bitmap\":"
               "\"0b1xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"}"
               "]}"),
        "");
    cr_expect_eq(decoded.capability_count, 2);
    cr_expect_eq(decoded.capabilities[0].number, 121);
    cr_expect(!decoded.capabilities[0].is_dropped && decoded.capabilities[1].is_dropped);
    cr_expect_eq(decoded.msrs[0].index, UINT32_MAX);
    cr_expect_eq(decoded.msrs[0].bits.mask, UINT64_C(1) << 63);
    cr_expect_eq(decoded.msrs[0].bits.value, UINT64_C(1) << 63);
}

Test(cpu_config, words_its_errors_as_clients_know_them)
{
    static const struct {
        const char *text, *message;
    } cases[] = {
        { "{\"kvm_capabilities\": [\"x\"]}",
          "Failed to parse string [x] as a kvm capability - can not convert to numeric: invalid "
          "digit found in string at line 1 column 26" },
        { "{\"kvm_capabilities\":[\"4294967296\"]}",
          "Failed to parse string [4294967296] as a kvm capability - can not convert to numeric: "
          "number too large to fit in target type at line 1 column 34" },
        { "{\"msr_modifiers\": [{\"addr\": \"0x\", \"bitmap\": \"0b1\"}]}",
          "Failed to parse string [0x] as a number for CPU template - ParseIntError { kind: Empty "
          "} at line 1 column 32" },
        { "{\"msr_modifiers\": [{\"addr\": \"0x100000000\", \"bitmap\": \"0b1\"}]}",
          "Failed to parse string [0x100000000] as a number for CPU template - ParseIntError { "
          "kind: PosOverflow } at line 1 column 41" },
        { "{\"msr_modifiers\": [{\"addr\": \"0x10\", \"bitmap\": \"0b2\"}]}",
          "Failed to parse string [0b2] as a bitmap - unknown character: 50 at line 1 column 52" },
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++)
        cr_expect_str_eq(decode(cases[i].text), cases[i].message);
}
