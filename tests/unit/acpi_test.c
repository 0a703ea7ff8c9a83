/* Follows the tables as a guest does (ACPI 6.5, chapter 5); dsdt_golden.h holds a whole DSDT. */
#include "vmm/boot/acpi.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "tests/unit/dsdt_golden.h"
#include "vmm/boot/aml.h"

#define FIRST_FREE (LAYOUT_SYSTEM + 0x130)

static struct guest_mem mem;
static struct error error;
static uint8_t low[1 << 20]; /* the guest's first MiB */
static struct platform platform;

static uint32_t u32_at(size_t at)
{
    return low[at] | low[at + 1] << 8 | low[at + 2] << 16 | (uint32_t)low[at + 3] << 24;
}

static uint64_t u64_at(size_t at)
{
    return u32_at(at) | (uint64_t)u32_at(at + 4) << 32;
}

static uint8_t sum(size_t at, size_t n)
{
    uint8_t s = 0;

    while (n--)
        s += low[at++];
    return s;
}

static void write_for(unsigned vcpus, unsigned virtio_count)
{
    platform = (struct platform){
        .vcpu_count = vcpus,
        .virtio_count = virtio_count,
        .vmgenid_gsi = GSI_FIRST + virtio_count,
        .vmclock_gsi = GSI_FIRST + virtio_count + 1,
    };
    for (unsigned i = 0; i < virtio_count; i++) {
        platform.virtio[i].base = gpa(LAYOUT_VIRTIO + i * LAYOUT_VIRTIO_STEP);
        platform.virtio[i].gsi = GSI_FIRST + i;
    }
    cr_assert_eq(gmem_init(&mem, 1, HUGE_PAGES_NONE, &error), 0);
    cr_assert_eq(acpi_write(&mem, &platform, gpa(FIRST_FREE), &error), 0, "%s", error.msg);
    cr_assert_eq(gmem_get(&mem, gpa(0), &low), 0);
}

static void drop_memory(void)
{
    gmem_fini(&mem);
}

TestSuite(acpi_write, .fini = drop_memory);

static size_t xsdt(void)
{
    return u64_at(LAYOUT_RSDP + 24);
}

/* Address of a table, by way of the XSDT or, for the DSDT, the FADT. */
static size_t table(const char *signature)
{
    size_t root = xsdt();

    if (!strcmp(signature, "DSDT"))
        return u64_at(table("FACP") + 140);
    for (size_t at = root + 36; at < root + u32_at(root + 4); at += 8)
        if (!memcmp(low + u64_at(at), signature, 4))
            return u64_at(at);
    cr_assert_fail("no %s", signature);
    return 0;
}

Test(acpi_write, starts_with_an_rsdp_where_a_guest_looks_for_it)
{
    write_for(1, 1);
    cr_assert_eq(memcmp(low + 0xe0000, "RSD PTR ", 8), 0);
    cr_assert_eq(low[0xe0000 + 15], 2);
    cr_assert_eq(u32_at(0xe0000 + 20), 36);
    cr_assert_eq(sum(0xe0000, 20), 0);
    cr_assert_eq(sum(0xe0000, 36), 0);
}

Test(acpi_write, seals_every_table_and_keeps_them_apart)
{
    static const char *const in_order[] = { "DSDT", "FACP", "APIC", "MCFG" };
    size_t next = FIRST_FREE;

    write_for(32, PLATFORM_VIRTIO_MAX);
    for (unsigned i = 0; i < 4; i++) {
        size_t at = table(in_order[i]);

        cr_assert_eq(memcmp(low + at, in_order[i], 4), 0);
        cr_assert_eq(at, next, "%s", in_order[i]);
        cr_assert_eq(sum(at, u32_at(at + 4)), 0, "%s", in_order[i]);
        cr_assert_eq(memcmp(low + at + 10, "FIRECKFC", 8), 0);
        next = at + u32_at(at + 4);
    }
    cr_assert_eq(xsdt(), next);
    cr_assert_eq(memcmp(low + next, "XSDT", 4), 0);
    cr_assert_eq(u32_at(next + 4), 36 + 3 * 8);
    cr_assert_eq(sum(next, u32_at(next + 4)), 0);
}

Test(acpi_write, says_the_hardware_is_reduced)
{
    size_t fadt;

    write_for(1, 1);
    fadt = table("FACP");
    cr_assert_eq(u32_at(fadt + 4), 276);
    cr_assert_eq(low[fadt + 8], 6);
    cr_assert_eq(low[fadt + 131], 5);
    cr_assert_eq(u32_at(fadt + 112), 0x100030, "reduced; buttons are devices, or not there");
    cr_assert_eq(low[fadt + 109] | low[fadt + 110] << 8, 4, "no VGA");
    cr_assert_eq(memcmp(low + fadt + 268, "FIRECKVM", 8), 0);
}

Test(acpi_write, names_the_ports_of_the_sleep_registers)
{
    static const uint8_t byte_port[4] = { 1, 8, 0, 1 };
    size_t fadt;

    write_for(1, 1);
    fadt = table("FACP");
    cr_assert_eq(memcmp(low + fadt + 244, byte_port, 4), 0);
    cr_assert_eq(u64_at(fadt + 248), LAYOUT_SLEEP_CONTROL);
    cr_assert_eq(memcmp(low + fadt + 256, byte_port, 4), 0);
    cr_assert_eq(u64_at(fadt + 260), LAYOUT_SLEEP_STATUS);
}

Test(acpi_write, lists_the_apics)
{
    size_t madt;

    write_for(32, 1);
    madt = table("APIC");
    cr_assert_eq(u32_at(madt + 4), 44 + 12 + 32 * 8);
    cr_assert_eq(u32_at(madt + 36), LAYOUT_LAPIC);
    cr_assert_eq(low[madt + 44], 1);
    cr_assert_eq(low[madt + 45], 12);
    cr_assert_eq(low[madt + 46], 0);
    cr_assert_eq(u32_at(madt + 48), LAYOUT_IOAPIC);
    cr_assert_eq(u32_at(madt + 52), 0);
    for (unsigned i = 0; i < 32; i++) {
        const uint8_t want[8] = { 0, 8, i, i, 1 };

        cr_assert_eq(memcmp(low + madt + 56 + i * 8, want, 8), 0);
    }
}

Test(acpi_write, reserves_the_ecam_window)
{
    size_t mcfg;

    write_for(1, 1);
    mcfg = table("MCFG");
    cr_assert_eq(u32_at(mcfg + 4), 60);
    cr_assert_eq(u64_at(mcfg + 44), LAYOUT_ECAM);
}

Test(acpi_write, describes_the_devices_as_the_golden_dsdt_does)
{
    size_t dsdt;

    write_for(1, 1);
    dsdt = table("DSDT");
    cr_assert_eq(u32_at(dsdt + 4), sizeof(dsdt_golden));
    for (size_t i = 0; i < sizeof(dsdt_golden); i++)
        cr_assert_eq(low[dsdt + i], dsdt_golden[i], "at offset %zu", i);
}

static size_t find(size_t from, size_t to, const void *what, size_t n)
{
    const uint8_t *found = memmem(low + from, to - from, what, n);

    cr_assert(found);
    return (size_t)(found - low);
}

Test(acpi_write, announces_every_virtio_device_with_its_base_and_gsi)
{
    size_t at, end;

    write_for(1, PLATFORM_VIRTIO_MAX);
    at = table("DSDT");
    end = at + u32_at(at + 4);
    for (unsigned i = 0; i < PLATFORM_VIRTIO_MAX; i++) {
        static const uint8_t memory[] = { 0x86, 0x09, 0x00, 0x01 };
        static const uint8_t irq[] = { 0x89, 0x06, 0x00, 0x03, 0x01 };
        char name[12];

        snprintf(name, sizeof(name), "V%03u", i);
        at = find(at, end, name, 4);
        at = find(at, end, "LNRO0005", 9);
        at = find(at, end, memory, sizeof(memory));
        cr_assert_eq(u32_at(at + 4), LAYOUT_VIRTIO + i * LAYOUT_VIRTIO_STEP);
        cr_assert_eq(u32_at(at + 8), LAYOUT_VIRTIO_STEP);
        at = find(at, end, irq, sizeof(irq));
        cr_assert_eq(u32_at(at + 5), GSI_FIRST + i);
    }
}

Test(acpi_write, fails_where_the_tables_do_not_fit)
{
    write_for(1, 1);
    cr_assert_eq(acpi_write(&mem, &platform, gpa(LAYOUT_VMCLOCK - 300), &error), -1);
    cr_assert(strstr(error.msg, "DSDT"), "%s", error.msg);
    cr_assert_eq(
        acpi_write(&mem, &platform, gpa(LAYOUT_VMCLOCK - sizeof(dsdt_golden) - 300), &error), -1);
    cr_assert(strstr(error.msg, "APIC"), "%s", error.msg);
    cr_assert_eq(acpi_write(&mem, &platform, gpa(UINT64_MAX), &error), -1);
}

/* The body of a method of name, flags and n bytes. */
static void expect_length(size_t n, const uint8_t *length, size_t length_bytes)
{
    struct aml a = { 0 };
    size_t mark = aml_method_open(&a, "TEST", 2, true);

    for (size_t i = 5; i < n; i++)
        a.code[a.bytes++] = 0xa3;
    aml_close(&a, mark);
    cr_assert_eq(a.bytes, 1 + length_bytes + n);
    cr_assert_eq(a.code[0], 0x14);
    cr_assert_eq(memcmp(a.code + 1, length, length_bytes), 0);
    cr_assert_eq(memcmp(a.code + 1 + length_bytes, "TEST\x0a", 5), 0);
    cr_assert_eq(a.code[a.bytes - 1], 0xa3);
}

Test(aml, encodes_a_package_length_in_as_few_bytes_as_it_takes)
{
    expect_length(62, (uint8_t[]){ 63 }, 1);
    expect_length(63, (uint8_t[]){ 0x41, 0x04 }, 2);
    expect_length(1000, (uint8_t[]){ 0x4a, 0x3e }, 2);
}

Test(aml, packs_eisa_ids)
{
    static const uint8_t want[] = { 0x08, '_', 'H', 'I', 'D', 0x0c, 0x41, 0xd0, 0x0a, 0x3b };
    struct aml a = { 0 };

    aml_name_eisa_id(&a, "_HID", "PNP0A3B");
    cr_assert_eq(a.bytes, sizeof(want));
    cr_assert_eq(memcmp(a.code, want, sizeof(want)), 0);
    a.bytes = 0;
    aml_name_eisa_id(&a, "_HID", "PNP09AF");
    cr_assert_eq(memcmp(a.code + 8, (uint8_t[]){ 0x09, 0xaf }, 2), 0);
}

Test(aml, writes_absolute_and_relative_paths)
{
    struct aml a = { 0 };

    aml_notify_if_arg0(&a, 9, "\\_SB_.VGEN", 0x80);
    cr_assert_eq(memcmp(a.code, "\xa0\x12\x93\x68\x0a\x09\x86\x5c\x2e_SB_VGEN\x0a\x80", a.bytes),
                 0);
    cr_assert_eq(a.bytes, 19);
}
