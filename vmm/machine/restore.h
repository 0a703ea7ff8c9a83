/*
 * A machine's state taken out of it, and put into another. For the main thread.
 */
#pragma once

#include "vmm/machine/machine.h"
#include "vmm/machine/saved.h"

/* Takes the state of a machine that is held, which changes nothing of it. s: a saved_new(), which
 * gets a name of its own and borrows the configuration. */
must_check int machine_save(struct machine *m, const struct vm_config *config, struct saved *s,
                            struct error *e);

/*
 * Makes a machine of a state, over memory that holds what the other's did, with what is open for
 * s->config. Its devices judge their states as they would a guest's word. It is held once, as after
 * machine_hold(): vcpus_start() is still to come. Its guest finds that it was cloned: the
 * generation devices and the vsock have told it so. Takes the memory, and of the origin what that
 * says, and borrows what machine_build() does. On failure (-1) nothing is left behind, but that
 * taps have offloads. Heap.
 */
must_check int machine_restore(struct machine **out, const struct saved *s, struct guest_mem *mem,
                               const struct snapshot_origin *origin, struct opened *opened,
                               bool boot_timer, struct loop *loop, struct error *e);
