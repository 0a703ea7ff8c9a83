/*
 * The kernel's text while the guest boots.
 *
 * A start maps it from its file, which costs next to nothing (see gmem_load_file). But Linux
 * patches most of its text (lock prefixes, alternatives, paravirtual calls), and a mapped page that
 * the guest runs and then writes faults three times: to be read, to be copied, and again because
 * KVM gives way to the copying. So as soon as the guest runs, the event loop copies ahead of it, a
 * piece a millisecond. Not a bzImage: it is read once, and what copying its pages saves where they
 * are soon used again (3 % of a boot), it costs elsewhere (2 %).
 *
 * All functions are for the loop's thread.
 */
#pragma once

#include "vmm/guest_mem.h"
#include "vmm/loop.h"

struct text {
    struct loop_source timer;
    struct loop *loop;
    const struct guest_mem *mem;
    gpa_t at; /* the next page to copy */
    uint64_t bytes;
};

/* It is [at, at + bytes), RAM. mem is borrowed for as long as *t. */
void text_init(struct text *t, const struct guest_mem *mem, gpa_t at, uint64_t bytes);

/* Copies from now on; *t stays where it is until the loop ends. Where the host can't (Linux before
 * 5.14), the guest's own faults do it. A piece that is not in the page cache makes the loop wait
 * for the disk, as it would make the guest. */
void text_copy(struct text *t, struct loop *loop);
