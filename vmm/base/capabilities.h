/*
 * The one capability that the jailer leaves to a VMM of user 0, and how both programs have it.
 *
 * Files and FIFOs may have modes that keep them from their owner, 000 for one, and clients whose
 * microVMs are root's expect them to be opened (docs/security.md). So a jailed user 0 keeps
 * CAP_DAC_OVERRIDE for as long as no guest runs.
 */
#pragma once

#include <stdbool.h>

#include "vmm/base/error.h"

/* Makes it inheritable, if the calling thread has it: so user 0 has it across an execve even though
 * its bounding set is empty by then. For a process that has CAP_SETPCAP. 0 or -errno. */
must_check int capabilities_hand_down(void);

/* Leaves the calling thread no capability, or where keep is set none but that, if it was handed
 * down. 0 or -errno. */
must_check int capabilities_limit(bool keep);

/* Gives up what the jailer left, in the calling thread and those that it starts later; changes
 * nothing where it was not the jailer that chose them. 0 or -errno. */
must_check int capabilities_give_up(void);
