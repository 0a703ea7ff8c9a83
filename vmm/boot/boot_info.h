/*
 * What a kernel finds in memory when it starts: the command line, the e820 map, and the start
 * structure of its boot protocol (the zero page with page tables and a GDT, or PVH's start info).
 */
#pragma once

#include "vmm/boot/cmdline.h"
#include "vmm/boot/kernel.h"

/* The GDT at LAYOUT_GDT: flat code at 0x08 (long mode, or 32 bits for PVH), data at 0x10, TSS at
 * 0x18. The IDT at LAYOUT_IDT is empty: a fault before the kernel has its own ends the guest. */
#define BOOT_GDT_LIMIT (4u * 8 - 1)
#define BOOT_IDT_LIMIT 7u

/* What of all that a kernel of this protocol gets lies in [at, at + bytes), firmware tables
 * included, in words; NULL: nothing. */
const char *boot_info_meets(enum boot_protocol protocol, gpa_t at, uint64_t bytes);

/* Writes all of it for the kernel's protocol; initrd->bytes 0: no initrd. Fails where guest memory
 * doesn't reach up to the command line. */
must_check int boot_info_write(struct guest_mem *m, const struct kernel_image *kernel,
                               const struct cmdline *cmdline, const struct initrd *initrd,
                               struct error *e);
