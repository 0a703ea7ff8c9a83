#include "api/wire/json_reader.h"

#include <json-c/json_object.h>
#include <json-c/json_tokener.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "api/wire/json_writer.h"
#include "api/wire/quote.h"
#include "vmm/base/utf8.h"

/* How much of a string a message repeats: the rest of the message must have room beside it. */
#define SHOWN_MAX 512

void json_reader_init(struct json_reader *r, const char *text, size_t length)
{
    BUG_ON(length >= INT_MAX);
    *r = (struct json_reader){ .text = text, .length = length };
    r->tokener = json_tokener_new();
    BUG_ON(!r->tokener);
}

void json_reader_fini(struct json_reader *r)
{
    json_tokener_free(r->tokener);
    r->tokener = NULL;
}

static bool is_json_blank(char c)
{
    return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

int json_peek(struct json_reader *r)
{
    while (r->at < r->length && is_json_blank(r->text[r->at]))
        r->at++;
    return r->at < r->length ? (unsigned char)r->text[r->at] : -1;
}

int json_fail(const struct json_reader *r, struct error *e, size_t at, const char *fmt, ...)
{
    char what[sizeof(e->msg)];
    size_t line = 1, column = 0;
    va_list ap;

    if (at > r->length)
        at = r->length;
    for (size_t i = 0; i < at; i++) {
        column++;
        if (r->text[i] == '\n') {
            line++;
            column = 0;
        }
    }
    va_start(ap, fmt);
    vsnprintf(what, sizeof(what), fmt, ap);
    va_end(ap);
    return fail(e, ERR_INVALID, "%s at line %zu column %zu", what, line, column);
}

int json_fail_value(struct json_reader *r, struct error *e)
{
    int c = json_peek(r);

    return json_fail(r, e, r->at + 1, c < 0 ? "EOF while parsing a value" : "expected value");
}

static void show_scalar(char *out, size_t size, struct json_object *value)
{
    char shown[SHOWN_MAX];

    switch (json_object_get_type(value)) {
    case json_type_null: snprintf(out, size, "null"); return;
    case json_type_boolean:
        snprintf(out, size, "boolean `%s`", json_object_get_boolean(value) ? "true" : "false");
        return;
    case json_type_double:
        json_show_double(shown, sizeof(shown), json_object_get_double(value));
        snprintf(out, size, "floating point `%s`", shown);
        return;
    case json_type_int: snprintf(out, size, "integer `%s`", json_object_get_string(value)); return;
    default:
        quote(shown, sizeof(shown), json_object_get_string(value),
              (size_t)json_object_get_string_len(value));
        snprintf(out, size, "string %s", shown);
    }
}

int json_fail_scalar(const struct json_reader *r, const char *kind, struct json_object *value,
                     const char *expected, struct error *e)
{
    char what[SHOWN_MAX + 32];

    show_scalar(what, sizeof(what), value);
    return json_fail(r, e, r->at, "invalid %s: %s, expected %s", kind, what, expected);
}

int json_fail_type(struct json_reader *r, const char *expected, struct error *e)
{
    int c = json_peek(r);
    struct json_object *value;

    if (c == '[' || c == '{')
        return json_fail(r, e, r->at, "invalid type: %s, expected %s",
                         c == '[' ? "sequence" : "map", expected);
    if (json_take(r, &value, e) < 0)
        return -1;
    json_fail_scalar(r, "type", value, expected, e);
    json_object_put(value);
    return -1;
}

static int take_word(struct json_reader *r, const char *word, struct error *e)
{
    for (; *word; word++) {
        if (r->at == r->length)
            return json_fail(r, e, r->at, "EOF while parsing a value");
        if (r->text[r->at++] != *word)
            return json_fail(r, e, r->at, "expected ident");
    }
    return 0;
}

/* The value that begins at r->at, by json-c. NULL with its error and the reader where it occurred,
 * else with the reader behind the value. */
static struct json_object *parse_value(struct json_reader *r, enum json_tokener_error *error)
{
    struct json_object *value;
    size_t used;

    json_tokener_reset(r->tokener);
    /* With the closing NUL, which ends a number. */
    value = json_tokener_parse_ex(r->tokener, r->text + r->at, (int)(r->length - r->at) + 1);
    *error = json_tokener_get_error(r->tokener);
    used = json_tokener_get_parse_end(r->tokener);
    if (value) /* json-c reads on over the blanks */
        while (is_json_blank(r->text[r->at + used - 1]))
            used--;
    r->at = used > r->length - r->at ? r->length : r->at + used; /* not behind the NUL */
    return value;
}

/* json-c turns half a surrogate pair into U+FFFD: what a client never sent must not be used. */
static bool lost_a_surrogate(const char *from, size_t n, const char *to, size_t to_n)
{
    return memmem(to, to_n, "\xef\xbf\xbd", 3) &&
           (memmem(from, n, "\\ud", 3) || memmem(from, n, "\\uD", 3));
}

/* The first control character in [from, r->at), or r->at: json-c lets them pass. */
static size_t control_at(const struct json_reader *r, size_t from)
{
    while (from < r->at && (unsigned char)r->text[from] >= 0x20)
        from++;
    return from;
}

static int take_string(struct json_reader *r, struct json_object **value, struct error *e)
{
    enum json_tokener_error error;
    size_t start = r->at, control, n;
    const char *s;

    *value = parse_value(r, &error);
    control = control_at(r, start);
    if (control < r->at || (r->at < r->length && !*value && (unsigned char)r->text[r->at] < 0x20)) {
        json_object_put(*value);
        return json_fail(r, e, control + 1,
                         "control character (\\u0000-\\u001F) found while parsing a string");
    }
    if (!*value)
        return r->at >= r->length ? json_fail(r, e, r->length, "EOF while parsing a string")
                                  : json_fail(r, e, r->at + 1, "invalid escape");
    s = json_object_get_string(*value);
    n = (size_t)json_object_get_string_len(*value);
    if (lost_a_surrogate(r->text + start, r->at - start, s, n)) {
        json_object_put(*value);
        return json_fail(r, e, r->at, "lone leading surrogate in hex escape");
    }
    if (!utf8_is_all(s, n)) {
        json_object_put(*value);
        return json_fail(r, e, r->at, "invalid unicode code point");
    }
    return 0;
}

static size_t digits_at(const struct json_reader *r, size_t at)
{
    size_t n = 0;

    while (at + n < r->length && r->text[at + n] >= '0' && r->text[at + n] <= '9')
        n++;
    return n;
}

/* Length of the number at r->at by the grammar of RFC 8259, or 0 with *at at the byte that is
 * wrong: json-c is laxer than that. */
static size_t number_length(const struct json_reader *r, size_t *at, bool *is_integer)
{
    size_t i = r->at + (r->text[r->at] == '-');
    size_t n = digits_at(r, i);

    *at = i;
    *is_integer = true;
    if (n == 0)
        return 0;
    if (r->text[i] == '0' && n > 1) {
        *at = i + 1;
        return 0;
    }
    i += n;
    if (i < r->length && r->text[i] == '.') {
        *at = ++i;
        *is_integer = false;
        n = digits_at(r, i);
        if (n == 0)
            return 0;
        i += n;
    }
    if (i < r->length && (r->text[i] == 'e' || r->text[i] == 'E')) {
        i++;
        *is_integer = false;
        if (i < r->length && (r->text[i] == '+' || r->text[i] == '-'))
            i++;
        *at = i;
        n = digits_at(r, i);
        if (n == 0)
            return 0;
        i += n;
    }
    return i - r->at;
}

static int take_number(struct json_reader *r, struct json_object **value, struct error *e)
{
    enum json_tokener_error error;
    size_t start = r->at, wrong, n;
    bool is_integer;
    double d;

    n = number_length(r, &wrong, &is_integer);
    if (n == 0)
        return wrong >= r->length ? json_fail(r, e, r->length, "EOF while parsing a value")
                                  : json_fail(r, e, wrong + 1, "invalid number");
    *value = parse_value(r, &error);
    r->at = start + n;
    /* json-c holds an integer beyond 64 bits to the nearest it can: then it prints as another. */
    if (is_integer && *value && strlen(json_object_get_string(*value)) == n &&
        memcmp(json_object_get_string(*value), r->text + start, n) == 0)
        return 0;
    json_object_put(*value);
    *value = NULL;
    d = strtod(r->text + start, NULL);
    if (isinf(d))
        return json_fail(r, e, r->at, "number out of range");
    *value = json_object_new_double(d);
    BUG_ON(!*value);
    return 0;
}

int json_take(struct json_reader *r, struct json_object **value, struct error *e)
{
    int c = json_peek(r);

    *value = NULL;
    switch (c) {
    case 'n': return take_word(r, "null", e);
    case 't':
    case 'f':
        if (take_word(r, c == 't' ? "true" : "false", e) < 0)
            return -1;
        *value = json_object_new_boolean(c == 't');
        BUG_ON(!*value);
        return 0;
    case '"': return take_string(r, value, e);
    case '-':
    case '0':
    case '1':
    case '2':
    case '3':
    case '4':
    case '5':
    case '6':
    case '7':
    case '8':
    case '9': return take_number(r, value, e);
    default: return json_fail_value(r, e);
    }
}

int json_next_key(struct json_reader *r, bool *first, struct json_object **key, struct error *e)
{
    int c = json_peek(r);

    if (c == '}')
        return 0;
    if (!*first) {
        if (c >= 0 && c != ',')
            return json_fail(r, e, r->at + 1, "expected `,` or `}`");
        if (c == ',') {
            r->at++;
            c = json_peek(r);
            if (c == '}')
                return json_fail(r, e, r->at + 1, "trailing comma");
            if (c < 0)
                return json_fail_value(r, e);
        }
    }
    *first = false;
    if (c < 0)
        return json_fail(r, e, r->at + 1, "EOF while parsing an object");
    if (c != '"')
        return json_fail(r, e, r->at + 1, "key must be a string");
    return json_take(r, key, e) < 0 ? -1 : 1;
}

int json_colon(struct json_reader *r, struct error *e)
{
    int c = json_peek(r);

    if (c != ':')
        return json_fail(r, e, r->at + 1, c < 0 ? "EOF while parsing an object" : "expected `:`");
    r->at++;
    return 0;
}

int json_next_element(struct json_reader *r, bool *first, struct error *e)
{
    int c = json_peek(r);

    if (c == ']')
        return 0;
    if (!*first && c >= 0) {
        if (c != ',')
            return json_fail(r, e, r->at + 1, "expected `,` or `]`");
        r->at++;
        c = json_peek(r);
        if (c == ']')
            return json_fail(r, e, r->at + 1, "trailing comma");
        if (c < 0)
            return json_fail_value(r, e);
    }
    *first = false;
    return c < 0 ? json_fail(r, e, r->at + 1, "EOF while parsing a list") : 1;
}

int json_end_array(struct json_reader *r, struct error *e)
{
    int c = json_peek(r);

    if (c < 0)
        return json_fail(r, e, r->at + 1, "EOF while parsing a list");
    if (c != ']')
        return json_fail(r, e, r->at + 1, "trailing characters");
    r->at++;
    return 0;
}

void json_close(struct json_reader *r, char closer)
{
    if (json_peek(r) == closer)
        r->at++;
}

int json_end(struct json_reader *r, struct error *e)
{
    return json_peek(r) < 0 ? 0 : json_fail(r, e, r->at + 1, "trailing characters");
}

/* The key and the colon of the next member: 1, 0 before the end, or -1. */
static int walk_key(struct json_reader *r, struct json_walk *w, struct error *e)
{
    int step = json_next_key(r, &w->is_first, &w->value, e);

    if (step <= 0 || json_colon(r, e) == 0)
        return step;
    json_object_put(w->value);
    return -1;
}

static int walk_value(struct json_reader *r, struct json_walk *w, struct error *e)
{
    int c = json_peek(r);

    if (c != '[' && c != '{')
        return json_take(r, &w->value, e) < 0 ? -1 : JSON_SCALAR;
    if (w->depth == JSON_DEPTH_MAX)
        return json_fail(r, e, r->at + 1, "recursion limit exceeded");
    r->at++;
    w->is_map[w->depth++] = c == '{';
    w->is_first = true;
    return c == '{' ? JSON_OBJECT : JSON_ARRAY;
}

/* Not by json-c, whose strict mode takes NaN and 'this' for values and keys. */
int json_walk(struct json_reader *r, struct json_walk *w, struct error *e)
{
    bool is_map = w->depth > 0 && w->is_map[w->depth - 1];
    int step;

    w->value = NULL;
    if (w->is_value_read) {
        if (w->depth == 0)
            return JSON_DONE;
        step = is_map ? walk_key(r, w, e) : json_next_element(r, &w->is_first, e);
        if (step < 0)
            return -1;
        if (step == 0) {
            r->at++;
            w->depth--;
            w->is_first = false;
            return JSON_LEAVE;
        }
        w->is_value_read = false;
        if (is_map)
            return JSON_KEY;
    }
    w->is_value_read = true;
    return walk_value(r, w, e);
}

int json_skip(struct json_reader *r, struct error *e)
{
    struct json_walk w = { 0 };
    int step;

    while ((step = json_walk(r, &w, e)) > 0)
        json_object_put(w.value);
    return step;
}
