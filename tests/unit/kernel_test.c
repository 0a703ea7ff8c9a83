#include "vmm/boot/kernel.h"

#include <criterion/criterion.h>
#include <elf.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "tests/unit/support/image.h"
#include "vmm/kvm/layout.h"

#define TEXT_GPA    0x1000000u
#define DATA_GPA    0x1200000u
#define TEXT_OFFSET 0x1000u
#define TEXT_BYTES  0x21234u /* mapped pages and a partial one that is read */
#define DATA_OFFSET 0x30010u /* does not agree with its address modulo the page size */
#define DATA_BYTES  0x345u
#define BSS_BYTES   0x2000u
#define NOTE_OFFSET 0x200u
#define IMAGE_BYTES 0x40000u
#define NOTE_XEN_18 18

/* A whole ELF file: two segments and a note, which the tests then spoil. */
struct image {
    union {
        struct {
            Elf64_Ehdr header;
            Elf64_Phdr text, data, note;
        };
        uint8_t bytes[IMAGE_BYTES];
    };
    size_t length;
};

static void image_init(struct image *i)
{
    for (size_t n = 0; n < IMAGE_BYTES; n++)
        i->bytes[n] = pattern(n);
    i->length = IMAGE_BYTES;
    i->header = (Elf64_Ehdr){
        .e_ident = { 0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT },
        .e_type = ET_EXEC,
        .e_machine = EM_X86_64,
        .e_version = EV_CURRENT,
        .e_entry = TEXT_GPA + 0x10,
        .e_phoff = sizeof(Elf64_Ehdr),
        .e_ehsize = sizeof(Elf64_Ehdr),
        .e_phentsize = sizeof(Elf64_Phdr),
        .e_phnum = 3,
    };
    i->text = (Elf64_Phdr){
        .p_type = PT_LOAD,
        .p_offset = TEXT_OFFSET,
        .p_vaddr = 0xffffffff81000000,
        .p_paddr = TEXT_GPA,
        .p_filesz = TEXT_BYTES,
        .p_memsz = TEXT_BYTES,
    };
    i->data = (Elf64_Phdr){
        .p_type = PT_LOAD,
        .p_offset = DATA_OFFSET,
        .p_paddr = DATA_GPA,
        .p_filesz = DATA_BYTES,
        .p_memsz = DATA_BYTES + BSS_BYTES,
    };
    i->note = (Elf64_Phdr){ .p_type = PT_NULL, .p_offset = NOTE_OFFSET, .p_align = 4 };
}

/* Appends a note to the note segment. */
static void add_note(struct image *i, const char *name, uint32_t type, const void *desc,
                     uint32_t desc_bytes)
{
    uint8_t *at = i->bytes + NOTE_OFFSET + i->note.p_filesz;
    Elf64_Nhdr note = { (uint32_t)strlen(name) + 1, desc_bytes, type };
    size_t name_bytes = (note.n_namesz + 3) & ~3u;

    i->note.p_type = PT_NOTE;
    memset(at, 0, sizeof(note) + name_bytes + ((desc_bytes + 3) & ~3u));
    memcpy(at, &note, sizeof(note));
    memcpy(at + sizeof(note), name, note.n_namesz);
    memcpy(at + sizeof(note) + name_bytes, desc, desc_bytes);
    i->note.p_filesz += sizeof(note) + name_bytes + ((desc_bytes + 3) & ~3u);
}

static void add_pvh_note(struct image *i, uint64_t entry)
{
    add_note(i, "Xen", NOTE_XEN_18, &entry, sizeof(entry));
}

static int load(const struct image *i)
{
    return load_bytes(i->bytes, i->length);
}

TestSuite(kernel_load, .init = init_memory, .fini = drop_memory);

Test(kernel_load, puts_segments_at_their_physical_addresses)
{
    static struct image i;

    image_init(&i);
    cr_assert_eq(load(&i), 0, "%s", error.msg);
    expect_file_bytes(TEXT_GPA, i.bytes + TEXT_OFFSET, TEXT_BYTES);
    expect_file_bytes(DATA_GPA, i.bytes + DATA_OFFSET, DATA_BYTES);
    cr_assert_eq(loaded.entry.v, TEXT_GPA + 0x10);
    cr_assert_eq(loaded.end.v, DATA_GPA + DATA_BYTES + BSS_BYTES);
    cr_assert_eq(loaded.protocol, BOOT_LINUX64);
    cr_assert_not(loaded.is_bzimage);
}

Test(kernel_load, leaves_what_the_file_does_not_fill_zero)
{
    static struct image i;

    image_init(&i);
    i.text.p_memsz += BSS_BYTES;
    cr_assert_eq(load(&i), 0, "%s", error.msg);
    expect_zeroes(TEXT_GPA - 4096, 4096);
    expect_zeroes(TEXT_GPA + TEXT_BYTES, BSS_BYTES + 4096);
    expect_zeroes(DATA_GPA + DATA_BYTES, BSS_BYTES + 4096);
}

Test(kernel_load, accepts_adjacent_segments_in_any_order)
{
    static struct image i;

    image_init(&i);
    i.data.p_paddr = TEXT_GPA - i.data.p_memsz;
    cr_assert_eq(load(&i), 0, "%s", error.msg);
    expect_file_bytes(TEXT_GPA, i.bytes + TEXT_OFFSET, TEXT_BYTES);
    cr_assert_eq(loaded.end.v, TEXT_GPA + TEXT_BYTES);
    i.data.p_paddr = TEXT_GPA + TEXT_BYTES;
    cr_assert_eq(load(&i), 0, "%s", error.msg);
    expect_file_bytes(TEXT_GPA + TEXT_BYTES, i.bytes + DATA_OFFSET, DATA_BYTES);
}

Test(kernel_load, tells_what_is_written_data_before_text)
{
    static struct image i;

    image_init(&i);
    i.text.p_flags = PF_R | PF_X;
    i.data.p_flags = PF_R | PF_W | PF_X;
    cr_assert_eq(load(&i), 0, "%s", error.msg);
    expect_part(&loaded.written[0], DATA_GPA, DATA_BYTES);
    expect_part(&loaded.written[1], TEXT_GPA, TEXT_BYTES);
    expect_part(&loaded.written[2], 0, 0);
    i.data.p_flags = PF_R | PF_X;
    cr_assert_eq(load(&i), 0, "%s", error.msg);
    expect_part(&loaded.written[0], TEXT_GPA, TEXT_BYTES);
    expect_part(&loaded.written[1], 0, 0);
    i.text.p_flags = i.data.p_flags = PF_R;
    cr_assert_eq(load(&i), 0, "%s", error.msg);
    expect_part(&loaded.written[0], 0, 0);
}

Test(kernel_load, tells_of_no_more_parts_than_there_is_room_for)
{
    static struct image i;
    Elf64_Phdr *phdrs = (Elf64_Phdr *)(i.bytes + sizeof(i.header));

    image_init(&i);
    i.text.p_flags = PF_R | PF_X;
    i.data.p_flags = PF_R | PF_W;
    for (unsigned n = 2; n <= IMAGE_PARTS_MAX; n++) {
        phdrs[n] = i.data;
        phdrs[n].p_paddr += n * 0x10000;
    }
    i.header.e_phnum = IMAGE_PARTS_MAX + 1;
    cr_assert_eq(load(&i), 0, "%s", error.msg);
    for (unsigned n = 2; n < IMAGE_PARTS_MAX; n++)
        expect_part(&loaded.written[n - 1], DATA_GPA + n * 0x10000, DATA_BYTES);
    expect_part(&loaded.written[IMAGE_PARTS_MAX - 1], TEXT_GPA, TEXT_BYTES);
}

Test(kernel_load, accepts_a_segment_without_file_bytes)
{
    static struct image i;

    image_init(&i);
    i.data.p_filesz = 0;
    i.data.p_offset = IMAGE_BYTES; /* the file's end, as a linker has it for .bss behind all else */
    cr_assert_eq(load(&i), 0, "%s", error.msg);
    expect_zeroes(DATA_GPA, i.data.p_memsz);
}

Test(kernel_load, takes_a_segment_up_to_the_last_byte_of_memory)
{
    static struct image i;

    image_init(&i);
    i.data.p_paddr = (MEM_MIB << 20) - i.data.p_memsz;
    cr_assert_eq(load(&i), 0, "%s", error.msg);
    cr_assert_eq(loaded.end.v, MEM_MIB << 20);
}

Test(kernel_load, enters_by_pvh_where_the_note_is_there)
{
    static struct image i;

    image_init(&i);
    i.header.e_entry = 0xffffffff81000000; /* of no interest then */
    add_note(&i, "GNU", 3, "build id 123456789ab", 20);
    add_note(&i, "Linux", NOTE_XEN_18, "other", 6);
    add_note(&i, "Xen", 5, "xen-3.0", 8);
    add_pvh_note(&i, TEXT_GPA + 0x850);
    cr_assert_eq(load(&i), 0, "%s", error.msg);
    cr_assert_eq(loaded.protocol, BOOT_PVH);
    cr_assert_eq(loaded.entry.v, TEXT_GPA + 0x850);
}

Test(kernel_load, takes_a_pvh_entry_of_four_bytes)
{
    static struct image i;
    uint32_t entry = TEXT_GPA + 0x20;

    image_init(&i);
    add_note(&i, "Xen", NOTE_XEN_18, &entry, sizeof(entry));
    cr_assert_eq(load(&i), 0, "%s", error.msg);
    cr_assert_eq(loaded.protocol, BOOT_PVH);
    cr_assert_eq(loaded.entry.v, entry);
}

Test(kernel_load, ignores_notes_of_others)
{
    static struct image i;

    image_init(&i);
    add_note(&i, "Xen", 17, "12345678", 8);
    add_note(&i, "Zen", NOTE_XEN_18, "12345678", 8);
    add_note(&i, "Xen", NOTE_XEN_18, "12345678", 8);
    i.bytes[NOTE_OFFSET + i.note.p_filesz - 24] = 3; /* a name without its NUL */
    cr_assert_eq(load(&i), 0, "%s", error.msg);
    cr_assert_eq(loaded.protocol, BOOT_LINUX64);
}

/* What lies below 1 MiB and is none of ours: of the 64-bit protocol, of PVH. */
Test(kernel_load, takes_segments_below_1_mib_that_meet_nothing_of_ours)
{
    static const uint64_t places[] = { 0x1000,  0x528,   0xc000,          0x10000,
                                       0x20800, 0x9d800, LAYOUT_RSDP_END, LAYOUT_HIGH_RAM - 0x100 };
    static struct image i;

    for (unsigned n = 0; n < sizeof(places) / sizeof(*places); n++) {
        image_init(&i);
        i.data.p_paddr = places[n];
        cr_assert_eq(load(&i), 0, "0x%lx: %s", (unsigned long)places[n], error.msg);
        expect_file_bytes(places[n], i.bytes + DATA_OFFSET, DATA_BYTES);
    }
    image_init(&i);
    i.data.p_paddr = 0x8000; /* of no use to PVH: the zero page's end, the stack, the page tables */
    i.data.p_memsz = 0x4000;
    add_pvh_note(&i, TEXT_GPA + 0x20);
    cr_expect_eq(load(&i), 0, "%s", error.msg);
}

Test(kernel_load, keeps_the_initrd_above_1_mib_though_the_kernel_is_below)
{
    static struct image i;

    image_init(&i);
    i.text.p_paddr = 0x40000;
    i.data.p_paddr = 0x80000;
    i.header.e_entry = 0x40000;
    cr_assert_eq(load(&i), 0, "%s", error.msg);
    cr_expect_eq(loaded.end.v, LAYOUT_HIGH_RAM);
}

Test(kernel_load, names_what_of_ours_a_segment_meets)
{
    enum { LINUX64 = 1, PVH = 2 };
    static const struct {
        uint64_t first, last; /* bytes of it */
        unsigned protocols;
        const char *what;
    } ours[] = {
        { 0x500, 0x527, LINUX64 | PVH, "meet the GDT and the IDT" },
        { 0x6000, 0x605f, PVH, "meet the start info" },
        { 0x7000, 0x708f, PVH, "meet the memory map" },
        { 0x7000, 0x7fff, LINUX64, "meet the zero page" },
        { 0x8000, 0x8fef, LINUX64, "meet the stack" },
        { 0x9000, 0xbfff, LINUX64, "meet the page tables" },
        { 0x20000, 0x207ff, LINUX64 | PVH, "meet the command line" },
        { 0x9fc00, 0xdffff, LINUX64 | PVH, "meet the MPTable and the ACPI tables" },
        { 0xe0000, 0xe0023, LINUX64 | PVH, "meet the pointer to the ACPI tables" },
        { 0xf0000, 0xf01ff, LINUX64 | PVH, "meet the SMBIOS tables" },
    };
    static struct image i;

    for (unsigned n = 0; n < sizeof(ours) / sizeof(*ours); n++)
        for (unsigned protocol = LINUX64; protocol <= PVH; protocol++) {
            bool is_met = ours[n].protocols & protocol;

            image_init(&i);
            if (protocol == PVH)
                add_pvh_note(&i, TEXT_GPA + 0x20);
            i.data.p_filesz = i.data.p_memsz = 1;
            for (unsigned end = 0; end < 2; end++) {
                i.data.p_paddr = end ? ours[n].last : ours[n].first;
                error.msg[0] = 0;
                cr_expect(load(&i) == -1 || !is_met, "%u %s", n, ours[n].what);
                cr_expect_eq(strstr(error.msg, ours[n].what) != NULL, is_met, "%u %s", n,
                             error.msg);
            }
            i.data.p_paddr = ours[n].first - 4; /* around its first byte */
            i.data.p_memsz = 8;
            cr_expect(!is_met || load(&i) == -1, "%u %s", n, ours[n].what);
        }
}

#define ELF_REFUSED                                                                                \
    "System configuration error: Cannot load kernel due to invalid memory configuration or "       \
    "invalid kernel image: Kernel Loader: failed to load ELF kernel image: Kernel Loader: "

static void expect_no_header(int ret)
{
    cr_assert_eq(ret, -1);
    cr_assert_str_eq(error.msg, ELF_REFUSED "Unable to read elf header");
}

Test(kernel_load, names_what_is_no_kernel_by_all_of_its_mark)
{
    static const struct {
        unsigned offset;
        const char *bytes, *kind;
    } files[] = {
        { 0, "\x1f\x8b", "it is a gzip stream, not a kernel" },
        { 0, "BZh", "a bzip2 stream" },
        { 0, "\xfd\x37zXZ", "an xz stream" },
        { 0, "\x5d", "an LZMA stream" },
        { 0, "\x28\xb5\x2f\xfd", "a Zstandard stream" },
        { 0, "\x02\x21\x4c\x18", "an LZ4 stream" },
        { 0, "\x04\x22\x4d\x18", "an LZ4 stream" },
        { 0, "\x89LZO", "an LZO stream" },
        { 0x38, "ARM\x64", "an arm64 Image" },
        { 0x38, "RSC\x05", "a RISC-V Image" },
        { 0, "\x27\x05\x19\x56", "a U-Boot image" },
        { 0, "MZ", "a PE image" },
        { 0x101, "ustar", "a tar archive" },
        { 0, "PK\x03\x04", "a zip archive" },
        { 0, "!<arch>", "a Debian package" },
        { 0, "07070", "a cpio archive" },
        { 0, "hsqs", "a squashfs image" },
        { 0x438, "\x53\xef", "an ext2, ext3 or ext4 image" },
        { 0, "QFI\xfb", "a qcow2 image" },
        { 0, "\xcf\xfa\xed\xfe", "a Mach-O program" },
        { 0, "version htt", "a pointer of Git LFS" },
        { 0, "#!", "a script" },
        { 0, "<", "HTML" },
        { 0, "{", "JSON" },
        { 0x1fe, "\x55\xaa", "the old boot protocol" },
    };
    uint8_t bytes[0x500], *last;

    for (unsigned n = 0; n < sizeof(files) / sizeof(*files); n++) {
        memset(bytes, 0, sizeof(bytes));
        last = bytes + files[n].offset + strlen(files[n].bytes) - 1;
        memcpy(bytes + files[n].offset, files[n].bytes, strlen(files[n].bytes));
        cr_assert_eq(load_bytes(bytes, sizeof(bytes)), -1);
        cr_expect(strstr(error.msg, "Kernel Loader: Unable to read elf header"), "%s", error.msg);
        cr_expect(strstr(error.msg, files[n].kind), "%s lacks %s", error.msg, files[n].kind);
        *last ^= 1;
        expect_no_header(load_bytes(bytes, sizeof(bytes)));
    }
    cr_assert_eq(load_bytes("", 0), -1);
    cr_expect(strstr(error.msg, "Unable to read elf header: it is an empty file"), "%s", error.msg);
}

/* A kernel spoilt by the statement is refused with a text that holds the field's name, and guest
 * memory is untouched. */
#define REFUSES(rule, spoil, field)                                                                \
    Test(kernel_load, refuses_##rule)                                                              \
    {                                                                                              \
        static struct image i;                                                                     \
                                                                                                   \
        image_init(&i);                                                                            \
        spoil;                                                                                     \
        expect_error(load(&i), ELF_REFUSED, field);                                                \
        expect_zeroes(TEXT_GPA, TEXT_BYTES);                                                       \
    }

REFUSES(a_truncated_header, i.length = sizeof(Elf64_Ehdr) - 1, "Unable to read elf header")
REFUSES(another_class, i.header.e_ident[EI_CLASS] = ELFCLASS32, "EI_CLASS")
REFUSES(big_endian, i.header.e_ident[EI_DATA] = ELFDATA2MSB, "EI_DATA")
REFUSES(another_machine, i.header.e_machine = EM_AARCH64, "e_machine")
REFUSES(an_odd_phentsize, i.header.e_phentsize = sizeof(Elf32_Phdr), "e_phentsize")
REFUSES(phdrs_in_the_header, i.header.e_phoff = sizeof(Elf64_Ehdr) - 1, "e_phoff")
REFUSES(phdrs_past_the_end, i.header.e_phoff = IMAGE_BYTES - sizeof(Elf64_Phdr), "e_phoff")
REFUSES(phdrs_that_wrap, i.header.e_phoff = UINT64_MAX - 60, "e_phoff")
REFUSES(no_phdrs, i.header.e_phnum = 0, "e_phnum")
REFUSES(too_many_phdrs, i.header.e_phnum = 65, "e_phnum")
REFUSES(an_absurd_phnum, i.header.e_phnum = UINT16_MAX, "e_phnum")
REFUSES(filesz_over_memsz, i.data.p_memsz = DATA_BYTES - 1, "p_filesz")
REFUSES(a_truncated_file, i.length = DATA_OFFSET + DATA_BYTES - 1, "p_offset")
REFUSES(a_file_range_that_wraps, i.data.p_offset = UINT64_MAX - 1, "p_offset")
REFUSES(a_segment_outside_memory, i.data.p_paddr = MEM_MIB << 20, "p_paddr")
REFUSES(a_segment_over_the_end_of_memory, i.data.p_paddr = (MEM_MIB << 20) - DATA_BYTES, "p_paddr")
REFUSES(a_segment_that_wraps, i.data.p_paddr = UINT64_MAX - DATA_BYTES, "p_paddr")
REFUSES(a_segment_that_wraps_to_ram, (i.data.p_paddr = -0x1000ull, i.data.p_memsz = 0x4000000),
        "p_paddr")
REFUSES(a_huge_segment, i.data.p_memsz = UINT64_MAX, "p_memsz")
REFUSES(overlapping_segments, i.data.p_paddr = TEXT_GPA + TEXT_BYTES - 1, "overlaps")
REFUSES(a_segment_inside_another, i.data.p_paddr = TEXT_GPA + 0x4000, "overlaps")
REFUSES(a_segment_around_another,
        (i.data.p_paddr = TEXT_GPA - 1, i.data.p_memsz = TEXT_BYTES + 0x100), "overlaps")
REFUSES(an_entry_before_the_segments, i.header.e_entry = TEXT_GPA - 1, "e_entry")
REFUSES(an_entry_behind_a_segment, i.header.e_entry = TEXT_GPA + TEXT_BYTES, "e_entry")
REFUSES(a_virtual_entry, i.header.e_entry = 0xffffffff81000000, "e_entry")
REFUSES(no_loaded_segment, i.text.p_type = i.data.p_type = PT_NULL, "e_entry")
REFUSES(a_pvh_entry_outside_the_segments, add_pvh_note(&i, TEXT_GPA - 1), "PVH entry")
REFUSES(a_pvh_entry_that_is_too_wide, add_pvh_note(&i, UINT64_C(1) << 32 | TEXT_GPA), "PVH entry")
REFUSES(an_odd_pvh_note, add_note(&i, "Xen", NOTE_XEN_18, "12", 2), "n_descsz")
REFUSES(a_note_larger_than_its_segment, (add_pvh_note(&i, TEXT_GPA), i.note.p_filesz -= 1),
        "n_descsz")
REFUSES(a_note_name_that_wraps,
        (add_pvh_note(&i, TEXT_GPA), memset(i.bytes + NOTE_OFFSET, 0xff, 8)), "n_namesz")
REFUSES(notes_past_the_end, (add_pvh_note(&i, TEXT_GPA), i.note.p_offset = IMAGE_BYTES - 8),
        "p_offset")
REFUSES(notes_at_an_offset_that_wraps,
        (add_pvh_note(&i, TEXT_GPA), i.note.p_offset = UINT64_MAX - 8), "p_offset")
REFUSES(absurdly_large_notes, (add_pvh_note(&i, TEXT_GPA), i.note.p_filesz = 65537), "p_filesz")

Test(kernel_load, refuses_an_entry_that_the_page_tables_do_not_map)
{
    static struct image i;

    gmem_fini(&mem);
    cr_assert_eq(gmem_init(&mem, 1100, HUGE_PAGES_NONE, &error), 0);
    image_init(&i);
    i.text.p_paddr = i.header.e_entry = LAYOUT_IDENTITY_MAP;
    expect_error(load(&i), ELF_REFUSED, "e_entry");
    i.header.e_entry = DATA_GPA;
    cr_assert_eq(load(&i), 0, "%s", error.msg);
}

Test(kernel_load, refuses_text)
{
    static const char text[1024] = "not a kernel\n";

    expect_no_header(load_bytes(text, 13));
    expect_no_header(load_bytes(text, sizeof(text)));
}

Test(kernel_load, refuses_a_directory)
{
    autofd int fd = open("/", O_RDONLY | O_DIRECTORY);

    expect_no_header(kernel_load(&mem, fd, &loaded, &error));
}

Test(kernel_load, refuses_a_device)
{
    autofd int fd = open("/dev/zero", O_RDONLY);

    expect_no_header(kernel_load(&mem, fd, &loaded, &error));
}
