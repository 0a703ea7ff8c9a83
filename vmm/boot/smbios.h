/*
 * SMBIOS tables (DMTF DSP0134, 3.3), for a microVM that is given an identity: who it is to a guest
 * that looks at DMI. Linux finds them by a scan of the BIOS's segment.
 */
#pragma once

#include "vmm/kvm/guest_mem.h"

/* Writes the entry point and the structures of types 0, 1 and 127 at LAYOUT_SMBIOS. Before the
 * start, by the main thread. Fails where guest memory doesn't hold them. */
must_check int smbios_write(struct guest_mem *m, const struct smbios_config *config,
                            struct error *e);
