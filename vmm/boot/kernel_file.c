#include "vmm/boot/kernel_file.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "vmm/base/whole_file.h"

bool kernel_file_read(const struct kernel_file *f, uint64_t offset, void *dst, size_t n)
{
    return offset <= f->bytes && n <= f->bytes - offset &&
           whole_file_read_at(f->fd, dst, n, offset) == 0;
}

const char *kernel_file_kind(const struct kernel_file *f)
{
    static const struct {
        uint16_t offset, length;
        const char *bytes, *kind;
    } kinds[] = {
        { 0, 2, "\x1f\x8b", "a gzip stream" },
        { 0, 3, "BZh", "a bzip2 stream" },
        { 0, 6, "\xfd\x37zXZ\0", "an xz stream" },
        { 0, 3, "\x5d\0\0", "an LZMA stream" },
        { 0, 4, "\x28\xb5\x2f\xfd", "a Zstandard stream" },
        { 0, 4, "\x02\x21\x4c\x18", "an LZ4 stream" },
        { 0, 4, "\x04\x22\x4d\x18", "an LZ4 stream" },
        { 0, 4, "\x89LZO", "an LZO stream" },
        { 0x38, 4, "ARM\x64", "an arm64 Image" },
        { 0x38, 4, "RSC\x05", "a RISC-V Image" },
        { 0, 4, "\x27\x05\x19\x56", "a U-Boot image" },
        { 0, 2, "MZ", "a PE image (a program for EFI or Windows)" },
        { 0x101, 5, "ustar", "a tar archive" },
        { 0, 4, "PK\x03\x04", "a zip archive" },
        { 0, 7, "!<arch>", "an ar archive or a Debian package" },
        { 0, 5, "07070", "a cpio archive (an initrd?)" },
        { 0, 4, "hsqs", "a squashfs image" },
        { 0x438, 2, "\x53\xef", "an ext2, ext3 or ext4 image" },
        { 0, 4, "QFI\xfb", "a qcow2 image" },
        { 0, 4, "\xcf\xfa\xed\xfe", "a Mach-O program" },
        { 0, 11, "version htt", "a pointer of Git LFS" },
        { 0, 2, "#!", "a script" },
        { 0, 1, "<", "HTML or XML" },
        { 0, 1, "{", "JSON" },
        { 0x1fe, 2, "\x55\xaa",
          "a boot sector, of a disk or of a kernel of the old boot protocol" },
    };
    char found[16];

    if (pread(f->fd, found, 1, 0) == 0)
        return "an empty file";
    for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++)
        if (kernel_file_read(f, kinds[i].offset, found, kinds[i].length) &&
            !memcmp(found, kinds[i].bytes, kinds[i].length))
            return kinds[i].kind;
    return NULL;
}
