#include "vmm/base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

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
    snprintf(e->msg + used, sizeof(e->msg) - used, ": %s (os error %d)", strerror(os_errno),
             os_errno);
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
