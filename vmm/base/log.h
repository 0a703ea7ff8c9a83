/*
 * The log: one line a message, to stdout until log_open() names another sink. Never blocks and
 * never fails: a line that the sink does not take at once is lost and counted
 * (metrics.logger.missed_log_count). Any thread may log.
 *
 * A line reads `2026-01-31T12:00:00.123456789 [instance-id:thread] message`, in local time, with
 * the level and the source's place added on request; "thread" is main, fc_vcpu N. Other threads
 * than the main thread have local time as it was when that last wrote a line: they are confined to
 * a filter, which what libc does for a time zone would not pass.
 *
 * As JSON the same line is {"time":"2026-01-31T12:00:00.123456789+01:00","id":"instance-id",
 * "thread":"main","message":"..."}, with "level" and "origin" on request: always one object and one
 * line of UTF-8, whatever is in the message.
 */
#pragma once

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "vmm/base/error.h"

enum log_level { LOG_OFF, LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG, LOG_TRACE };

struct log_options {
    enum log_level level;
    bool show_level;
    bool show_origin;
    const char *module; /* only lines of source files whose path begins so ("api", "vmm/kvm");
                           NULL: all. Borrowed for as long as these options stand */
};

/* Sets up what the first line would otherwise: the time zone, stdout. Main thread, before there is
 * another one or a filter. */
void log_prepare(void);

/* Names the instance in every line from now on. Borrows id for the rest of the process. */
void log_set_instance(const char *id);

/* The name, for what is said elsewhere than in the log; a default before it was set. */
const char *log_get_instance(void);

/* Lines are JSON from now on. Main thread, before there is another one. */
void log_set_json(void);

/* Those from now on. Main thread. */
void log_set_options(struct log_options options);
struct log_options log_get_options(void);

/* Level of a name as --level and the API take it ("Info", "warning", ...), or -1. */
int log_level_parse(const char *name);

/* Sends further lines to console_open_lines(path). On failure the old sink stays. */
must_check int log_open(const char *path, struct error *e);

/* Logs that a signal came, in Firecracker's words, or that it ends the process: then also the
 * number of a system call that the filter forbids. Async-signal-safe, as nothing else here is. */
void log_signal(const siginfo_t *info, bool is_fatal);

/* Writes a line, if level and place are to be logged; keeps errno. By the macros below. */
void log_line(enum log_level level, const char *file, int line, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* A brake for lines that a guest, a client or a failing host could cause without end. Zeroed, and
 * kept where what it brakes is kept: one for each thing whose trouble must not hide another's. */
struct log_limit {
    uint64_t next_ns;  /* of the monotonic clock: no line before that */
    uint64_t left_out; /* since the last line */
};

/* The same for at most one line a second; the first at once. A line tells how many were left out
 * before it. Any thread, also several on one limit. By log_limited(). */
void log_line_limited(struct log_limit *limit, enum log_level level, const char *file, int line,
                      const char *fmt, ...) __attribute__((format(printf, 5, 6)));

#define log_error(...) log_line(LOG_ERROR, __FILE__, __LINE__, __VA_ARGS__)
#define log_warn(...)  log_line(LOG_WARN, __FILE__, __LINE__, __VA_ARGS__)
#define log_info(...)  log_line(LOG_INFO, __FILE__, __LINE__, __VA_ARGS__)
#define log_debug(...) log_line(LOG_DEBUG, __FILE__, __LINE__, __VA_ARGS__)
#define log_limited(limit, level, ...)                                                             \
    log_line_limited((limit), (level), __FILE__, __LINE__, __VA_ARGS__)
