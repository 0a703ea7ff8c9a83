#include "vmm/base/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Where musl's words are not those of the C library at hand. Of some numbers it has none at all:
 * there the C library's say more. */
static const struct {
    int os_errno;
    char text[36];
} musl_words[] = {
    { EIO, "I/O error" },
    { ECHILD, "No child process" },
    { ENOMEM, "Out of memory" },
    { EBUSY, "Resource busy" },
    { EXDEV, "Cross-device link" },
    { EMFILE, "No file descriptors available" },
    { ENOTTY, "Not a tty" },
    { ESPIPE, "Invalid seek" },
    { EDOM, "Domain error" },
    { ERANGE, "Result not representable" },
    { EDEADLK, "Resource deadlock would occur" },
    { ENAMETOOLONG, "Filename too long" },
    { ELOOP, "Symbolic link loop" },
    { ETIME, "Device timeout" },
    { EOVERFLOW, "Value too large for data type" },
    { EILSEQ, "Illegal byte sequence" },
    { ENOTSOCK, "Not a socket" },
    { EMSGSIZE, "Message too large" },
    { EOPNOTSUPP, "Not supported" },
    { EADDRINUSE, "Address in use" },
    { EADDRNOTAVAIL, "Address not available" },
    { ENETUNREACH, "Network unreachable" },
    { ENETRESET, "Connection reset by network" },
    { ECONNABORTED, "Connection aborted" },
    { EISCONN, "Socket is connected" },
    { ENOTCONN, "Socket not connected" },
    { ESHUTDOWN, "Cannot send after socket shutdown" },
    { ETIMEDOUT, "Operation timed out" },
    { EHOSTUNREACH, "Host is unreachable" },
    { EINPROGRESS, "Operation in progress" },
    { EDQUOT, "Quota exceeded" },
    { EOWNERDEAD, "Previous owner died" },
};

const char *os_error_text(int os_errno)
{
    const char *text;

    for (size_t i = 0; i < sizeof(musl_words) / sizeof(*musl_words); i++)
        if (musl_words[i].os_errno == os_errno)
            return musl_words[i].text;
    text = os_errno > 0 ? strerrordesc_np(os_errno) : NULL;
    return text ? text : "No error information";
}

int fail(struct error *e, enum err_kind kind, const char *fmt, ...)
{
    va_list ap;

    e->kind = kind;
    e->os_errno = 0;
    va_start(ap, fmt);
    vsnprintf(e->msg, sizeof(e->msg), fmt, ap);
    va_end(ap);
    return -1;
}

int fail_os(struct error *e, int os_errno, const char *fmt, ...)
{
    va_list ap;
    size_t used;

    e->kind = ERR_HOST;
    e->os_errno = os_errno;
    va_start(ap, fmt);
    vsnprintf(e->msg, sizeof(e->msg), fmt, ap);
    va_end(ap);
    used = strlen(e->msg);
    snprintf(e->msg + used, sizeof(e->msg) - used, ": %s (os error %d)", os_error_text(os_errno),
             os_errno);
    return -1;
}

int fail_path(struct error *e, int os_errno, const char *path, const char *what)
{
    fail(e, ERR_HOST, "%s: %s (os error %d)%s%s", what, os_error_text(os_errno), os_errno,
         *path ? " " : "", path);
    e->os_errno = os_errno;
    return -1;
}

int fail_within(struct error *e, const char *prefix)
{
    char inner[sizeof(e->msg)];

    memcpy(inner, e->msg, sizeof(inner));
    snprintf(e->msg, sizeof(e->msg), "%s: %.*s", prefix,
             (int)(sizeof(inner) - 3 - strnlen(prefix, 512)), inner);
    return -1;
}
