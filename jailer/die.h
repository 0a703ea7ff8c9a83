/*
 * How the jailer fails: at once, with one line that names the object and the reason. There is
 * nothing to undo, because what it made (a directory, a cgroup) does not stand in the way of the
 * next attempt.
 */
#pragma once

/* Prints "TEXT", alone on its line, on stderr or where die_to() said, and exits with status 1. */
__attribute__((noreturn, cold, format(printf, 1, 2))) void die(const char *fmt, ...);

/* As die(), with ": TEXT (os error N)" of os_errno (positive) added. */
__attribute__((noreturn, cold, format(printf, 2, 3))) void die_os(int os_errno, const char *fmt,
                                                                  ...);

/* As die_os(), with "; HINT" behind it: what a user can't guess from the error. NULL: no hint. */
__attribute__((noreturn, cold, format(printf, 3, 4))) void die_hint(int os_errno, const char *hint,
                                                                    const char *fmt, ...);

/* From now on a failure of this process is written to fd, for a process that waits there. */
void die_to(int fd);

/* snprintf() into a path of PATH_MAX bytes; a path that does not fit ends the process. */
__attribute__((format(printf, 2, 3))) void path_set(char *path, const char *fmt, ...);

/* Writes a text into a file that is there, in one write, as the kernel's files want it. 0 or
 * -errno, of a part that was taken -EIO. */
__attribute__((warn_unused_result)) int try_to_write(const char *path, const char *text);

/* The same, or ends the process. */
void write_once(const char *path, const char *text);
