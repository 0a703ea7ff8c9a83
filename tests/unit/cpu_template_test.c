#include "vmm/kvm/cpu_template.h"

#include <cpuid.h>
#include <criterion/criterion.h>
#include <string.h>

#include "api/cpu_schema.h"

static struct error e;
static const struct cpu_config *found;

static const char *find(enum cpu_template name, uint32_t vendor, uint32_t signature)
{
    e.msg[0] = '\0';
    return cpu_template_find_for(&found, name, vendor, signature, &e) < 0 ? e.msg : "";
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
