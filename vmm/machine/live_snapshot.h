/*
 * A snapshot of a microVM that goes on running: its memory is written by the event loop, a piece a
 * turn, in passes (vmm/snapshot/passes.h), and the machine is held for the last pass and its state
 * alone. What was written before is on the disk by then, where the client wants that, and what the
 * machine stands for is written when it runs again.
 *
 * All functions are for the loop's thread.
 */
#pragma once

#include "vmm/machine/machine.h"

struct live_snapshot;

/* Called from the loop, or by live_snapshot_abort(): the snapshot is there, or NULL: it is not, e
 * says why, and nothing is forgotten. The object is gone when it returns. */
typedef void live_end_fn(void *whose, const struct snapshot_created *result, struct error *e);

/* Begins one of a machine after vcpus_start(), held or not, of which no other snapshot is being
 * made. Takes the paths of *c; borrows machine and configuration, which may change meanwhile: that
 * of the moment at which the machine stands counts. NULL on failure; nothing has changed then. */
must_check struct live_snapshot *live_snapshot_begin(struct machine *m, struct vm_config *config,
                                                     struct snapshot_create_config *c,
                                                     live_end_fn *on_end, void *whose,
                                                     struct error *e);

/* Ends it without a snapshot. */
void live_snapshot_abort(struct live_snapshot *l, const char *why);
