/*
 * What a process gets from whoever starts it. None of it may change what either program does; this
 * is the list of all of it, with the place that sees to it.
 *
 *   descriptors 0 to 2, closed    inherited_settle() fills the holes
 *   further descriptors           the VMM has no use for them; the jailer closes them
 *   O_NONBLOCK of shared output   console.h: opens its own, or puts it back
 *   signals blocked or ignored    inherited_settle()
 *   being PID 1                   inherited_settle(): what ends a process ends this one, too
 *   terminal, foreground or not   console.h: one that is others' is left alone
 *   leading a session             jailer/leave.h; no file that is opened becomes its terminal
 *   umask                         stands for files that others read; not for devices (cell.h)
 *   environment                   TZ, for the log; the jailer hands nothing down
 *   personality                   jailer/main.c: addresses are random
 *   limit of core dumps           stands, without guest memory (guest_mem.h); a jail has none
 *
 * What its owner sets on purpose, to limit or to weigh, stands: working directory, other resource
 * limits, an alarm (a fork would have dropped it), nice, affinity, scheduling and I/O class,
 * OOM score, parent-death signal, namespaces, cgroups, filters.
 */
#pragma once

/* The first thing that main() does. Ends the process where a standard descriptor can't be had. */
void inherited_settle(void);

/* From now on, give_back() comes first when SIGTERM, SIGINT or SIGQUIT ends the process, which they
 * still do. It must be async-signal-safe; any thread may run it. For the main thread, before a
 * guest runs. */
void inherited_give_back(void (*give_back)(void));
