/*
 * Kernel images and initrds into guest memory: ELF vmlinux (PVH where the Xen note is there, else
 * the 64-bit Linux protocol) and bzImage (64-bit entry).
 *
 * The file is hostile: every header field is checked before use, and an error names the field. File
 * pages are mapped copy-on-write where the layout allows (see gmem_load_file), so the file is
 * guarded (image_guard.h) before it is looked at; after a failed start the caller gives the guard
 * back. The descriptors stay the caller's; their offset is not used.
 */
#pragma once

#include "vmm/boot/kernel_image.h"

struct initrd {
    gpa_t start;
    uint64_t bytes; /* 0: none */
    struct image_source source;
};

/* Puts the image in memory and says how to start it. On failure memory may hold a part of it. */
must_check int kernel_load(struct guest_mem *m, int fd, struct kernel_image *out, struct error *e);

/* Puts it at the top of the first RAM region, page aligned, above the kernel's end. Fails, with
 * out->bytes 0, where it doesn't fit there or isn't a regular file or block device of at least a
 * byte. */
must_check int initrd_load(struct guest_mem *m, int fd, const struct kernel_image *kernel,
                           struct initrd *out, struct error *e);
