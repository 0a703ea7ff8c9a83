#include "api/wire/schema.h"

#include <json-c/json_object.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/wire/quote.h"
#include "vmm/base/log.h"

#define NAME_SHOWN_MAX 256
#define NAMES_MAX      32 /* of a struct's members, or an enum's variants */

static int decode_object(struct json_reader *r, const struct schema *s, void *object,
                         uint32_t *given, struct error *e);

/* "`a`", "`a` or `b`", "one of `a`, `b`, `c`". */
static void list_names(char *out, size_t size, unsigned n, const char *const names[])
{
    size_t used = n > 2 ? (size_t)snprintf(out, size, "one of ") : 0;

    for (unsigned i = 0; i < n && used < size; i++) {
        const char *before = i == 0 ? "" : n == 2 ? " or " : ", ";

        used += (size_t)snprintf(out + used, size - used, "%s`%s`", before, names[i]);
    }
}

static int fail_unknown_variant(const struct json_reader *r, const struct schema_field *f,
                                struct json_object *given, struct error *e)
{
    char expected[256], shown[NAME_SHOWN_MAX];
    const char *names[NAMES_MAX];
    unsigned n = 0;

    for (; n < NAMES_MAX && f->variants[n + f->new_variants].name; n++)
        names[n] = f->variants[n].name;
    list_names(expected, sizeof(expected), n, names);
    plain(shown, sizeof(shown), json_object_get_string(given),
          (size_t)json_object_get_string_len(given));
    return json_fail(r, e, r->at, "unknown variant `%s`, expected %s", shown, expected);
}

static bool string_is(struct json_object *value, const char *name)
{
    size_t n = (size_t)json_object_get_string_len(value);

    return n == strlen(name) && memcmp(json_object_get_string(value), name, n) == 0;
}

/* The name of a variant: a string. */
static int decode_variant(struct json_reader *r, const struct schema_field *f, unsigned *out,
                          struct error *e)
{
    struct json_object *name;
    int ret = -1;

    if (json_peek(r) != '"')
        return json_fail_type(r, "variant identifier", e);
    if (json_take(r, &name, e) < 0)
        return -1;
    for (const struct schema_variant *v = f->variants; v->name && ret < 0; v++)
        if (string_is(name, v->name)) {
            *out = v->value;
            ret = 0;
        }
    if (ret < 0)
        fail_unknown_variant(r, f, name, e);
    json_object_put(name);
    return ret;
}

/* "Name", or {"Name": null}, which serde takes for the same. */
static int decode_enum(struct json_reader *r, const struct schema_field *f, unsigned *out,
                       struct error *e)
{
    int c = json_peek(r);

    if (c == '"')
        return decode_variant(r, f, out, e);
    if (c != '{')
        return json_fail_value(r, e);
    r->at++;
    if (decode_variant(r, f, out, e) < 0 || json_colon(r, e) < 0)
        return -1;
    if (json_peek(r) != 'n')
        return json_fail_type(r, "unit", e);
    if (json_skip(r, e) < 0)
        return -1;
    c = json_peek(r);
    if (c != '}')
        return json_fail(r, e, r->at, c < 0 ? "EOF while parsing an object" : "expected value");
    r->at++;
    return 0;
}

static int decode_bool(struct json_reader *r, bool *out, struct error *e)
{
    int c = json_peek(r);
    struct json_object *value;

    if (c != 't' && c != 'f')
        return json_fail_type(r, "a boolean", e);
    if (json_take(r, &value, e) < 0)
        return -1;
    *out = json_object_get_boolean(value);
    json_object_put(value);
    return 0;
}

static int decode_unsigned(struct json_reader *r, uint64_t max, const char *type, uint64_t *out,
                           struct error *e)
{
    int c = json_peek(r);
    struct json_object *value;
    int ret = 0;

    if (c != '-' && (c < '0' || c > '9'))
        return json_fail_type(r, type, e);
    if (json_take(r, &value, e) < 0)
        return -1;
    *out = json_object_get_uint64(value);
    if (json_object_get_type(value) != json_type_int)
        ret = json_fail_scalar(r, "type", value, type, e);
    else if (json_object_get_int64(value) < 0 || *out > max)
        ret = json_fail_scalar(r, "value", value, type, e);
    json_object_put(value);
    return ret;
}

static int decode_string(struct json_reader *r, const struct schema_field *f, char **out,
                         struct error *e)
{
    const char *expected = f->type == SCHEMA_PATH ? "path string" : "a string";
    struct json_object *value;
    int ret = 0;

    if (json_peek(r) != '"')
        return json_fail_type(r, f->expected ? f->expected : expected, e);
    if (json_take(r, &value, e) < 0)
        return -1;
    if (strlen(json_object_get_string(value)) == (size_t)json_object_get_string_len(value)) {
        *out = strdup(json_object_get_string(value));
        BUG_ON(!*out);
    } else {
        ret = json_fail(r, e, r->at, "invalid value: a NUL character in `%s`", f->name);
    }
    json_object_put(value);
    return ret;
}

/* serde says where an error in a string's content is only after it has read on: past the end of the
 * object or array, if that ends here. */
static int decode_parsed(struct json_reader *r, const struct schema_field *f, void *member,
                         struct error *e)
{
    autofree char *text = NULL;
    char why[sizeof(e->msg)];

    if (decode_string(r, f, &text, e) < 0)
        return -1;
    if (f->parse(text, member, e) == 0)
        return 0;
    memcpy(why, e->msg, sizeof(why));
    json_close(r, json_peek(r) == ']' ? ']' : '}');
    return json_fail(r, e, r->at, "%.900s", why);
}

static int skip_strings(struct json_reader *r, struct error *e)
{
    struct json_object *key;
    bool first = true;
    int step;

    if (json_peek(r) != '{')
        return json_fail_type(r, "a map", e);
    r->at++;
    while ((step = json_next_key(r, &first, &key, e)) > 0) {
        json_object_put(key);
        if (json_colon(r, e) < 0)
            return -1;
        if (json_peek(r) != '"')
            return json_fail_type(r, "a string", e);
        if (json_skip(r, e) < 0)
            return -1;
    }
    json_close(r, '}');
    return step;
}

static int decode_text(struct json_reader *r, const struct schema_field *f, char **out,
                       struct error *e)
{
    size_t begin;

    json_peek(r);
    begin = r->at;
    if ((f->flags & SCHEMA_MAP ? skip_strings(r, e) : json_skip(r, e)) < 0)
        return -1;
    *out = strndup(r->text + begin, r->at - begin);
    BUG_ON(!*out);
    /* Blanks: a string can't hold these bytes. */
    for (char *at = *out; (at = strpbrk(at, "\n\r\t")); at++)
        *at = ' ';
    return 0;
}

/* NOLINTBEGIN(misc-no-recursion): as deep as the tables are nested, whatever the input */
static int decode_value(struct json_reader *r, const struct schema_field *f, void *member,
                        struct error *e);

/* Nested as deep as the tables are. */
static int decode_list(struct json_reader *r, const struct schema_field *f, struct schema_list *out,
                       struct error *e)
{
    size_t size = f->object ? f->object->size : f->item_size;
    bool first = true;
    uint32_t given;
    int step;

    if (json_peek(r) != '[')
        return json_fail_type(r, "a sequence", e);
    r->at++;
    while ((step = json_next_element(r, &first, e)) > 0) {
        char *item;

        out->items = reallocarray(out->items, out->count + 1, size);
        BUG_ON(!out->items);
        item = (char *)out->items + size * out->count++;
        memset(item, 0, size);
        if ((f->object ? decode_object(r, f->object, item, &given, e)
                       : decode_value(r, f->item, item, e)) < 0)
            return -1;
    }
    return step < 0 ? -1 : json_end_array(r, e);
}

static int decode_absent(struct json_reader *r, const struct schema_field *f, struct error *e)
{
    if (json_peek(r) == '[') {
        r->at++;
        if (json_peek(r) == ']')
            return json_end_array(r, e);
    }
    return json_fail(r, e, r->at, "`%s` is not supported by this version", f->name);
}

static int decode_value(struct json_reader *r, const struct schema_field *f, void *member,
                        struct error *e)
{
    uint64_t number;
    uint32_t given;

    switch (f->type) {
    case SCHEMA_BOOL: return decode_bool(r, member, e);
    case SCHEMA_U8:
        if (decode_unsigned(r, UINT8_MAX, "u8", &number, e) < 0)
            return -1;
        *(uint8_t *)member = (uint8_t)number;
        return 0;
    case SCHEMA_U16:
        if (decode_unsigned(r, UINT16_MAX, "u16", &number, e) < 0)
            return -1;
        *(uint16_t *)member = (uint16_t)number;
        return 0;
    case SCHEMA_U32:
        if (decode_unsigned(r, UINT32_MAX, "u32", &number, e) < 0)
            return -1;
        *(uint32_t *)member = (uint32_t)number;
        return 0;
    case SCHEMA_U64: return decode_unsigned(r, UINT64_MAX, "u64", member, e);
    case SCHEMA_USIZE: return decode_unsigned(r, UINT64_MAX, "usize", member, e);
    case SCHEMA_STRING:
    case SCHEMA_PATH: return decode_string(r, f, member, e);
    case SCHEMA_PARSED: return decode_parsed(r, f, member, e);
    case SCHEMA_TEXT: return decode_text(r, f, member, e);
    case SCHEMA_ENUM: return decode_enum(r, f, member, e);
    case SCHEMA_OBJECT: return decode_object(r, f->object, member, &given, e);
    case SCHEMA_LIST: return decode_list(r, f, member, e);
    case SCHEMA_ABSENT: return decode_absent(r, f, e);
    }
    BUG_ON(true);
    return -1;
}

static int decode_field(struct json_reader *r, const struct schema *s, unsigned i, void *object,
                        uint32_t *given, struct error *e)
{
    const struct schema_field *f = &s->fields[i];
    char *base = object;

    if (f->flags & SCHEMA_NULLABLE && json_peek(r) == 'n')
        return json_skip(r, e);
    if (decode_value(r, f, base + f->at, e) < 0)
        return -1;
    if (f->has_at)
        *(bool *)(void *)(base + f->has_at - 1) = true;
    *given |= UINT32_C(1) << i;
    return 0;
}

/* The members that an object may have, as errors list them. */
static void list_fields(char *out, size_t size, const struct schema *s)
{
    const char *names[NAMES_MAX];
    unsigned n = 0;

    for (unsigned i = 0; i < s->count; i++)
        if (!(s->fields[i].flags & SCHEMA_NEW))
            names[n++] = s->fields[i].name;
    list_names(out, size, n, names);
}

static int fail_unknown_field(struct json_reader *r, const struct schema *s,
                              struct json_object *key, struct error *e)
{
    char expected[512], shown[NAME_SHOWN_MAX];

    list_fields(expected, sizeof(expected), s);
    plain(shown, sizeof(shown), json_object_get_string(key),
          (size_t)json_object_get_string_len(key));
    json_close(r, '}');
    return json_fail(r, e, r->at, "unknown field `%s`, expected %s", shown, expected);
}

/* A client that mistypes a name where any is taken should find out why nothing came of it. */
static int skip_unknown_field(struct json_reader *r, const struct schema *s,
                              struct json_object *key, struct error *e)
{
    char expected[512], shown[NAME_SHOWN_MAX];

    if (json_colon(r, e) < 0 || json_skip(r, e) < 0)
        return -1;
    list_fields(expected, sizeof(expected), s);
    quote(shown, sizeof(shown), json_object_get_string(key),
          (size_t)json_object_get_string_len(key));
    log_warn("%s: unknown field %s is ignored, expected %s", s->name, shown, expected);
    return 0;
}

/* The member whose key has just been read. */
static int decode_member(struct json_reader *r, const struct schema *s, struct json_object *key,
                         uint32_t *seen, void *object, uint32_t *given, struct error *e)
{
    unsigned i = 0;

    while (i < s->count && !string_is(key, s->fields[i].name))
        i++;
    if (i == s->count)
        return s->takes_unknown ? skip_unknown_field(r, s, key, e)
                                : fail_unknown_field(r, s, key, e);
    if (*seen & 1u << i) {
        json_close(r, '}');
        return json_fail(r, e, r->at, "duplicate field `%s`", s->fields[i].name);
    }
    *seen |= 1u << i;
    return json_colon(r, e) < 0 ? -1 : decode_field(r, s, i, object, given, e);
}

static int decode_map(struct json_reader *r, const struct schema *s, void *object, uint32_t *given,
                      struct error *e)
{
    struct json_object *key;
    uint32_t seen = 0;
    bool first = true;
    int step;

    while ((step = json_next_key(r, &first, &key, e)) > 0) {
        int ret = decode_member(r, s, key, &seen, object, given, e);

        json_object_put(key);
        if (ret < 0)
            return -1;
    }
    if (step < 0)
        return -1;
    json_close(r, '}');
    for (unsigned i = 0; i < s->count; i++)
        if (s->fields[i].flags & SCHEMA_REQUIRED && !(seen & 1u << i))
            return json_fail(r, e, r->at, "missing field `%s`", s->fields[i].name);
    return 0;
}

/* The first field from `i` on that has a place in an array. */
static unsigned next_element(const struct schema *s, unsigned i)
{
    while (i < s->count && s->fields[i].flags & SCHEMA_NEW)
        i++;
    return i;
}

/* How many of the fields before `end` have one. */
static unsigned count_elements(const struct schema *s, unsigned end)
{
    unsigned n = 0;

    for (unsigned i = next_element(s, 0); i < end; i = next_element(s, i + 1))
        n++;
    return n;
}

static int decode_sequence(struct json_reader *r, const struct schema *s, void *object,
                           uint32_t *given, struct error *e)
{
    unsigned i = next_element(s, 0), n = count_elements(s, s->count);
    bool first = true;
    int step = 1;

    for (; i < s->count; i = next_element(s, i + 1)) {
        step = json_next_element(r, &first, e);
        if (step <= 0)
            break;
        if (decode_field(r, s, i, object, given, e) < 0)
            return -1;
    }
    if (step < 0)
        return -1;
    for (; i < s->count; i = next_element(s, i + 1))
        if (!(s->fields[i].flags & SCHEMA_DEFAULT)) {
            json_close(r, ']');
            return json_fail(r, e, r->at, "invalid length %u, expected struct %s with %u element%s",
                             count_elements(s, i), s->name, n, n == 1 ? "" : "s");
        }
    return json_end_array(r, e);
}

static int decode_object(struct json_reader *r, const struct schema *s, void *object,
                         uint32_t *given, struct error *e)
{
    int c = json_peek(r);
    char expected[64];

    *given = 0;
    if (c < 0)
        return json_fail_value(r, e);
    if (c != '{' && c != '[') {
        snprintf(expected, sizeof(expected), "struct %s", s->name);
        return json_fail_type(r, expected, e);
    }
    r->at++;
    return c == '{' ? decode_map(r, s, object, given, e) : decode_sequence(r, s, object, given, e);
}

int schema_decode(const struct schema *s, void *object, const char *text, size_t length,
                  uint32_t *given, struct error *e)
{
    struct json_reader r;
    int ret;

    json_reader_init(&r, text, length);
    ret = decode_object(&r, s, object, given, e);
    if (ret == 0)
        ret = json_end(&r, e);
    if (ret == 0 && s->check)
        ret = s->check(object, e);
    json_reader_fini(&r);
    return ret;
}

const char *schema_deprecated(const struct schema *s, const void *object, uint32_t given)
{
    for (unsigned i = 0; i < s->count; i++) {
        const struct schema_field *f = &s->fields[i];

        if (given & UINT32_C(1) << i && f->flags & SCHEMA_DEPRECATED &&
            (f->type != SCHEMA_BOOL || *((const bool *)object + f->at)))
            return f->name;
    }
    return NULL;
}

/* NULL: it has none. */
static const char *name_of_variant(const struct schema_variant *v, unsigned value)
{
    while (v->name && v->value != value)
        v++;
    return v->name;
}

const struct schema_field *schema_outdated(const struct schema *s, const void *object)
{
    for (const struct schema_field *f = s->fields; f < s->fields + s->count; f++) {
        const void *member = (const char *)object + f->at;

        if (f->outdated &&
            strcmp(name_of_variant(f->variants, *(const unsigned *)member), f->outdated) == 0)
            return f;
    }
    return NULL;
}

static void encode_string(const struct schema_field *f, const char *s, struct json_writer *w)
{
    if (!s && f->flags & SCHEMA_NULLABLE)
        json_put(w, "null");
    else
        json_put_string(w, s ? s : "");
}

static void encode_number(const struct schema_field *f, uint64_t value, struct json_writer *w)
{
    if (value == 0 && f->flags & SCHEMA_ZERO_IS_NULL)
        json_put(w, "null");
    else
        json_put_unsigned(w, value);
}

static void encode_value(const struct schema_field *f, const void *member, struct json_writer *w);

static void encode_list(const struct schema_field *f, const struct schema_list *list,
                        struct json_writer *w)
{
    size_t size = f->object ? f->object->size : f->item_size;

    json_put(w, "[");
    for (size_t i = 0; i < list->count; i++) {
        const char *item = (const char *)list->items + i * size;

        if (i > 0)
            json_put(w, ",");
        if (f->object)
            schema_encode(f->object, item, w);
        else
            encode_value(f->item, item, w);
    }
    json_put(w, "]");
}

static void encode_value(const struct schema_field *f, const void *member, struct json_writer *w)
{
    switch (f->type) {
    case SCHEMA_BOOL: json_put(w, *(const bool *)member ? "true" : "false"); return;
    case SCHEMA_U8: encode_number(f, *(const uint8_t *)member, w); return;
    case SCHEMA_U16: encode_number(f, *(const uint16_t *)member, w); return;
    case SCHEMA_U32: encode_number(f, *(const uint32_t *)member, w); return;
    case SCHEMA_U64:
    case SCHEMA_USIZE: encode_number(f, *(const uint64_t *)member, w); return;
    case SCHEMA_STRING:
    case SCHEMA_PARSED:
    case SCHEMA_PATH: encode_string(f, *(char *const *)member, w); return;
    case SCHEMA_ENUM:
        json_put_string(w, name_of_variant(f->variants, *(const unsigned *)member));
        return;
    case SCHEMA_OBJECT:
        if (f->object->is_none && f->object->is_none(member))
            json_put(w, "null");
        else
            schema_encode(f->object, member, w);
        return;
    case SCHEMA_LIST: encode_list(f, member, w); return;
    case SCHEMA_ABSENT: json_put(w, f->flags & SCHEMA_NO_LIST ? "[]" : "null"); return;
    case SCHEMA_TEXT: break; /* nothing of these is ever shown */
    }
    BUG_ON(true);
}

static bool was_given(const struct schema_field *f, const char *base)
{
    return !f->has_at || *(const bool *)(const void *)(base + f->has_at - 1);
}

static bool is_hidden(const struct schema_field *f, const char *base)
{
    const void *member = base + f->at;

    if (!(f->flags & SCHEMA_HIDDEN))
        return false;
    if (f->type == SCHEMA_BOOL)
        return !was_given(f, base);
    if (f->type == SCHEMA_OBJECT)
        return f->object->is_none(member);
    if (f->type != SCHEMA_ENUM)
        return !*(char *const *)member;
    return *(const unsigned *)member == 0 ||
           !name_of_variant(f->variants, *(const unsigned *)member);
}

void schema_encode(const struct schema *s, const void *object, struct json_writer *w)
{
    const char *base = object;
    const char *separator = "";

    json_put(w, "{");
    for (unsigned i = 0; i < s->count; i++) {
        const struct schema_field *f = &s->fields[i];

        if (is_hidden(f, base))
            continue;
        json_put(w, separator);
        json_put_string(w, f->name);
        json_put(w, ":");
        if (f->flags & SCHEMA_UNSHOWN || !was_given(f, base))
            json_put(w, "null");
        else
            encode_value(f, base + f->at, w);
        separator = ",";
    }
    json_put(w, "}");
}
/* NOLINTEND(misc-no-recursion) */
