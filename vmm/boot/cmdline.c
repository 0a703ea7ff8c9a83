#include "vmm/boot/cmdline.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define INIT_SEPARATOR       " -- "
#define INIT_SEPARATOR_BYTES (sizeof(INIT_SEPARATOR) - 1)

static const char default_args[] = "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux "
                                   "i8042.nomux i8042.dumbkbd swiotlb=noforce";

/* A piece of a longer string. */
struct span {
    const char *start;
    size_t bytes;
};

static bool is_blank(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static struct span trim(struct span s)
{
    while (s.bytes && is_blank(*s.start)) {
        s.start++;
        s.bytes--;
    }
    while (s.bytes && is_blank(s.start[s.bytes - 1]))
        s.bytes--;
    return s;
}

/* Where the first separator outside double quotes begins in a string of n bytes; n without one. */
static size_t separator_offset(const char *args, size_t n)
{
    bool quoted = false;

    for (size_t i = 0; i + INIT_SEPARATOR_BYTES <= n; i++) {
        if (args[i] == '"')
            quoted = !quoted;
        else if (!quoted && !memcmp(args + i, INIT_SEPARATOR, INIT_SEPARATOR_BYTES))
            return i;
    }
    return n;
}

int cmdline_init(struct cmdline *c, const char *boot_args, struct error *e)
{
    const char *args = boot_args ? boot_args : default_args;
    size_t n = strlen(args), split = separator_offset(args, n);
    struct span boot = trim((struct span){ args, split });
    struct span init = { args + n, 0 };
    size_t all_bytes;

    if (split < n)
        init = trim(
            (struct span){ args + split + INIT_SEPARATOR_BYTES, n - split - INIT_SEPARATOR_BYTES });
    all_bytes = boot.bytes + (init.bytes ? INIT_SEPARATOR_BYTES + init.bytes : 0);
    if (all_bytes >= sizeof(c->text))
        return fail(e, ERR_INVALID,
                    "The kernel command line is invalid: Invalid cmdline capacity provided.");
    *c = (struct cmdline){ .boot_bytes = boot.bytes };
    memcpy(c->text, boot.start, boot.bytes);
    if (init.bytes) {
        memcpy(c->text + boot.bytes, INIT_SEPARATOR, INIT_SEPARATOR_BYTES);
        memcpy(c->text + boot.bytes + INIT_SEPARATOR_BYTES, init.start, init.bytes);
    }
    return 0;
}

static bool is_printable(const char *text)
{
    for (; *text; text++)
        if (*text < ' ' || *text > '~')
            return false;
    return true;
}

int cmdline_add(struct cmdline *c, struct error *e, const char *fmt, ...)
{
    char argument[sizeof(c->text)];
    size_t blank = c->boot_bytes ? 1 : 0;
    size_t used = strlen(c->text), added;
    char *at = c->text + c->boot_bytes;
    va_list ap;
    int length;

    va_start(ap, fmt);
    length = vsnprintf(argument, sizeof(argument), fmt, ap);
    va_end(ap);
    BUG_ON(length < 0);
    added = blank + (size_t)length;
    if (added >= sizeof(c->text) - used)
        return fail(e, ERR_INVALID,
                    "Invalid kernel command line: Inserting string would make command line too "
                    "long.");
    if (!is_printable(argument))
        return fail(e, ERR_INVALID,
                    "Invalid kernel command line: String contains a non-printable ASCII "
                    "character.");
    memmove(at + added, at, used - c->boot_bytes + 1);
    if (blank)
        *at++ = ' ';
    memcpy(at, argument, (size_t)length);
    c->boot_bytes += added;
    return 0;
}
