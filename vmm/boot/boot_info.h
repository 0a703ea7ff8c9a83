/*
 * What a kernel finds in memory when it starts: the command line, the e820 map, and the start
 * structure of its boot protocol (the zero page with page tables and a GDT, or PVH's start info).
 */
#pragma once

#include "vmm/boot/cmdline.h"
#include "vmm/boot/kernel.h"

must_check int boot_info_write(struct guest_mem *m, const struct kernel_image *kernel,
                               const struct cmdline *cmdline, const struct initrd *initrd,
                               struct error *e);
