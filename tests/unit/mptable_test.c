/* Walks the table as a guest does: MultiProcessor Specification 1.4, chapter 4. */
#include "vmm/boot/mptable.h"

#include <criterion/criterion.h>
#include <string.h>

#define POINTER_BYTES 16u
#define HEADER_BYTES  44u

static struct guest_mem mem;
static struct error error;
static uint8_t table[2048]; /* from LAYOUT_SYSTEM on */
static gpa_t end;

static unsigned u16_at(size_t at)
{
    return table[at] | table[at + 1] << 8;
}

static uint32_t u32_at(size_t at)
{
    return u16_at(at) | u16_at(at + 2) << 16;
}

static uint8_t sum(size_t at, size_t n)
{
    uint8_t s = 0;

    while (n--)
        s += table[at++];
    return s;
}

static void write_for(unsigned vcpus)
{
    cr_assert_eq(gmem_init(&mem, 1, HUGE_PAGES_NONE, &error), 0);
    cr_assert_eq(mptable_write(&mem, vcpus, &end, &error), 0, "%s", error.msg);
    cr_assert_eq(gmem_read_(&mem, gpa(LAYOUT_SYSTEM), table, sizeof(table)), 0);
}

static void drop_memory(void)
{
    gmem_fini(&mem);
}

TestSuite(mptable_write, .fini = drop_memory);

/* Offset of the nth entry of a type. */
static size_t entry(uint8_t type, unsigned n)
{
    size_t at = POINTER_BYTES + HEADER_BYTES;

    while (at < POINTER_BYTES + u16_at(POINTER_BYTES + 4)) {
        if (table[at] == type && n-- == 0)
            return at;
        at += table[at] == 0 ? 20 : 8;
    }
    cr_assert_fail("no such entry of type %u", type);
    return 0;
}

Test(mptable_write, lies_where_a_guest_looks_for_it)
{
    write_for(1);
    cr_assert_eq(LAYOUT_SYSTEM % 1024, 0, "in the last KiB of base memory, the e820 map's first");
    cr_assert_eq(memcmp(table, "_MP_", 4), 0);
    cr_assert_eq(u32_at(4), LAYOUT_SYSTEM + POINTER_BYTES);
    cr_assert_eq(table[8], 1);
    cr_assert_eq(table[9], 4);
    cr_assert_eq(sum(0, POINTER_BYTES), 0);
}

Test(mptable_write, has_a_header_that_adds_up)
{
    write_for(5);
    cr_assert_eq(memcmp(table + POINTER_BYTES, "PCMP", 4), 0);
    cr_assert_eq(u16_at(POINTER_BYTES + 4), HEADER_BYTES + 5 * 20 + 8 + 8 + 24 * 8 + 2 * 8);
    cr_assert_eq(sum(POINTER_BYTES, u16_at(POINTER_BYTES + 4)), 0);
    cr_assert_eq(u16_at(POINTER_BYTES + 34), 5 + 1 + 1 + 24 + 2);
    cr_assert_eq(u32_at(POINTER_BYTES + 36), LAYOUT_LAPIC);
    cr_assert_eq(end.v, LAYOUT_SYSTEM + POINTER_BYTES + u16_at(POINTER_BYTES + 4));
}

Test(mptable_write, lists_each_processor_and_the_first_as_the_boot_processor)
{
    write_for(32);
    for (unsigned i = 0; i < 32; i++) {
        size_t at = entry(0, i);

        cr_assert_eq(table[at + 1], i);
        cr_assert_eq(table[at + 3], i == 0 ? 3 : 1);
        cr_assert_eq(u32_at(at + 4), 0x600, "family 6");
        cr_assert_eq(u32_at(at + 8), 0x201, "FPU and APIC");
    }
    cr_assert_eq(entry(1, 0), entry(0, 31) + 20, "no 33rd processor");
}

Test(mptable_write, wires_each_isa_interrupt_to_the_pin_of_its_number)
{
    size_t bus, ioapic;

    write_for(2);
    bus = entry(1, 0);
    ioapic = entry(2, 0);
    cr_assert_eq(memcmp(table + bus + 2, "ISA   ", 6), 0);
    cr_assert_eq(table[ioapic + 1], 3);
    cr_assert_eq(table[ioapic + 3], 1);
    cr_assert_eq(u32_at(ioapic + 4), LAYOUT_IOAPIC);
    for (unsigned i = 0; i < 24; i++) {
        size_t at = entry(3, i);

        cr_assert_eq(table[at + 1], 0);
        cr_assert_eq(u16_at(at + 2), 0);
        cr_assert_eq(table[at + 4], table[bus + 1]);
        cr_assert_eq(table[at + 5], i);
        cr_assert_eq(table[at + 6], table[ioapic + 1]);
        cr_assert_eq(table[at + 7], i);
    }
}

Test(mptable_write, wires_the_pic_to_lint0_and_nmi_to_lint1)
{
    write_for(2);
    cr_assert_eq(table[entry(4, 0) + 1], 3);
    cr_assert_eq(table[entry(4, 0) + 6], 0);
    cr_assert_eq(table[entry(4, 0) + 7], 0);
    cr_assert_eq(table[entry(4, 1) + 1], 1);
    cr_assert_eq(table[entry(4, 1) + 6], 0xff);
    cr_assert_eq(table[entry(4, 1) + 7], 1);
}

Test(mptable_write, fails_without_memory_there)
{
    struct guest_mem none = { 0 };

    cr_assert_eq(mptable_write(&none, 1, &end, &error), -1);
    cr_assert(strstr(error.msg, "MPTable"));
}
