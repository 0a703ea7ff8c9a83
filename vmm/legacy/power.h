/*
 * The guest's power: the sleep registers of hardware-reduced ACPI (6.5, section 4.8.3.7), by which
 * it switches itself off, and the power button, which is an interrupt. What both are is told by the
 * DSDT and the FADT (vmm/boot/acpi.c); a guest without ACPI never knows of them.
 *
 * Nothing here has a state: the registers read as zero, since what is written takes effect at once,
 * and an edge that waits is the interrupt controller's.
 */
#pragma once

#include "vmm/base/error.h"
#include "vmm/kvm/bus.h"
#include "vmm/kvm/guest_end.h"
#include "vmm/kvm/kvm.h"

struct power {
    struct bus_device bus; /* of the sleep registers, at LAYOUT_SLEEP_CONTROL */
    struct kvm_line button;
    void (*pulse)(const struct kvm_line *line); /* kvm_pulse(), or a test's */
    struct guest_end *end;
};

/* Borrows end, to which it is told that the guest has switched itself off (exit code 0). */
void power_init(struct power *p, struct kvm_line button, struct guest_end *end);

/* Presses the button and lets it go. A guest that stands still hears of it when it goes on; one
 * without a driver never does. */
void power_press(const struct power *p);
