/*
 * What a guest will soon write to is copied for it while it boots.
 *
 * A start maps kernel and initrd from their files, which costs next to nothing (see
 * gmem_load_file). But Linux patches most of its text (lock prefixes, alternatives, paravirtual
 * calls), and uses the pages again of what it has unpacked. A mapped page that it reads and then
 * writes faults three times: to be read, to be copied, and again because KVM gives way to the
 * copying. So as soon as the guest runs, the event loop copies ahead of it, a piece a millisecond.
 *
 * All functions are for the loop's thread.
 */
#pragma once

#include "vmm/base/loop.h"
#include "vmm/boot/kernel.h"
#include "vmm/kvm/guest_mem.h"

struct copy_ahead {
    struct loop_source timer;
    struct loop *loop;
    const struct guest_mem *mem;
    struct image_part parts[IMAGE_PARTS_MAX + 1]; /* the kernel's and the initrd */
    unsigned next, count;                         /* what is left of parts[next] is copied next */
};

/* Makes ready to copy what the kernel says, and an initrd that is not large, all RAM. mem is
 * borrowed for as long as *c. */
void copy_ahead_init(struct copy_ahead *c, const struct guest_mem *mem,
                     const struct kernel_image *kernel, const struct initrd *initrd);

/* Copies from now on; *c stays where it is until the loop ends. Where the host can't (Linux before
 * 5.14), the guest's own faults do it. A piece that is not in the page cache makes the loop wait
 * for the disk, as it would make the guest. */
void copy_ahead_start(struct copy_ahead *c, struct loop *loop);
