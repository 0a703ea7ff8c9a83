/*
 * The boot timer: a guest that has booted writes one byte, and the log gets the time since the
 * start was asked for, once a second at most. At LAYOUT_BOOT_TIMER, with --boot-timer only.
 */
#pragma once

#include "vmm/base/log.h"
#include "vmm/kvm/bus.h"

struct boot_timer {
    struct bus_device bus;
    uint64_t start_wall_us, start_cpu_us;
    struct log_limit marks;
};

/* Starts the clock. */
void boot_timer_init(struct boot_timer *t);
