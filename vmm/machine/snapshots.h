/*
 * What `PUT /snapshot/create` and `/snapshot/load` do: a machine into two files, and out of them.
 * For the main thread.
 */
#pragma once

#include "vmm/machine/machine.h"
#include "vmm/seccomp/seccomp.h"

/* Saves a machine that is held. It has not changed then, on failure either, but that drives go on
 * in new overlays where that was asked for. */
must_check int snapshots_create(struct machine *m, struct vm_config *config,
                                const struct snapshot_create_config *c, struct error *e);

/* Says how long it took, in the log and the metrics. */
void snapshots_log_created(bool is_diff, uint64_t start_us);

/* Makes a machine from a snapshot, as machine_restore() does, opens what it works on, and puts what
 * it is into *config, of which log, metrics and console stay. seccomp (NULL: none) has the filters
 * of memory's threads (uffd.h, recorder.h). On failure (-1) nothing is open and the configuration
 * is as it was. */
must_check int snapshots_load(struct machine **out, struct vm_config *config, struct opened *opened,
                              const struct snapshot_load_config *c, bool boot_timer,
                              struct loop *loop, const struct seccomp_threads *seccomp,
                              struct error *e);

/* Writes the working set of a machine that is held, if it records one and has not done so. */
void snapshots_write_working_set(const struct machine *m);
