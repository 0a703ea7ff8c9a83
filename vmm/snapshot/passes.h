/*
 * Which pages of guest memory come next, for whoever copies it while its guest runs: a snapshot
 * that is made live, or a migration.
 *
 * The first pass is over all that a copy needs, each further one over what has changed since the
 * one before: by KVM's log and the VMM's own marks, which are both kept meanwhile
 * (snapshot_memory_watch()). The last one is begun when nothing writes any more. Main thread.
 */
#pragma once

#include "vmm/snapshot/memory.h"

struct passes {
    struct snapshot_memory *memory;
    enum snapshot_content content; /* of the first pass */
    struct page_set set;           /* of this pass */
    uint64_t *changed;             /* what was taken out of log and marks since the begin */
    uint64_t next;                 /* page of this pass */
    unsigned number;               /* of this pass, from 1 on */
    uint64_t count, before;        /* pages in this pass, found so far; in the one before */
};

/* Begins the first pass of what a memory file of this kind holds (snapshot_memory_pages()). On
 * failure there is nothing to end. */
must_check int passes_begin(struct passes *p, struct snapshot_memory *m, enum snapshot_kind kind,
                            struct error *e);

/* The next piece of a pass: of the pages [*from, *to), not more than 4 MiB of them in the first
 * pass, those in p->set, which are about a MiB at most. 1; 0: the pass is over; or -1. */
must_check int passes_next(struct passes *p, uint64_t *from, uint64_t *to, struct error *e);

/* Begins another pass: of what has changed since the last was begun, which is p->count pages. */
must_check int passes_again(struct passes *p, struct error *e);

/* Whether it is no use to begin another one while the guest runs: the last was small, or no smaller
 * than the one before, or there were many. */
bool passes_are_enough(const struct passes *p);

/* Ends them. All was written, for good, as the snapshot of that name; NULL: it was not, and what
 * has changed is known as it was before. */
void passes_end(struct passes *p, const struct uuid *name);
