#include "jailer/die.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vmm/base/error.h"

#define TEXT_BYTES (3 * PATH_MAX)

static int told_to = STDERR_FILENO;

void die_to(int fd)
{
    told_to = fd;
}

/* In one write, so that lines of jailers that share a terminal or a file stay whole. */
__attribute__((format(printf, 1, 0))) static void tell(const char *fmt, va_list ap,
                                                       const char *more)
{
    char text[TEXT_BYTES];
    size_t room = sizeof(text) - strlen(more) - 1; /* the line feed is that of more */
    int n = vsnprintf(text, room, fmt, ap);
    size_t used = n < 0 ? 0 : (size_t)n < room ? (size_t)n : room - 1;

    used += (size_t)snprintf(text + used, sizeof(text) - used, "%s\n", more);
    (void)!write(told_to, text, used);
}

__attribute__((format(printf, 3, 0))) static void tell_os(int os_errno, const char *hint,
                                                          const char *fmt, va_list ap)
{
    char more[512];

    snprintf(more, sizeof(more), ": %s (os error %d)%s%s", os_error_text(os_errno), os_errno,
             hint ? "; " : "", hint ? hint : "");
    tell(fmt, ap, more);
}

void die(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    tell(fmt, ap, "");
    va_end(ap);
    exit(1);
}

void die_os(int os_errno, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    tell_os(os_errno, NULL, fmt, ap);
    va_end(ap);
    exit(1);
}

void die_hint(int os_errno, const char *hint, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    tell_os(os_errno, hint, fmt, ap);
    va_end(ap);
    exit(1);
}

void path_set(char *path, const char *fmt, ...)
{
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(path, PATH_MAX, fmt, ap);
    va_end(ap);
    if (n < 0 || n >= PATH_MAX)
        die("A path is longer than %d bytes: %.200s...", PATH_MAX - 1, path);
}

int try_to_write(const char *path, const char *text)
{
    ssize_t n = (ssize_t)strlen(text), written;
    int fd = open(path, O_WRONLY | O_CLOEXEC), ret = 0;

    if (fd < 0)
        return -errno;
    written = write(fd, text, (size_t)n);
    if (written != n)
        ret = written < 0 ? -errno : -EIO;
    close(fd);
    return ret;
}

void write_once(const char *path, const char *text)
{
    int ret = try_to_write(path, text);

    if (ret < 0)
        die_os(-ret, "Failed to write to %s", path);
}
