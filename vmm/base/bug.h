/* What can't happen. */
#pragma once

/* Ends the process: an invariant of ours is broken, and no guest or client can cause it. Survives
 * NDEBUG. The condition must have no side effect. */
#define BUG_ON(cond)                                                                               \
    do {                                                                                           \
        if (__builtin_expect(!!(cond), 0))                                                         \
            bug(__FILE__, __LINE__, #cond);                                                        \
    } while (0)

/* Logs, counts and writes the metrics before it aborts; see signals.h. Any thread. */
__attribute__((noreturn, cold)) void bug(const char *file, int line, const char *what);
