/*
 * The last words of a VMM without a terminal. `--daemonize` sends what it prints to /dev/null, and
 * one that ends at its configuration would leave no trace. The jailer, which sees the host's
 * /dev/log, leaves it to the VMM as its standard error: each write is a message then.
 *
 * The VMM of a running guest must not have it: what a guest could make it write has no limit.
 */
#pragma once

#include "vmm/base/error.h"

/* Prints "Error: TEXT" on standard error. Where that is the syslog, the line has what is needed
 * there: a priority, and which microVM it is about. */
void syslog_print_error(const char *instance_id, const char *text);

/* Standard error that is the syslog becomes what standard output is. 0 or -errno. Main thread,
 * before the guest's first instruction. */
must_check int syslog_leave(void);
