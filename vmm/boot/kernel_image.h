/* A kernel image that is in guest memory: what whoever starts it must know. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "vmm/boot/image_guard.h"
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
    struct image_source source;
    enum boot_protocol protocol;
    gpa_t entry;
    gpa_t end; /* first byte after what the image occupies, its bss included */
    struct image_part written[IMAGE_PARTS_MAX]; /* in the order in which the guest needs them */
    bool is_bzimage;
    uint8_t setup_header[SETUP_HEADER_BYTES]; /* the image's own (bzImage), else zero */
    unsigned setup_header_bytes;
};
