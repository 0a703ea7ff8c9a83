/*
 * Kernel images and initrds into guest memory: ELF vmlinux (PVH where the Xen note is there, else
 * the 64-bit Linux protocol) and bzImage (64-bit entry).
 *
 * The file is hostile: every header field is checked before use, and an error names the field. File
 * pages are mapped copy-on-write where the layout allows (see gmem_load_file). The descriptors stay
 * the caller's; their offset is neither used nor moved.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "vmm/base/error.h"
#include "vmm/kvm/guest_mem.h"

enum boot_protocol { BOOT_LINUX64, BOOT_PVH };

#define SETUP_HEADER_BYTES 0x80 /* at most; from offset 0x1f1 of the zero page */

/* A part of an image that the guest writes to early in its boot; 0 bytes: there is none. */
struct image_part {
    gpa_t at;
    uint64_t bytes;
};

#define IMAGE_PARTS_MAX 8

#define UNPACKED_BYTES_MAX (8u << 20) /* of an image that is copied ahead */

/* The guest unpacks such an image, and then uses its pages for other things: so all of it will be
 * written to. Of a large image a boot uses few pages again, and those that it does not write stay
 * shared: copying Debian's kernel of 14 MB costs 2 % more than it saves. */
static inline struct image_part unpacked_part(gpa_t at, uint64_t bytes)
{
    return (struct image_part){ at, bytes <= UNPACKED_BYTES_MAX ? bytes : 0 };
}

struct kernel_image {
    enum boot_protocol protocol;
    gpa_t entry;
    gpa_t end; /* first byte after what the image occupies, its bss included */
    struct image_part written[IMAGE_PARTS_MAX]; /* in the order in which the guest needs them */
    bool is_bzimage;
    uint8_t setup_header[SETUP_HEADER_BYTES]; /* the image's own (bzImage), else zero */
    unsigned setup_header_bytes;
};

struct initrd {
    gpa_t start;
    uint64_t bytes; /* 0: none */
};

/* Puts the image in memory and says how to start it. On failure memory may hold a part of it. */
must_check int kernel_load(struct guest_mem *m, int fd, struct kernel_image *out, struct error *e);

/* Puts it at the top of the first RAM region, page aligned, above the kernel's end. Fails, with
 * out->bytes 0, where it doesn't fit there or isn't a regular file of at least a byte. */
must_check int initrd_load(struct guest_mem *m, int fd, const struct kernel_image *kernel,
                           struct initrd *out, struct error *e);
