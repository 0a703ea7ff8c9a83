#include "api/wire/json_writer.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/base/utf8.h"
#include "vmm/base/error.h"

void json_writer_fini(struct json_writer *w)
{
    free(w->text);
    *w = (struct json_writer){ 0 };
}

static void put_bytes(struct json_writer *w, const char *s, size_t n)
{
    if (n >= w->capacity - w->length) {
        w->capacity = (w->capacity + n) * 2 + 256;
        w->text = realloc(w->text, w->capacity);
        BUG_ON(!w->text);
    }
    memcpy(w->text + w->length, s, n);
    w->length += n;
    w->text[w->length] = '\0';
}

void json_put(struct json_writer *w, const char *text)
{
    put_bytes(w, text, strlen(text));
}

/* The character at s; returns its length in s. */
static size_t put_character(struct json_writer *w, const char *s, size_t n)
{
    static const char special[] = "\"\\\b\f\n\r\t", names[] = "\"\\bfnrt";
    const char *found = memchr(special, *s, sizeof(special) - 1);
    size_t length = utf8_length(s, n);
    char code[8];

    if (found) {
        put_bytes(w, "\\", 1);
        put_bytes(w, &names[found - special], 1);
    } else if ((unsigned char)*s < 0x20) {
        put_bytes(w, code, (size_t)snprintf(code, sizeof(code), "\\u%04x", (unsigned)*s));
    } else if (length > 0) {
        put_bytes(w, s, length);
    } else if (n >= 2 && memcmp(s, "\xc0\x80", 2) == 0) {
        json_put(w, "\\u0000");
        return 2;
    } else {
        json_put(w, "\xef\xbf\xbd");
    }
    return length ? length : 1;
}

void json_put_text(struct json_writer *w, const char *s, size_t n)
{
    put_bytes(w, "\"", 1);
    for (size_t i = 0; i < n;)
        i += put_character(w, s + i, n - i);
    put_bytes(w, "\"", 1);
}

void json_put_string(struct json_writer *w, const char *s)
{
    json_put_text(w, s, strlen(s));
}

void json_put_unsigned(struct json_writer *w, uint64_t value)
{
    char digits[24];

    put_bytes(w, digits, (size_t)snprintf(digits, sizeof(digits), "%" PRIu64, value));
}

const char *json_show_double(char *out, size_t size, double d)
{
    int digits = 0, exponent;
    char *e;

    do
        snprintf(out, size, "%.*e", digits, d);
    while (strtod(out, NULL) != d && ++digits < 17);
    e = strchr(out, 'e');
    exponent = e ? (int)strtol(e + 1, NULL, 10) : 0;
    if (exponent >= -5 && exponent < 16)
        snprintf(out, size, "%.*f", digits > exponent ? digits - exponent : 1, d);
    else if (e && e[2] == '0') /* printf's exponent has two digits at least */
        memmove(e + 2, e + 3, strlen(e + 2));
    return out;
}
