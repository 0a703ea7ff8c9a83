/*
 * The ACPI tables (ACPI 6.5): RSDP, XSDT, FADT (hardware-reduced), MADT, MCFG and a DSDT that
 * announces the virtio devices, COM1, the PS/2 controller, VMGenID, VMClock, soft off and the power
 * button. Written once, before the start, by the main thread.
 */
#pragma once

#include "vmm/kvm/guest_mem.h"

/* first_free is where the MPTable ended: the tables follow it, up to LAYOUT_VMCLOCK. Fails where
 * they leave that space or guest memory. */
must_check int acpi_write(struct guest_mem *m, const struct platform *p, gpa_t first_free,
                          struct error *e);
