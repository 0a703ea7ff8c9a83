/*
 * bzImage kernels by the 64-bit protocol (Linux, Documentation/arch/x86/boot.rst): the protected-
 * mode part goes to 1 MiB and is entered 0x200 behind its start; it unpacks the kernel itself.
 */
#include <asm/bootparam.h>
#include <inttypes.h>
#include <string.h>

#include "vmm/boot/kernel_file.h"
#include "vmm/kvm/layout.h"

#define HEADER_OFFSET       0x1f1u
#define HEADER_END_BASE     0x202u  /* plus the displacement of the jump before it */
#define PROTOCOL_MIN        0x020cu /* the first with xloadflags */
#define ENTRY_64_OFFSET     0x200u
#define SECTOR_BYTES        512u
#define SETUP_SECTS_DEFAULT 4u

_Static_assert(sizeof(struct setup_header) <= SETUP_HEADER_BYTES, "boot.rst, 1.3");

static int read_setup_header(const struct kernel_file *f, struct kernel_image *out,
                             struct setup_header *h, struct error *e)
{
    const size_t least = offsetof(struct setup_header, init_size) + sizeof(h->init_size);
    size_t bytes;

    if (!kernel_file_read(f, HEADER_OFFSET, out->setup_header, SETUP_HEADER_BYTES))
        return fail(e, ERR_INVALID, "Unable to read bzImage header");
    memcpy(h, out->setup_header, sizeof(*h));
    /* The jump over the header is two bytes: its opcode and, counted from 0x202, its distance. */
    bytes = HEADER_END_BASE + (h->jump >> 8) - HEADER_OFFSET;
    if (bytes < least)
        return fail(e, ERR_INVALID,
                    "Invalid bzImage: the jump at 0x200 makes the "
                    "setup header %zu bytes, at least %zu are needed",
                    bytes, least);
    if (bytes > SETUP_HEADER_BYTES)
        bytes = SETUP_HEADER_BYTES; /* what later protocols add is optional */
    memset(out->setup_header + bytes, 0, SETUP_HEADER_BYTES - bytes);
    out->setup_header_bytes = (unsigned)bytes;
    return 0;
}

static int check_header(const struct setup_header *h, struct error *e)
{
    if (h->boot_flag != 0xaa55)
        return fail(e, ERR_INVALID, "Invalid bzImage: boot_flag is 0x%x, not 0xaa55", h->boot_flag);
    if (h->version < PROTOCOL_MIN)
        return fail(e, ERR_INVALID,
                    "Invalid bzImage: version is 0x%x, at least 0x%x is needed: the boot protocol "
                    "is that of a kernel before Linux 3.8",
                    h->version, PROTOCOL_MIN);
    if (!(h->loadflags & LOADED_HIGH))
        return fail(e, ERR_INVALID, "Invalid bzImage: loadflags lack LOADED_HIGH");
    if (!(h->xloadflags & XLF_KERNEL_64))
        return fail(e, ERR_INVALID,
                    "Invalid bzImage: xloadflags lack XLF_KERNEL_64, the 64-bit entry point");
    if (h->kernel_alignment & (h->kernel_alignment - 1))
        return fail(e, ERR_INVALID, "Invalid bzImage: kernel_alignment 0x%x is no power of two",
                    h->kernel_alignment);
    return 0;
}

/* Where the image unpacks itself to (boot.rst, pref_address and init_size); it needs all of
 * init_size there before it knows the memory map. */
static int find_end(const struct setup_header *h, const struct guest_mem *m, gpa_t *end,
                    struct error *e)
{
    uint64_t start = h->pref_address;

    if (h->relocatable_kernel) {
        uint64_t align = h->kernel_alignment ? h->kernel_alignment : 1;
        uint64_t lowest = (LAYOUT_HIGH_RAM + align - 1) & ~(align - 1);

        if (start < lowest)
            start = lowest;
    }
    if (start < LAYOUT_HIGH_RAM)
        return fail(e, ERR_INVALID, "Invalid bzImage: pref_address 0x%" PRIx64 " is below 0x%x",
                    start, LAYOUT_HIGH_RAM);
    if (!gmem_has(m, gpa(start), h->init_size))
        return fail(e, ERR_INVALID,
                    "Invalid bzImage: init_size 0x%x from 0x%" PRIx64 " on leaves guest memory",
                    h->init_size, start);
    *end = gpa(start + h->init_size);
    return 0;
}

int bzimage_load(struct guest_mem *m, const struct kernel_file *f, struct kernel_image *out,
                 struct error *e)
{
    struct setup_header h = { 0 };
    uint64_t offset, bytes;

    if (read_setup_header(f, out, &h, e) < 0 || check_header(&h, e) < 0 ||
        find_end(&h, m, &out->end, e) < 0)
        return -1;
    offset = (1 + (uint64_t)(h.setup_sects ? h.setup_sects : SETUP_SECTS_DEFAULT)) * SECTOR_BYTES;
    bytes = f->bytes > offset ? f->bytes - offset : 0;
    if (f->is_device && bytes / 16 >= h.syssize)
        bytes = 16 * (uint64_t)h.syssize; /* what lies behind is not the kernel's */
    if (bytes <= ENTRY_64_OFFSET || bytes / 16 < h.syssize)
        return fail(e, ERR_INVALID,
                    "Unable to read bzImage compressed kernel: "
                    "setup_sects %u and syssize 0x%x leave the file of %" PRIu64 " bytes",
                    h.setup_sects, h.syssize, f->bytes);
    if (gmem_load_file(m, gpa(LAYOUT_HIGH_RAM), f->fd, offset, bytes, e) < 0)
        return fail_within(e, "Unable to read bzImage compressed kernel");
    if (out->end.v < LAYOUT_HIGH_RAM + bytes)
        out->end = gpa(LAYOUT_HIGH_RAM + bytes);
    out->protocol = BOOT_LINUX64;
    out->entry = gpa(LAYOUT_HIGH_RAM + ENTRY_64_OFFSET);
    out->is_bzimage = true;
    out->written[0] = unpacked_part(gpa(LAYOUT_HIGH_RAM), bytes);
    return 0;
}
