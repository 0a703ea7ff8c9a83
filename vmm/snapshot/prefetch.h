/*
 * Brings in the pages of a working set (working_set.h) before the guest runs that will touch them.
 *
 * Where the memory file is in the page cache, its pages are mapped as they will be used: those that
 * are only read are shared, those that are written get their copy. Where it is not, the record's
 * contents are laid over them, which the disk gives in one piece.
 *
 * Before, and not while the guest runs: side by side the two took a third more of the processor,
 * and the guest had its pages no sooner.
 *
 * Nothing here makes a load fail. For the main thread.
 */
#pragma once

#include "vmm/base/uuid.h"
#include "vmm/kvm/guest_mem.h"
#include "vmm/snapshot/chain.h"

struct prefetch;

/* Makes ready, and lets the disk begin, for memory that holds what the snapshot of that name does
 * and that nobody has touched, mapped from those files. Borrows what is mapped for mem. NULL: there
 * is nothing to be done; the log says why. */
struct prefetch *prefetch_open(const struct guest_mem *mem, const struct snapshot_chain *files,
                               const char *path, const struct uuid *name);

/* Returns when the pages are there, or can't be, and frees *p. NULL will do. */
void prefetch_finish(struct prefetch *p);

/* Gives up. NULL will do. */
void prefetch_close(struct prefetch *p);
