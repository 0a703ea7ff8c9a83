/*
 * The guest's own copies of what a start mapped from the files of its kernel and initrd, made while
 * it runs.
 *
 * A start maps both, which costs next to nothing (see gmem_load_file). Two things follow.
 *
 * Linux patches most of its text (lock prefixes, alternatives, paravirtual calls), and uses the
 * pages again of what it has unpacked. A mapped page that it reads and then writes faults three
 * times: to be read, to be copied, and again because KVM gives way to the copying. So as soon as
 * the guest runs, the event loop copies ahead of it what it will write to, a piece a millisecond.
 *
 * And a file that is overwritten in place would change a running guest, one that is truncated would
 * end it. So memory parts from a file that can change (image_guard.h): at once from one that is not
 * leased, and from one that is leased when somebody wants to change it, who waits for that. For
 * each piece the machine is held, for a fraction of a millisecond.
 *
 * All functions are for the loop's thread.
 */
#pragma once

#include "vmm/base/loop.h"
#include "vmm/boot/kernel.h"
#include "vmm/kvm/guest_mem.h"

struct copy_ahead;
typedef bool copy_ahead_hold_fn(struct copy_ahead *c);
typedef void copy_ahead_release_fn(struct copy_ahead *c);

struct copy_ahead {
    struct loop_source timer;  /* the next piece is due */
    struct loop_source breaks; /* signalfd: somebody wants to change a leased file */
    struct loop *loop;
    struct guest_mem *mem;
    copy_ahead_hold_fn *hold;
    copy_ahead_release_fn *release;
    struct image_source sources[2]; /* the kernel's and the initrd's */
    /* What is to be copied, in this order: what is left of parts[next] comes next. First what the
     * guest will write to, of the kernel and of the initrd, then the rest of files that need it. */
    struct copy_part {
        gpa_t at;
        uint64_t bytes;
        bool is_final; /* memory parts from the file; else it is only copied where it is mapped */
    } parts[IMAGE_PARTS_MAX + 1 + GMEM_FILE_PARTS_MAX];
    unsigned next, count;
};

/* Makes ready to copy what the kernel says and an initrd that is not large, and all of what may
 * change; all of it is RAM. mem is borrowed for as long as *c, and so are the files' descriptors.
 * hold() and release(): between them nobody but the loop touches guest memory. Where hold() returns
 * false nothing is held, and nothing copied. */
void copy_ahead_init(struct copy_ahead *c, struct guest_mem *mem, const struct kernel_image *kernel,
                     const struct initrd *initrd, copy_ahead_hold_fn *hold,
                     copy_ahead_release_fn *release);

/* Copies from now on; *c stays where it is until the loop ends. A piece that is not in the page
 * cache makes the loop wait for the disk, as it would make the guest. If a guest can't part from a
 * file, this is logged. */
void copy_ahead_start(struct copy_ahead *c, struct loop *loop);

/* The process itself is about to open a file for writing, and can't wait for itself: if memory is
 * mapped from that one and it is leased, memory parts from it now. After copy_ahead_start(). */
void copy_ahead_let_write(struct copy_ahead *c, const char *path);
