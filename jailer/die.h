/*
 * How the jailer fails: at once, with one line that names the object and the reason. There is
 * nothing to undo, because what it made (a directory, a cgroup) does not stand in the way of the
 * next attempt.
 */
#pragma once

/* Prints "Error: TEXT" on stderr and exits with status 1. */
__attribute__((noreturn, cold, format(printf, 1, 2))) void die(const char *fmt, ...);

/* As die(), with ": TEXT (os error N)" of os_errno (positive) added. */
__attribute__((noreturn, cold, format(printf, 2, 3))) void die_os(int os_errno, const char *fmt,
                                                                  ...);

/* snprintf() into a path of PATH_MAX bytes; a path that does not fit ends the process. */
__attribute__((format(printf, 2, 3))) void path_set(char *path, const char *fmt, ...);
