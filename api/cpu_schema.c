#include "api/cpu_schema.h"

#include <string.h>

#include "vmm/base/config.h"

/* The table of a custom CPU template, and its numbers in strings. */

/* A whole number of that base and nothing else, at most max; why not, in Rust's words. */
enum number { NUMBER_OK, NUMBER_EMPTY, NUMBER_INVALID, NUMBER_TOO_LARGE };

static enum number parse_number(const char *text, unsigned base, uint64_t max, uint64_t *out)
{
    uint64_t value = 0;

    if (!*text)
        return NUMBER_EMPTY;
    for (; *text; text++) {
        static const char digits[] = "0123456789abcdef";
        int c = *text >= 'A' && *text <= 'F' ? *text - 'A' + 'a' : *text;
        const char *digit = strchr(digits, c);

        if (!digit || digit - digits >= (int)base)
            return NUMBER_INVALID;
        if (value > (max - (uint64_t)(digit - digits)) / base)
            return NUMBER_TOO_LARGE;
        value = value * base + (uint64_t)(digit - digits);
    }
    *out = value;
    return NUMBER_OK;
}

/* "0x1f" or "0b101". */
static int parse_u32(const char *text, void *member, struct error *e)
{
    static const char *const kinds[] = {
        [NUMBER_EMPTY] = "Empty",
        [NUMBER_INVALID] = "InvalidDigit",
        [NUMBER_TOO_LARGE] = "PosOverflow",
    };
    unsigned base = strncmp(text, "0x", 2) == 0 ? 16 : strncmp(text, "0b", 2) == 0 ? 2 : 0;
    uint64_t value = 0;
    enum number ret;

    if (base == 0)
        return fail(e, ERR_INVALID,
                    "No supported number system prefix found in value [%.400s]. Make sure to "
                    "prefix the number with '0x' for hexadecimal numbers or '0b' for binary "
                    "numbers.",
                    text);
    ret = parse_number(text + 2, base, UINT32_MAX, &value);
    if (ret != NUMBER_OK)
        return fail(e, ERR_INVALID,
                    "Failed to parse string [%.400s] as a number for CPU template - ParseIntError "
                    "{ kind: %s }",
                    text, kinds[ret]);
    *(uint32_t *)member = (uint32_t)value;
    return 0;
}

/* "121": needed; "!121": not needed. */
static int parse_capability(const char *text, void *member, struct error *e)
{
    static const char *const kinds[] = {
        [NUMBER_EMPTY] = "cannot parse integer from empty string",
        [NUMBER_INVALID] = "invalid digit found in string",
        [NUMBER_TOO_LARGE] = "number too large to fit in target type",
    };
    struct kvm_capability *c = member;
    uint64_t value = 0;
    enum number ret;

    c->is_dropped = *text == '!';
    ret = parse_number(text + c->is_dropped, 10, UINT32_MAX, &value);
    if (ret != NUMBER_OK)
        return fail(e, ERR_INVALID,
                    "Failed to parse string [%.400s] as a kvm capability - can not convert to "
                    "numeric: %s",
                    text, kinds[ret]);
    c->number = (uint32_t)value;
    return 0;
}

/* "0b1x0": the bits from the highest, x for one that stays; underscores mean nothing. Read from the
 * end, as the first error is the last one in the text. */
static int parse_bits(const char *text, struct bit_filter *out, unsigned bits, struct error *e)
{
    const char *digits = strncmp(text, "0b", 2) == 0 ? text + 2 : text;
    unsigned bit = 0;

    *out = (struct bit_filter){ 0 };
    for (size_t i = strlen(digits); i-- > 0;) {
        if (digits[i] == '_')
            continue;
        if (bit == bits)
            return fail(e, ERR_INVALID,
                        "Failed to parse string [%.400s] as a bitmap - string is too long", text);
        if (digits[i] != 'x' && digits[i] != '0' && digits[i] != '1')
            return fail(e, ERR_INVALID,
                        "Failed to parse string [%.400s] as a bitmap - unknown character: %u", text,
                        (unsigned char)digits[i]);
        out->mask |= (uint64_t)(digits[i] != 'x') << bit;
        out->value |= (uint64_t)(digits[i] == '1') << bit;
        bit++;
    }
    return 0;
}

static int parse_bits_32(const char *text, void *member, struct error *e)
{
    return parse_bits(text, member, 32, e);
}

static int parse_bits_64(const char *text, void *member, struct error *e)
{
    return parse_bits(text, member, 64, e);
}

static int parse_register(const char *text, void *member, struct error *e)
{
    static const char *const names[] = { "eax", "ebx", "ecx", "edx" };

    for (unsigned i = 0; i < 4; i++)
        if (strcmp(text, names[i]) == 0) {
            *(enum cpuid_register *)member = (enum cpuid_register)i;
            return 0;
        }
    return fail(e, ERR_INVALID, "Invalid CPUID register. Must be one of [eax, ebx, ecx, edx]");
}

static const struct schema_field register_fields[] = {
    SCHEMA_FIELD("register", PARSED, SCHEMA_REQUIRED, offsetof(struct cpuid_register_modifier, reg),
                 .parse = parse_register),
    SCHEMA_FIELD("bitmap", PARSED, SCHEMA_REQUIRED, offsetof(struct cpuid_register_modifier, bits),
                 .parse = parse_bits_32),
};

static const struct schema register_schema = {
    .name = "CpuidRegisterModifier",
    .size = sizeof(struct cpuid_register_modifier),
    SCHEMA_FIELDS(register_fields),
};

#define LEAF(m) offsetof(struct cpuid_modifier, m)

static const struct schema_field leaf_fields[] = {
    SCHEMA_FIELD("leaf", PARSED, SCHEMA_REQUIRED, LEAF(leaf), .parse = parse_u32),
    SCHEMA_FIELD("subleaf", PARSED, SCHEMA_REQUIRED, LEAF(subleaf), .parse = parse_u32),
    SCHEMA_FIELD("flags", U32, SCHEMA_REQUIRED, LEAF(flags)),
    SCHEMA_FIELD("modifiers", LIST, SCHEMA_REQUIRED, LEAF(registers), .object = &register_schema),
};

static const struct schema leaf_schema = {
    .name = "CpuidLeafModifier",
    .size = sizeof(struct cpuid_modifier),
    SCHEMA_FIELDS(leaf_fields),
};

static const struct schema_field msr_fields[] = {
    SCHEMA_FIELD("addr", PARSED, SCHEMA_REQUIRED, offsetof(struct msr_modifier, index),
                 .parse = parse_u32),
    SCHEMA_FIELD("bitmap", PARSED, SCHEMA_REQUIRED, offsetof(struct msr_modifier, bits),
                 .parse = parse_bits_64),
};

static const struct schema msr_schema = {
    .name = "RegisterModifier",
    .size = sizeof(struct msr_modifier),
    SCHEMA_FIELDS(msr_fields),
};

static const struct schema_field capability =
    SCHEMA_FIELD("kvm_capabilities", PARSED, 0, 0, .parse = parse_capability);

#define CPU(m) offsetof(struct cpu_config, m)

_Static_assert(CPU(capability_count) == CPU(capabilities) + sizeof(void *) &&
                   CPU(leaf_count) == CPU(leaves) + sizeof(void *) &&
                   CPU(msr_count) == CPU(msrs) + sizeof(void *) &&
                   LEAF(register_count) == LEAF(registers) + sizeof(void *),
               "these are read as struct schema_list");

static const struct schema_field cpu_fields[] = {
    SCHEMA_FIELD("kvm_capabilities", LIST, SCHEMA_DEFAULT, CPU(capabilities), .item = &capability,
                 .item_size = sizeof(struct kvm_capability)),
    SCHEMA_FIELD("cpuid_modifiers", LIST, SCHEMA_DEFAULT, CPU(leaves), .object = &leaf_schema),
    SCHEMA_FIELD("msr_modifiers", LIST, SCHEMA_DEFAULT, CPU(msrs), .object = &msr_schema),
};

const struct schema cpu_config_schema = {
    .name = "CustomCpuTemplate",
    .size = sizeof(struct cpu_config),
    SCHEMA_FIELDS(cpu_fields),
};
