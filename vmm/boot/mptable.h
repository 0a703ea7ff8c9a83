/* The MultiProcessor Specification 1.4 table at LAYOUT_SYSTEM, for guests without ACPI. */
#pragma once

#include "vmm/kvm/guest_mem.h"

/* Writes the table for vcpu_count (1..PLATFORM_VCPUS_MAX) processors; *end is the first byte behind
 * it. Fails where guest memory doesn't hold it. */
must_check int mptable_write(struct guest_mem *m, unsigned vcpu_count, gpa_t *end, struct error *e);
