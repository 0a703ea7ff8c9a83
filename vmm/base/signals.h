/*
 * How the process ends when it must: signals, and a broken invariant (bug.h). Those signals that
 * mean that the process can't go on (and SIGHUP, by which some clients stop it) are counted,
 * logged, and end it at once with a status of their own after a last line of metrics. SIGPIPE is
 * counted and survived: the write that caused it fails. SIGTTIN and SIGTTOU don't stop a guest
 * whose terminal is somebody else's. All others, SIGTERM first, keep their default: clients look
 * for them in the wait status (inherited.h says what comes before that).
 */
#pragma once

/* Installs the handlers, for all threads. */
void signals_install(void);
