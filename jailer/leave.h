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

/* Takes the terminal from the session, if it is ours, and ignores SIGHUP from now on. The end of a
 * session's leader sends it to all that the terminal has in the foreground: that would be the child
 * that is to become the VMM, when it is the jailer that leads. For --daemonize and --new-pid-ns,
 * while /dev is that of the host. */
void leave_terminal(void);

/* Detaches from the caller (--daemonize, --new-pid-ns), writes the PID file, and executes the VMM
 * without privileges, in the cgroup if there is one (-1: none). null_fd is /dev/null, for
 * --daemonize. Never returns. */
__attribute__((noreturn)) void leave(const struct plan *p, const struct cell *c, int cgroup_fd,
                                     int null_fd, const struct start *start);
