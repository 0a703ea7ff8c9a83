/* UTF-8 as RFC 3629 has it: what the API and guests take and give. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Length of the well-formed character that begins the n bytes at s, 0 where there is none.
 * Surrogates, overlong forms and anything above U+10FFFF are not well-formed. */
static inline size_t utf8_length(const char *s, size_t n)
{
    static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
    const unsigned char *p = (const unsigned char *)s;
    size_t length = 4;
    uint32_t c;

    if (n == 0)
        return 0;
    if (p[0] < 0x80)
        return 1;
    if (p[0] >= 0xc2 && p[0] < 0xe0)
        length = 2;
    else if ((p[0] & 0xf0) == 0xe0)
        length = 3;
    else if (p[0] < 0xf0 || p[0] > 0xf4)
        return 0;
    if (length > n)
        return 0;
    c = p[0] & (0xffu >> (length + 1));
    for (size_t i = 1; i < length; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
        c = c << 6 | (p[i] & 0x3f);
    }
    return c < least[length] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000) ? 0 : length;
}

/* Whether all of the n bytes at s are well-formed. */
static inline bool utf8_is_all(const char *s, size_t n)
{
    for (size_t length; n > 0; s += length, n -= length) {
        length = utf8_length(s, n);
        if (length == 0)
            return false;
    }
    return true;
}
