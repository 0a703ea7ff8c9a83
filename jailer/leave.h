/*
 * The jailer's end: it becomes the VMM's process, gives away every privilege and executes the VMM.
 */
#pragma once

#include <stdint.h>

#include "jailer/cell.h"
#include "jailer/cgroup.h"
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

/* For --daemonize, opened while the host's tree is in sight. */
struct daemon_files {
    int null_fd;
    int syslog_fd; /* of the host, for the VMM to say why it ended (vmm/base/syslog.h); -1: none */
};

/* Detaches from the caller (--daemonize, --new-pid-ns), writes the PID file, and executes the VMM
 * without privileges, in its cgroup. Never returns. A caller's process that stays behind ends when
 * the VMM is executed, or with the reason why it is not. */
__attribute__((noreturn)) void leave(const struct plan *p, const struct cell *c,
                                     const struct cgroup *group, const struct daemon_files *files,
                                     const struct start *start);
