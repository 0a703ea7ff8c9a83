/*
 * What a client changes of a machine that runs, or is paused. Main thread.
 *
 * All of a patch is done and in the configuration, or nothing; then the error has the client's
 * text.
 */
#pragma once

#include "vmm/machine/machine.h"

/* Gives a drive another file, other limits, or both. Takes over the path. */
must_check int live_patch_drive(struct machine *m, struct drive_configs *drives,
                                struct drive_patch *p, struct error *e);

/* Gives an interface other limits. */
must_check int live_patch_net(struct machine *m, struct net_configs *interfaces,
                              const struct net_patch *p, struct error *e);
