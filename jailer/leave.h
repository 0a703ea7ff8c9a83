/*
 * The jailer's end: it becomes the VMM's process, gives away every privilege and executes the VMM.
 */
#pragma once

#include <stdint.h>

#include "jailer/cell.h"
#include "jailer/plan.h"

/* When the jailer began, for the VMM's metrics. */
struct start {
    uint64_t monotonic_us, cpu_us;
};

/* The first thing that the jailer does. */
struct start start_now(void);

/* Detaches from the caller (--daemonize, --new-pid-ns), writes the PID file, and executes the VMM
 * without privileges, in the cgroup if there is one (-1: none). null_fd is /dev/null, for
 * --daemonize. Never returns. */
__attribute__((noreturn)) void leave(const struct plan *p, const struct cell *c, int cgroup_fd,
                                     int null_fd, const struct start *start);
