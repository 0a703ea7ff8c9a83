/*
 * Records a working set (working_set.h): guest memory whose missing pages this process itself
 * serves, by userfaultfd(2), and so knows of each that is touched.
 *
 * Guest memory is anonymous then, and a thread of this module ("fc_pager") copies a page of the
 * snapshot's into it when somebody touches it for the first time. It does so for as long as the VM
 * lives, which is slower than a mapped file: a VM that records is one of a kind. What was touched
 * counts until the record is written.
 *
 * All functions are for the main thread.
 */
#pragma once

#include "vmm/base/error.h"
#include "vmm/base/uuid.h"
#include "vmm/kvm/guest_mem.h"
#include "vmm/snapshot/memory.h"

struct recorder;
struct sock_fprog;

/* Serves mem, of which nobody has touched a page yet, from *source, which is as large and holds
 * what the snapshot of that name does; and opens the file that is renamed to `path` when it is
 * written, so that what is in its way is known now. Takes *source, borrows filter (the thread's;
 * NULL: none) and what is mapped for mem. NULL on failure: then *source is the caller's, and mem is
 * given up. */
must_check struct recorder *recorder_open(const struct guest_mem *mem, struct guest_mem *source,
                                          const struct uuid *name, const char *path,
                                          const struct sock_fprog *filter, struct error *e);

/* Writes what was touched since the load, and is done with it: later calls do nothing. Nobody
 * touches guest memory meanwhile. Whether it worked, or why not, is logged. */
void recorder_write(struct recorder *r, const struct snapshot_memory *m);

/* Gives up: what is missing is zero from now on, so for a VM that won't run. Guest memory can be
 * unmapped then. The thread stays, and with it *r. */
void recorder_close(struct recorder *r);
