#include "vmm/boot/kernel.h"

#include <criterion/criterion.h>
#include <string.h>

#include "tests/unit/support/image.h"
#include "vmm/kvm/layout.h"

TestSuite(kernel_load_bzimage, .init = init_memory, .fini = drop_memory);

/* The setup header's fields by their offset in the file (Linux, boot.rst). */
#define SETUP_BYTES   0x1000u /* boot sector and 7 of setup */
#define PAYLOAD_BYTES 0x23450u
#define PREF_ADDRESS  0x1000000u
#define INIT_SIZE     0x800000u

enum {
    SETUP_SECTS = 0x1f1,
    SYSSIZE = 0x1f4,
    BOOT_FLAG = 0x1fe,
    JUMP = 0x200,
    MAGIC = 0x202,
    VERSION = 0x206,
    LOADFLAGS = 0x211,
    KERNEL_ALIGNMENT = 0x230,
    RELOCATABLE = 0x234,
    XLOADFLAGS = 0x236,
    PREF = 0x258,
    INIT = 0x260,
    HEADER_END = 0x26c,
};

struct bzimage {
    uint8_t bytes[SETUP_BYTES + PAYLOAD_BYTES];
    size_t length;
};

static void set(struct bzimage *b, size_t at, uint64_t value, size_t n)
{
    memcpy(b->bytes + at, &value, n);
}

static void bzimage_init(struct bzimage *b)
{
    for (size_t i = 0; i < sizeof(b->bytes); i++)
        b->bytes[i] = pattern(i);
    b->length = sizeof(b->bytes);
    set(b, SETUP_SECTS, 7, 1);
    set(b, SYSSIZE, PAYLOAD_BYTES / 16, 4);
    set(b, BOOT_FLAG, 0xaa55, 2);
    set(b, JUMP, 0xeb | (HEADER_END - MAGIC) << 8, 2);
    memcpy(b->bytes + MAGIC, "HdrS", 4);
    set(b, VERSION, 0x020f, 2);
    set(b, LOADFLAGS, 1, 1);
    set(b, KERNEL_ALIGNMENT, 0x200000, 4);
    set(b, RELOCATABLE, 1, 1);
    set(b, XLOADFLAGS, 0x7f, 2);
    set(b, PREF, PREF_ADDRESS, 8);
    set(b, INIT, INIT_SIZE, 4);
}

static int load_bzimage(const struct bzimage *b)
{
    return load_bytes(b->bytes, b->length);
}

Test(kernel_load_bzimage, puts_it_at_1_mib_and_enters_in_64_bits)
{
    static struct bzimage b;

    bzimage_init(&b);
    cr_assert_eq(load_bzimage(&b), 0, "%s", error.msg);
    expect_file_bytes(LAYOUT_HIGH_RAM, b.bytes + SETUP_BYTES, PAYLOAD_BYTES);
    expect_zeroes(LAYOUT_HIGH_RAM + PAYLOAD_BYTES, 4096);
    cr_assert(loaded.is_bzimage);
    cr_assert_eq(loaded.protocol, BOOT_LINUX64);
    cr_assert_eq(loaded.entry.v, LAYOUT_HIGH_RAM + 0x200);
    expect_part(&loaded.written[0], LAYOUT_HIGH_RAM, PAYLOAD_BYTES);
}

Test(kernel_load_bzimage, is_written_as_a_whole_unless_it_is_large)
{
    static struct bzimage b;

    for (unsigned more = 0; more < 2; more++) {
        autofd int fd = -1;

        bzimage_init(&b);
        fd = file_of(b.bytes, b.length);
        cr_assert_eq(ftruncate(fd, SETUP_BYTES + UNPACKED_BYTES_MAX + more), 0);
        cr_assert_eq(kernel_load(&mem, fd, &loaded, &error), 0, "%s", error.msg);
        expect_part(&loaded.written[0], LAYOUT_HIGH_RAM, more ? 0 : UNPACKED_BYTES_MAX);
        expect_part(&loaded.written[1], 0, 0);
    }
}

Test(kernel_load_bzimage, keeps_the_setup_header_as_long_as_it_says)
{
    static struct bzimage b;

    bzimage_init(&b);
    cr_assert_eq(load_bzimage(&b), 0, "%s", error.msg);
    cr_assert_eq(loaded.setup_header_bytes, HEADER_END - SETUP_SECTS);
    cr_assert_eq(memcmp(loaded.setup_header, b.bytes + SETUP_SECTS, loaded.setup_header_bytes), 0);
    for (unsigned i = loaded.setup_header_bytes; i < SETUP_HEADER_BYTES; i++)
        cr_assert_eq(loaded.setup_header[i], 0);
}

Test(kernel_load_bzimage, cuts_a_setup_header_of_a_later_protocol)
{
    static struct bzimage b;

    bzimage_init(&b);
    set(&b, JUMP + 1, 0xff, 1);
    cr_assert_eq(load_bzimage(&b), 0, "%s", error.msg);
    cr_assert_eq(loaded.setup_header_bytes, SETUP_HEADER_BYTES);
}

Test(kernel_load_bzimage, ends_where_it_unpacks_itself)
{
    static struct bzimage b;

    bzimage_init(&b);
    cr_assert_eq(load_bzimage(&b), 0, "%s", error.msg);
    cr_assert_eq(loaded.end.v, PREF_ADDRESS + INIT_SIZE);
    set(&b, PREF, LAYOUT_HIGH_RAM, 8);
    cr_assert_eq(load_bzimage(&b), 0, "%s", error.msg);
    cr_assert_eq(loaded.end.v, 0x200000 + INIT_SIZE, "aligned as it asks for");
    set(&b, RELOCATABLE, 0, 1);
    cr_assert_eq(load_bzimage(&b), 0, "%s", error.msg);
    cr_assert_eq(loaded.end.v, LAYOUT_HIGH_RAM + INIT_SIZE);
    set(&b, INIT, 0x1000, 4);
    cr_assert_eq(load_bzimage(&b), 0, "%s", error.msg);
    cr_assert_eq(loaded.end.v, LAYOUT_HIGH_RAM + PAYLOAD_BYTES, "never before its own bytes");
}

Test(kernel_load_bzimage, takes_no_setup_sectors_for_four)
{
    static struct bzimage b;

    bzimage_init(&b);
    set(&b, SETUP_SECTS, 0, 1);
    cr_assert_eq(load_bzimage(&b), 0, "%s", error.msg);
    expect_file_bytes(LAYOUT_HIGH_RAM, b.bytes + 5 * 512, PAYLOAD_BYTES);
}

#define BZIMAGE_REFUSED                                                                            \
    "System configuration error: Cannot load kernel due to invalid memory configuration or "       \
    "invalid kernel image: Kernel Loader: failed to load bzImage kernel image: Kernel Loader: "

#define REFUSES_BZIMAGE(rule, spoil, field)                                                        \
    Test(kernel_load_bzimage, refuses_##rule)                                                      \
    {                                                                                              \
        static struct bzimage b;                                                                   \
                                                                                                   \
        bzimage_init(&b);                                                                          \
        spoil;                                                                                     \
        expect_error(load_bzimage(&b), BZIMAGE_REFUSED, field);                                    \
        expect_zeroes(LAYOUT_HIGH_RAM, PAYLOAD_BYTES);                                             \
    }

REFUSES_BZIMAGE(a_truncated_header, b.length = INIT, "bzImage header")
REFUSES_BZIMAGE(a_short_header, set(&b, JUMP + 1, INIT + 3 - MAGIC, 1), "jump")
REFUSES_BZIMAGE(no_boot_flag, set(&b, BOOT_FLAG, 0, 2), "boot_flag")
REFUSES_BZIMAGE(an_old_protocol, set(&b, VERSION, 0x020b, 2), "version")
REFUSES_BZIMAGE(a_zimage, set(&b, LOADFLAGS, 0, 1), "loadflags")
REFUSES_BZIMAGE(a_32_bit_kernel, set(&b, XLOADFLAGS, 0xfe, 2), "xloadflags")
REFUSES_BZIMAGE(an_odd_alignment, set(&b, KERNEL_ALIGNMENT, 0x300000, 4), "kernel_alignment")
REFUSES_BZIMAGE(a_truncated_image, b.length -= 17, "syssize")
REFUSES_BZIMAGE(a_huge_syssize, set(&b, SYSSIZE, UINT32_MAX, 4), "syssize")
REFUSES_BZIMAGE(setup_without_a_kernel, (b.length = 0x1000, set(&b, SYSSIZE, 0, 4)), "setup_sects")
REFUSES_BZIMAGE(more_setup_than_file, (b.length = 0xfff, set(&b, SYSSIZE, 0, 4)), "setup_sects")
REFUSES_BZIMAGE(a_size_beyond_memory, set(&b, INIT, 0x3000001, 4), "init_size")
REFUSES_BZIMAGE(a_huge_alignment, set(&b, KERNEL_ALIGNMENT, 0x80000000, 4), "init_size")
REFUSES_BZIMAGE(an_address_beyond_memory, set(&b, PREF, MEM_MIB << 20, 8), "init_size")
REFUSES_BZIMAGE(an_address_that_wraps, set(&b, PREF, UINT64_MAX - 4095, 8), "init_size")
REFUSES_BZIMAGE(a_low_fixed_address, (set(&b, RELOCATABLE, 0, 1), set(&b, PREF, 0x10000, 8)),
                "pref_address")
