#include "vmm/boot/boot_info.h"

#include <asm/bootparam.h>
#include <criterion/criterion.h>
#include <string.h>

#include "vmm/boot/e820.h"

static struct guest_mem mem;
static struct error error;
static struct cmdline cmdline;

static void write_info(const struct kernel_image *kernel, const struct initrd *initrd)
{
    cr_assert_eq(gmem_init(&mem, 128, HUGE_PAGES_NONE, &error), 0);
    cr_assert_eq(cmdline_init(&cmdline, "console=ttyS0 -- single", &error), 0);
    cr_assert_eq(boot_info_write(&mem, kernel, &cmdline, initrd, &error), 0, "%s", error.msg);
}

static void drop_memory(void)
{
    gmem_fini(&mem);
}

TestSuite(boot_info_write, .fini = drop_memory);
TestSuite(e820_map, .fini = drop_memory);

static uint64_t u64_at(uint64_t at)
{
    uint64_t v;

    cr_assert_eq(gmem_get(&mem, gpa(at), &v), 0);
    return v;
}

static uint32_t u32_at(uint64_t at)
{
    return (uint32_t)u64_at(at);
}

static const struct kernel_image vmlinux = { .protocol = BOOT_LINUX64 };
static const struct kernel_image pvh = { .protocol = BOOT_PVH };
static const struct initrd no_initrd = { 0 };
static const struct initrd some_initrd = { .start = { 0x7eb5000 }, .bytes = 0x14a321 };

static void read_zero_page(struct boot_params *zero_page)
{
    cr_assert_eq(gmem_get(&mem, gpa(LAYOUT_ZERO_PAGE), zero_page), 0);
}

Test(boot_info_write, puts_the_command_line_with_its_nul)
{
    char text[64];

    write_info(&pvh, &no_initrd);
    cr_assert_eq(gmem_get(&mem, gpa(LAYOUT_CMDLINE), &text), 0);
    cr_assert_str_eq(text, "console=ttyS0 -- single");
}

Test(boot_info_write, gives_a_vmlinux_a_minimal_setup_header)
{
    struct boot_params zero_page;

    write_info(&vmlinux, &some_initrd);
    read_zero_page(&zero_page);
    cr_assert_eq(zero_page.hdr.boot_flag, 0xaa55);
    cr_assert_eq(zero_page.hdr.header, 0x53726448);
    cr_assert_eq(zero_page.hdr.type_of_loader, 0xff);
    cr_assert_eq(zero_page.hdr.cmd_line_ptr, LAYOUT_CMDLINE);
    cr_assert_eq(zero_page.hdr.cmdline_size, LAYOUT_CMDLINE_MAX - 1);
    cr_assert_eq(zero_page.hdr.kernel_alignment, 0x1000000);
    cr_assert_eq(zero_page.hdr.ramdisk_image, some_initrd.start.v);
    cr_assert_eq(zero_page.hdr.ramdisk_size, some_initrd.bytes);
    cr_assert_eq(zero_page.acpi_rsdp_addr, LAYOUT_RSDP);
    cr_assert_eq(zero_page.sentinel, 0);
}

Test(boot_info_write, gives_a_bzimage_its_own_setup_header)
{
    struct kernel_image bzimage = {
        .protocol = BOOT_LINUX64,
        .is_bzimage = true,
        .setup_header_bytes = sizeof(struct setup_header),
    };
    struct setup_header own;
    struct boot_params zero_page;

    memset(&own, 0x5a, sizeof(own));
    memcpy(bzimage.setup_header, &own, sizeof(own));
    write_info(&bzimage, &some_initrd);
    read_zero_page(&zero_page);
    own.type_of_loader = 0xff;
    own.cmd_line_ptr = LAYOUT_CMDLINE;
    own.ramdisk_image = (uint32_t)some_initrd.start.v;
    own.ramdisk_size = (uint32_t)some_initrd.bytes;
    cr_assert_eq(memcmp(&zero_page.hdr, &own, sizeof(own)), 0);
}

Test(boot_info_write, puts_the_e820_map_in_the_zero_page)
{
    struct boot_params zero_page;
    struct e820_map map;

    write_info(&vmlinux, &no_initrd);
    read_zero_page(&zero_page);
    e820_map_init(&map, &mem);
    cr_assert_eq(zero_page.e820_entries, map.count);
    for (unsigned i = 0; i < map.count; i++) {
        cr_assert_eq(zero_page.e820_table[i].addr, map.entries[i].start);
        cr_assert_eq(zero_page.e820_table[i].size, map.entries[i].bytes);
        cr_assert_eq(zero_page.e820_table[i].type, map.entries[i].type);
    }
}

/* Translates as the processor does (Intel SDM volume 3, 4.5), pages of 2 MiB only. */
static uint64_t translate(uint64_t at)
{
    uint64_t entry = u64_at(LAYOUT_PML4 + (at >> 39 & 511) * 8);

    cr_assert_eq(entry & 0xfff, 3);
    entry = u64_at((entry & ~0xfffull) + (at >> 30 & 511) * 8);
    cr_assert_eq(entry & 0xfff, 3);
    entry = u64_at((entry & ~0xfffull) + (at >> 21 & 511) * 8);
    cr_assert_eq(entry & 0xfff, 0x83);
    return (entry & ~0x1fffffull) | (at & 0x1fffff);
}

Test(boot_info_write, maps_the_first_gigabyte_onto_itself)
{
    write_info(&vmlinux, &no_initrd);
    for (uint64_t at = 0x123456; at < LAYOUT_IDENTITY_MAP; at += 0x200000)
        cr_assert_eq(translate(at), at);
    cr_assert_eq(u64_at(LAYOUT_PDPT + 8), 0, "and no more");
    cr_assert_eq(u64_at(LAYOUT_PML4 + 8), 0);
}

Test(boot_info_write, leaves_paging_to_a_kernel_that_starts_without)
{
    write_info(&pvh, &no_initrd);
    cr_assert_eq(u64_at(LAYOUT_PML4), 0);
    cr_assert_eq(u64_at(LAYOUT_PDPT), 0);
    cr_assert_eq(u32_at(LAYOUT_ZERO_PAGE + 0x1f1 + 0x11), 0, "and has no zero page");
}

Test(boot_info_write, has_flat_segments_for_either_protocol)
{
    write_info(&vmlinux, &no_initrd);
    cr_assert_eq(u64_at(LAYOUT_GDT), 0);
    cr_assert_eq(u64_at(LAYOUT_GDT + 0x08), 0x00af9b000000ffff, "64-bit code");
    cr_assert_eq(u64_at(LAYOUT_GDT + 0x10), 0x00cf93000000ffff, "data");
    cr_assert_eq(u64_at(LAYOUT_GDT + 0x18), 0x00008b0000000067, "busy TSS");
    drop_memory();
    write_info(&pvh, &no_initrd);
    cr_assert_eq(u64_at(LAYOUT_GDT + 0x08), 0x00cf9b000000ffff, "32-bit code");
    cr_assert_eq(u64_at(LAYOUT_GDT + 0x10), 0x00cf93000000ffff);
    cr_assert_eq(u64_at(LAYOUT_GDT + 0x18), 0x00008b0000000067);
}

Test(boot_info_write, gives_pvh_its_start_info)
{
    struct e820_map map;

    write_info(&pvh, &some_initrd);
    e820_map_init(&map, &mem);
    cr_assert_eq(u32_at(LAYOUT_PVH_START), 0x336ec578);
    cr_assert_eq(u32_at(LAYOUT_PVH_START + 4), 1);
    cr_assert_eq(u32_at(LAYOUT_PVH_START + 8), 0);
    cr_assert_eq(u32_at(LAYOUT_PVH_START + 12), 1, "one module");
    cr_assert_eq(u64_at(LAYOUT_PVH_START + 16), LAYOUT_PVH_MODULES);
    cr_assert_eq(u64_at(LAYOUT_PVH_START + 24), LAYOUT_CMDLINE);
    cr_assert_eq(u64_at(LAYOUT_PVH_START + 32), LAYOUT_RSDP);
    cr_assert_eq(u64_at(LAYOUT_PVH_START + 40), LAYOUT_PVH_MEMMAP);
    cr_assert_eq(u32_at(LAYOUT_PVH_START + 48), map.count);
    cr_assert_eq(u64_at(LAYOUT_PVH_MODULES), some_initrd.start.v);
    cr_assert_eq(u64_at(LAYOUT_PVH_MODULES + 8), some_initrd.bytes);
    for (unsigned i = 0; i < map.count; i++) {
        uint64_t at = LAYOUT_PVH_MEMMAP + i * 24;

        cr_assert_eq(u64_at(at), map.entries[i].start);
        cr_assert_eq(u64_at(at + 8), map.entries[i].bytes);
        cr_assert_eq(u64_at(at + 16), map.entries[i].type);
    }
}

Test(boot_info_write, tells_pvh_of_no_module_without_an_initrd)
{
    write_info(&pvh, &no_initrd);
    cr_assert_eq(u32_at(LAYOUT_PVH_START + 12), 0);
    cr_assert_eq(u64_at(LAYOUT_PVH_START + 16), 0);
}

Test(boot_info_write, fails_without_memory_there)
{
    struct guest_mem none = { 0 };

    cr_assert_eq(boot_info_write(&none, &pvh, &cmdline, &no_initrd, &error), -1);
    cr_assert(strstr(error.msg, "too small"));
}

static void expect_entry(const struct e820_map *map, unsigned i, uint64_t start, uint64_t end,
                         enum e820_type type)
{
    cr_assert_lt(i, map->count);
    cr_assert_eq(map->entries[i].start, start);
    cr_assert_eq(map->entries[i].start + map->entries[i].bytes, end);
    cr_assert_eq(map->entries[i].type, type);
}

Test(e820_map, has_ram_around_the_system_area_and_reserves_ecam)
{
    struct e820_map map;

    cr_assert_eq(gmem_init(&mem, 128, HUGE_PAGES_NONE, &error), 0);
    e820_map_init(&map, &mem);
    cr_assert_eq(map.count, 4);
    expect_entry(&map, 0, 0, 0x9fc00, E820_RAM);
    expect_entry(&map, 1, 0x9fc00, 0xe0000, E820_RESERVED);
    expect_entry(&map, 2, 0x100000, 128 << 20, E820_RAM);
    expect_entry(&map, 3, 0xeec00000, 0xfec00000, E820_RESERVED);
}

Test(e820_map, splits_ram_at_the_gaps)
{
    struct guest_mem m = {
        .regions = { { .bytes = LAYOUT_MMIO_GAP },
                     { .start = LAYOUT_ABOVE_4G, .bytes = LAYOUT_GAP2_START - LAYOUT_ABOVE_4G },
                     { .start = LAYOUT_GAP2_END, .bytes = 5 << 20 } },
        .region_count = 3,
    };
    struct e820_map map;

    e820_map_init(&map, &m);
    cr_assert_eq(map.count, 6);
    expect_entry(&map, 2, 0x100000, 0xc0000000, E820_RAM);
    expect_entry(&map, 4, 0x100000000, 0x4000000000, E820_RAM);
    expect_entry(&map, 5, 0x8000000000, 0x8000000000 + (5 << 20), E820_RAM);
}

Test(e820_map, has_no_high_ram_in_a_guest_of_1_mib)
{
    struct e820_map map;

    cr_assert_eq(gmem_init(&mem, 1, HUGE_PAGES_NONE, &error), 0);
    e820_map_init(&map, &mem);
    cr_assert_eq(map.count, 3);
    expect_entry(&map, 2, 0xeec00000, 0xfec00000, E820_RESERVED);
}
