#include "vmm/boot/kernel.h"

#include <elf.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "vmm/boot/kernel_file.h"

#define BZIMAGE_MAGIC_OFFSET 0x202

static bool has_magic(const struct kernel_file *f, uint64_t offset, const char *magic)
{
    char found[4];

    return kernel_file_read(f, offset, found, sizeof(found)) &&
           !memcmp(found, magic, sizeof(found));
}

static int refuse_kernel(const struct kernel_file *f, struct error *e)
{
    const char *kind = kernel_file_kind(f);

    return kind ? fail(e, ERR_INVALID, "Unable to read elf header: it is %s, not a kernel", kind)
                : fail(e, ERR_INVALID, "Unable to read elf header");
}

int kernel_load(struct guest_mem *m, int fd, struct kernel_image *out, struct error *e)
{
    const char *format = "Kernel Loader: failed to load ELF kernel image: Kernel Loader";
    struct kernel_file f = { .fd = fd };
    struct stat st;
    int ret;

    *out = (struct kernel_image){ .source = image_guard_take(fd) };
    f.bytes = out->source.bytes;
    f.is_device = fstat(fd, &st) == 0 && S_ISBLK(st.st_mode);
    if (has_magic(&f, 0, ELFMAG)) {
        ret = elf_load(m, &f, out, e);
    } else if (has_magic(&f, BZIMAGE_MAGIC_OFFSET, "HdrS")) {
        format = "Kernel Loader: failed to load bzImage kernel image: Kernel Loader";
        ret = bzimage_load(m, &f, out, e);
    } else {
        ret = refuse_kernel(&f, e);
    }
    if (ret < 0) {
        fail_within(e, format);
        return fail_within(e,
                           "System configuration error: Cannot load kernel due to invalid memory "
                           "configuration or invalid kernel image");
    }
    return 0;
}

int initrd_load(struct guest_mem *m, int fd, const struct kernel_image *kernel, struct initrd *out,
                struct error *e)
{
    uint64_t top = m->regions[0].bytes, start = 0, bytes;
    struct stat st;

    *out = (struct initrd){ .source = image_guard_take(fd) };
    if (fstat(fd, &st) < 0)
        return fail_os(e, errno, "Cannot load initrd due to an invalid image");
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return fail(e, ERR_INVALID,
                    "Cannot load initrd due to an invalid image: it is neither a regular file nor "
                    "a block device");
    bytes = out->source.bytes;
    if (bytes == 0)
        return fail(e, ERR_INVALID, "Cannot load initrd due to an invalid image: it is empty");
    if (bytes <= top)
        start = (top - bytes) & ~(uint64_t)(GMEM_PAGE_BYTES - 1);
    if (start < kernel->end.v)
        return fail(e, ERR_INVALID,
                    "Cannot load initrd due to an invalid memory configuration: %" PRIu64
                    " bytes do not fit between the kernel's end at 0x%" PRIx64 " and 0x%" PRIx64,
                    bytes, kernel->end.v, top);
    if (gmem_load_file(m, gpa(start), fd, 0, bytes, e) < 0)
        return fail_within(e, "Cannot load initrd due to an invalid image");
    out->start = gpa(start);
    out->bytes = bytes;
    return 0;
}
