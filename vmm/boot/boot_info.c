#include "vmm/boot/boot_info.h"

#include <asm/bootparam.h>
#include <string.h>

#include "vmm/boot/e820.h"

#define GDT_ENTRY(flags, access, limit)                                                            \
    ((UINT64_C(flags) << 52) | (UINT64_C(access) << 40) | ((uint64_t)((limit)&0xf0000) << 32) |    \
     ((limit)&0xffff))
#define GDT_FLAT 0xfffff

#define PAGE_PRESENT_WRITABLE 0x03u
#define PAGE_2M               0x80u
#define PAGE_2M_BYTES         (UINT64_C(2) << 20)
#define PAGE_ENTRIES          512

#define LOADER_UNDEFINED    0xff /* type_of_loader of one without an assigned number */
#define PROTOCOL_VERSION    0x020c
#define KERNEL_ALIGNMENT    (16u << 20)
#define SETUP_HEADER_OFFSET 0x1f1

_Static_assert(sizeof(struct boot_params) == 4096, "zero page");
_Static_assert(offsetof(struct boot_params, acpi_rsdp_addr) == 0x70, "zero page");
_Static_assert(offsetof(struct boot_params, e820_entries) == 0x1e8, "zero page");
_Static_assert(offsetof(struct boot_params, hdr) == SETUP_HEADER_OFFSET, "zero page");
_Static_assert(offsetof(struct boot_params, e820_table) == 0x2d0, "zero page");
_Static_assert(SETUP_HEADER_OFFSET + SETUP_HEADER_BYTES <=
                   offsetof(struct boot_params, edd_mbr_sig_buffer),
               "the setup header ends before the next field");

/* The PVH start structures: Xen, xen/include/public/arch-x86/hvm/start_info.h. */
#define PVH_MAGIC   0x336ec578u
#define PVH_VERSION 1u /* the first with a memory map */

struct pvh_start_info {
    uint32_t magic;
    uint32_t version;
    uint32_t flags;
    uint32_t module_count;
    uint64_t modules;
    uint64_t cmdline;
    uint64_t rsdp;
    uint64_t memmap;
    uint32_t memmap_count;
    uint32_t reserved;
};
_Static_assert(sizeof(struct pvh_start_info) == 56, "start_info.h");
_Static_assert(offsetof(struct pvh_start_info, memmap) == 40, "start_info.h");

struct pvh_module {
    uint64_t start;
    uint64_t bytes;
    uint64_t cmdline;
    uint64_t reserved;
};
_Static_assert(sizeof(struct pvh_module) == 32, "start_info.h");

struct pvh_memmap_entry {
    uint64_t start;
    uint64_t bytes;
    uint32_t type; /* as in e820 */
    uint32_t reserved;
};
_Static_assert(sizeof(struct pvh_memmap_entry) == 24, "start_info.h");

static int write_descriptor_tables(struct guest_mem *m, bool is_long)
{
    const uint64_t gdt[] = {
        0,
        is_long ? GDT_ENTRY(0xa, 0x9b, GDT_FLAT) : GDT_ENTRY(0xc, 0x9b, GDT_FLAT),
        GDT_ENTRY(0xc, 0x93, GDT_FLAT),
        GDT_ENTRY(0x0, 0x8b, 0x67),
    };
    const uint64_t idt = 0;

    _Static_assert(sizeof(gdt) == BOOT_GDT_LIMIT + 1, "as its header says");
    _Static_assert(LAYOUT_GDT + sizeof(gdt) <= LAYOUT_IDT, "one after the other");
    return gmem_put(m, gpa(LAYOUT_GDT), &gdt) < 0 ? -1 : gmem_put(m, gpa(LAYOUT_IDT), &idt);
}

/* Identity map of LAYOUT_IDENTITY_MAP bytes in pages of 2 MiB. */
static int write_page_tables(struct guest_mem *m)
{
    const uint64_t pml4e = LAYOUT_PDPT | PAGE_PRESENT_WRITABLE;
    const uint64_t pdpte = LAYOUT_PD | PAGE_PRESENT_WRITABLE;
    uint64_t pd[PAGE_ENTRIES];

    _Static_assert(PAGE_ENTRIES * PAGE_2M_BYTES == LAYOUT_IDENTITY_MAP, "one page directory");
    for (unsigned i = 0; i < PAGE_ENTRIES; i++)
        pd[i] = i * PAGE_2M_BYTES | PAGE_2M | PAGE_PRESENT_WRITABLE;
    if (gmem_put(m, gpa(LAYOUT_PML4), &pml4e) < 0 || gmem_put(m, gpa(LAYOUT_PDPT), &pdpte) < 0)
        return -1;
    return gmem_put(m, gpa(LAYOUT_PD), &pd);
}

/* A bzImage brings its own header. A vmlinux has none: it gets the fields Linux looks at. */
static void fill_setup_header(struct boot_params *zero_page, const struct kernel_image *kernel)
{
    BUG_ON(kernel->setup_header_bytes > SETUP_HEADER_BYTES);
    if (kernel->is_bzimage) {
        memcpy((uint8_t *)zero_page + SETUP_HEADER_OFFSET, kernel->setup_header,
               kernel->setup_header_bytes);
        return;
    }
    zero_page->hdr.boot_flag = 0xaa55;
    memcpy(&zero_page->hdr.header, "HdrS", 4);
    zero_page->hdr.version = PROTOCOL_VERSION;
    zero_page->hdr.kernel_alignment = KERNEL_ALIGNMENT;
    zero_page->hdr.cmdline_size = LAYOUT_CMDLINE_MAX - 1;
}

static int write_zero_page(struct guest_mem *m, const struct kernel_image *kernel,
                           const struct initrd *initrd)
{
    struct boot_params zero_page = { .acpi_rsdp_addr = LAYOUT_RSDP };
    struct e820_map map;

    fill_setup_header(&zero_page, kernel);
    zero_page.hdr.type_of_loader = LOADER_UNDEFINED;
    zero_page.hdr.cmd_line_ptr = LAYOUT_CMDLINE;
    zero_page.hdr.ramdisk_image = (uint32_t)initrd->start.v; /* below the gap at 3 GiB */
    zero_page.hdr.ramdisk_size = (uint32_t)initrd->bytes;
    e820_map_init(&map, m);
    zero_page.e820_entries = (uint8_t)map.count;
    for (unsigned i = 0; i < map.count; i++)
        zero_page.e820_table[i] = (struct boot_e820_entry){
            .addr = map.entries[i].start,
            .size = map.entries[i].bytes,
            .type = map.entries[i].type,
        };
    return gmem_put(m, gpa(LAYOUT_ZERO_PAGE), &zero_page);
}

static int write_pvh_start(struct guest_mem *m, const struct initrd *initrd)
{
    struct pvh_memmap_entry memmap[E820_ENTRIES_MAX] = { 0 };
    const struct pvh_module module = { .start = initrd->start.v, .bytes = initrd->bytes };
    struct pvh_start_info start = {
        .magic = PVH_MAGIC,
        .version = PVH_VERSION,
        .cmdline = LAYOUT_CMDLINE,
        .rsdp = LAYOUT_RSDP,
        .memmap = LAYOUT_PVH_MEMMAP,
    };
    struct e820_map map;

    _Static_assert(LAYOUT_PVH_START + sizeof(start) <= LAYOUT_PVH_MODULES, "one after the other");
    e820_map_init(&map, m);
    start.memmap_count = map.count;
    for (unsigned i = 0; i < map.count; i++)
        memmap[i] = (struct pvh_memmap_entry){
            .start = map.entries[i].start,
            .bytes = map.entries[i].bytes,
            .type = map.entries[i].type,
        };
    if (initrd->bytes) {
        start.module_count = 1;
        start.modules = LAYOUT_PVH_MODULES;
        if (gmem_put(m, gpa(LAYOUT_PVH_MODULES), &module) < 0)
            return -1;
    }
    if (gmem_put(m, gpa(LAYOUT_PVH_MEMMAP), &memmap) < 0)
        return -1;
    return gmem_put(m, gpa(LAYOUT_PVH_START), &start);
}

const char *boot_info_meets(enum boot_protocol protocol, gpa_t at, uint64_t bytes)
{
    enum { LINUX64 = 1 << BOOT_LINUX64, PVH = 1 << BOOT_PVH, BOTH = LINUX64 | PVH };
    static const struct {
        uint64_t start, end;
        unsigned protocols;
        const char *what;
    } ours[] = {
        { LAYOUT_GDT, LAYOUT_IDT + BOOT_IDT_LIMIT + 1, BOTH, "the GDT and the IDT" },
        { LAYOUT_PVH_START, LAYOUT_PVH_MODULES + sizeof(struct pvh_module), PVH, "the start info" },
        { LAYOUT_PVH_MEMMAP, LAYOUT_PVH_MEMMAP + E820_ENTRIES_MAX * sizeof(struct pvh_memmap_entry),
          PVH, "the memory map" },
        { LAYOUT_ZERO_PAGE, LAYOUT_ZERO_PAGE + sizeof(struct boot_params), LINUX64,
          "the zero page" },
        { LAYOUT_BOOT_STACK & ~0xfffu, LAYOUT_BOOT_STACK, LINUX64, "the stack" },
        { LAYOUT_PML4, LAYOUT_PD + PAGE_ENTRIES * sizeof(uint64_t), LINUX64, "the page tables" },
        { LAYOUT_CMDLINE, LAYOUT_CMDLINE + LAYOUT_CMDLINE_MAX, BOTH, "the command line" },
        { LAYOUT_SYSTEM, LAYOUT_SYSTEM_END, BOTH, "the MPTable and the ACPI tables" },
        { LAYOUT_RSDP, LAYOUT_RSDP_END, BOTH, "the pointer to the ACPI tables" },
        { LAYOUT_SMBIOS, LAYOUT_SMBIOS_END, BOTH, "the SMBIOS tables" },
    };

    for (size_t i = 0; i < sizeof(ours) / sizeof(*ours); i++)
        if (ours[i].protocols & 1u << protocol && at.v < ours[i].end &&
            (ours[i].start < at.v || ours[i].start - at.v < bytes))
            return ours[i].what;
    return NULL;
}

int boot_info_write(struct guest_mem *m, const struct kernel_image *kernel,
                    const struct cmdline *cmdline, const struct initrd *initrd, struct error *e)
{
    bool is_long = kernel->protocol == BOOT_LINUX64;
    int ret = write_descriptor_tables(m, is_long);

    if (ret == 0)
        ret = gmem_put(m, gpa(LAYOUT_CMDLINE), &cmdline->text);
    if (ret == 0 && is_long)
        ret = write_page_tables(m);
    if (ret == 0)
        ret = is_long ? write_zero_page(m, kernel, initrd) : write_pvh_start(m, initrd);
    return ret < 0 ? fail(e, ERR_INVALID, "guest memory is too small to start a kernel") : 0;
}
