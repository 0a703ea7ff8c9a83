/*
 * What the loaders of the two kernel formats share; for vmm/boot/kernel.c, elf.c and bzimage.c.
 *
 * A loader checks every header before it touches guest memory. Its error texts follow those of the
 * Rust crate that Firecracker loads kernels with, the field at fault added.
 */
#pragma once

#include "vmm/boot/kernel_image.h"

struct kernel_file {
    int fd;         /* borrowed */
    uint64_t bytes; /* its length when it was opened for loading */
    bool is_device; /* which is longer than the image */
};

/* Reads exactly n bytes at an offset; false where the file has no such bytes or can't be read. */
must_check bool kernel_file_read(const struct kernel_file *f, uint64_t offset, void *dst, size_t n);

/* What a file that is no kernel seems to be ("a gzip stream"), by its first bytes; NULL: that
 * is unknown. */
const char *kernel_file_kind(const struct kernel_file *f);

/* Load an image whose magic number is already known to be right. */
must_check int elf_load(struct guest_mem *m, const struct kernel_file *f, struct kernel_image *out,
                        struct error *e);
must_check int bzimage_load(struct guest_mem *m, const struct kernel_file *f,
                            struct kernel_image *out, struct error *e);
