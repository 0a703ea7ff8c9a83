/*
 * What tells a guest that it was cloned: the VM Generation ID (Microsoft, "Virtual Machine
 * Generation ID", 2012) and the VMClock page (Linux, include/uapi/linux/vmclock-abi.h), at
 * LAYOUT_VMGENID and LAYOUT_VMCLOCK.
 */
#pragma once

#include "vmm/kvm/guest_mem.h"

/* Tells a guest that it is a clone: a new id, and a clock that has gone on to another generation,
 * in place of those there. Whoever calls it interrupts the guest. The same errors. */
must_check int generation_renew(struct guest_mem *m, struct error *e);

/* Writes both for a new guest: a random id, and a clock that tells no time. Fails where guest
 * memory doesn't hold them or the host has no random bytes. */
must_check int generation_write(struct guest_mem *m, struct error *e);
