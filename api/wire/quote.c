#include "api/wire/quote.h"

#include <stdio.h>
#include <string.h>

#include "vmm/base/utf8.h"

/* One character, escaped, into a buffer of 12; returns its length in s. */
static size_t escape(char out[12], const char *s, size_t n)
{
    static const char special[] = "\"\\\n\r\t", names[] = "\"\\nrt";
    const char *found = *s ? strchr(special, *s) : NULL;
    unsigned char c = (unsigned char)*s;
    size_t length = utf8_length(s, n);

    if (found)
        snprintf(out, 12, "\\%c", names[found - special]);
    else if (c == 0)
        snprintf(out, 12, "\\0");
    else if (length == 0)
        snprintf(out, 12, "\\x%02x", c);
    else if (c < 0x20 || c == 0x7f)
        snprintf(out, 12, "\\u{%x}", c);
    else
        snprintf(out, 12, "%.*s", (int)length, s);
    return length ? length : 1;
}

const char *quote(char *out, size_t size, const char *s, size_t n)
{
    size_t used = 0;
    char one[12];

    out[used++] = '"';
    for (size_t i = 0; i < n;) {
        size_t length;

        i += escape(one, s + i, n - i);
        length = strlen(one);
        if (length > size - 2 - used)
            break;
        memcpy(out + used, one, length);
        used += length;
    }
    out[used++] = '"';
    out[used] = '\0';
    return out;
}

const char *plain(char *out, size_t size, const char *s, size_t n)
{
    size_t used = 0;

    for (size_t i = 0, length; i < n; i += length) {
        const char *c = s[i] ? s + i : "\xc0\x80";
        size_t shown;

        length = utf8_length(s + i, n - i);
        if (length == 0)
            length = 1;
        shown = s[i] ? length : 2;
        if (shown > size - 1 - used)
            break;
        memcpy(out + used, c, shown);
        used += shown;
    }
    out[used] = '\0';
    return out;
}
