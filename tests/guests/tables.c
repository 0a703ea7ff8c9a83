/* ACPI (6.5) and MultiProcessor (1.4) tables, found as a kernel without help finds them. */
#include "runtime/boot.h"
#include "runtime/interrupts.h"
#include "runtime/io.h"
#include "runtime/report.h"

static bool sums_to_zero(uint64_t at, uint64_t bytes)
{
    uint8_t sum = 0;

    for (uint64_t i = 0; i < bytes; i++)
        sum = (uint8_t)(sum + mmio_read8(at + i));
    return sum == 0;
}

static uint64_t scan(uint64_t from, uint64_t to, const char *what, unsigned bytes)
{
    for (uint64_t at = from; at < to; at += 16)
        if (memcmp((const void *)at, what, bytes) == 0)
            return at;
    return 0;
}

static bool is_table(uint64_t at, const char *signature)
{
    return memcmp((const void *)at, signature, 4) == 0 && mmio_read32(at + 4) >= 36 &&
           at >= 0x9fc00 && at + mmio_read32(at + 4) <= 0xe0000 &&
           sums_to_zero(at, mmio_read32(at + 4));
}

static uint64_t find_table(uint64_t xsdt, const char *signature)
{
    for (uint64_t at = xsdt + 36; at < xsdt + mmio_read32(xsdt + 4); at += 8)
        if (is_table(mmio_read64(at), signature))
            return mmio_read64(at);
    return 0;
}

static void check_madt(uint64_t madt)
{
    uint64_t vcpus = boot_number("vcpus", 1), cpus = 0, ioapics = 0, ids = 0;
    uint64_t at = madt + 44, end = madt + mmio_read32(madt + 4);

    for (; at < end && mmio_read8(at + 1) != 0; at += mmio_read8(at + 1)) {
        if (mmio_read8(at) == 0 && (mmio_read32(at + 4) & 1) != 0) {
            cpus++;
            ids |= 1ul << mmio_read8(at + 3);
        }
        if (mmio_read8(at) == 1 && mmio_read32(at + 4) == IOAPIC && mmio_read32(at + 8) == 0)
            ioapics++;
    }
    expect_equal(mmio_read32(madt + 36), LAPIC, "the_madt_has_the_local_apic");
    expect_equal(cpus, vcpus, "the_madt_has_each_vcpu");
    expect_equal(ids, (1ul << vcpus) - 1, "the_madt_has_apic_ids_from_0");
    expect_equal(ioapics, 1, "the_madt_has_the_ioapic");
}

static uint64_t count(uint64_t at, uint64_t bytes, const char *what, unsigned n)
{
    uint64_t found = 0;

    for (uint64_t i = 0; i + n <= bytes; i++)
        if (mmio_read8(at + i) == (uint8_t)what[0] && memcmp((const void *)(at + i), what, n) == 0)
            found++;
    return found;
}

/* A generic address (5.2.3.2): space, bits, first bit, access size, address. */
static bool is_byte_port(uint64_t at, uint64_t port)
{
    return mmio_read32(at) == (1 | 8 << 8 | 1 << 24) && mmio_read64(at + 4) == port;
}

static void check_acpi(void)
{
    uint64_t rsdp = scan(0xe0000, 0x100000, "RSD PTR ", 8), xsdt, fadt, madt, dsdt;

    if (!expect_equal(rsdp, 0xe0000, "a_scan_finds_the_rsdp"))
        return;
    expect(sums_to_zero(rsdp, 20) && sums_to_zero(rsdp, 36), "the_rsdp_sums_to_zero_twice");
    expect_equal(mmio_read8(rsdp + 15), 2, "the_rsdp_is_revision_2");
    if (entry_state.is_pvh)
        expect_equal(boot.rsdp, rsdp, "the_start_info_has_the_rsdp");
    else
        expect(boot.rsdp == rsdp || boot.rsdp == 0, "the_zero_page_has_the_rsdp_or_nothing");
    xsdt = mmio_read64(rsdp + 24);
    if (!expect(is_table(xsdt, "XSDT"), "the_xsdt_is_whole"))
        return;
    fadt = find_table(xsdt, "FACP");
    madt = find_table(xsdt, "APIC");
    expect(find_table(xsdt, "MCFG") != 0, "the_mcfg_is_whole");
    if (expect(madt != 0, "the_madt_is_whole"))
        check_madt(madt);
    if (!expect(fadt != 0, "the_fadt_is_whole"))
        return;
    expect((mmio_read32(fadt + 112) & 1u << 20) != 0, "the_fadt_is_hardware_reduced");
    expect(is_byte_port(fadt + 244, 0x600), "the_fadt_has_the_sleep_control_register");
    expect(is_byte_port(fadt + 256, 0x601), "the_fadt_has_the_sleep_status_register");
    dsdt = mmio_read64(fadt + 140);
    if (!expect(is_table(dsdt, "DSDT"), "the_dsdt_is_whole"))
        return;
    expect_equal(count(dsdt, mmio_read32(dsdt + 4), "LNRO0005", 8), boot_number("drives", 0),
                 "the_dsdt_has_each_virtio_device");
    expect_equal(count(dsdt, mmio_read32(dsdt + 4), "\x08_S5_\x12", 6), 1, "the_dsdt_has_soft_off");
    expect_equal(count(dsdt, mmio_read32(dsdt + 4), "PWRB\x08_HID\x0c\x41\xd0\x0c\x0c", 14), 1,
                 "the_dsdt_has_the_power_button");
}

static void check_mp_entries(uint64_t table)
{
    static const uint8_t size[] = { 20, 8, 8, 8, 8 };
    uint64_t counts[5] = { 0 }, at = table + 44;

    for (unsigned i = 0; i < mmio_read16(table + 34); i++) {
        uint8_t type = mmio_read8(at);
        if (!expect(type < 5, "each_mp_entry_has_a_known_type"))
            return;
        counts[type]++;
        at += size[type];
    }
    expect_equal(at, table + mmio_read16(table + 4), "the_mp_entries_fill_the_table");
    expect_equal(counts[0], boot_number("vcpus", 1), "the_mp_table_has_each_vcpu");
    expect_equal(counts[1], 1, "the_mp_table_has_one_bus");
    expect_equal(counts[2], 1, "the_mp_table_has_the_ioapic");
    expect(counts[3] >= 16, "the_mp_table_has_the_interrupt_lines");
    expect_equal(counts[4], 2, "the_mp_table_has_both_local_lines");
}

static void check_mp(void)
{
    uint64_t floating = scan(0x9fc00, 0xa0000, "_MP_", 4), table;

    if (!expect(floating != 0, "a_scan_finds_the_mp_pointer"))
        return;
    expect(sums_to_zero(floating, 16), "the_mp_pointer_sums_to_zero");
    table = mmio_read32(floating + 4);
    expect(memcmp((const void *)table, "PCMP", 4) == 0, "the_mp_table_has_its_signature");
    expect(sums_to_zero(table, mmio_read16(table + 4)), "the_mp_table_sums_to_zero");
    expect_equal(mmio_read32(table + 36), LAPIC, "the_mp_table_has_the_local_apic");
    check_mp_entries(table);
}

void guest_main(void)
{
    check_acpi();
    check_mp();
}
