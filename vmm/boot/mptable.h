/*
 * The MultiProcessor Specification 1.4 table at LAYOUT_SYSTEM, for guests without ACPI.
 */
#pragma once

#include "vmm/boot/layout.h"

/* *end is the first byte behind the table. */
must_check int mptable_write(struct guest_mem *m, unsigned vcpu_count, gpa_t *end,
                             struct error *e);
