#include "mmds/value.h"

#include <stdint.h>
#include <string.h>

/* Behind the string that begins at s. */
static const char *string_end(const char *s)
{
    for (s++; *s != '"'; s++)
        s += *s == '\\';
    return s + 1;
}

/* Behind the value that begins at s. */
static const char *value_end(const char *s)
{
    unsigned depth = 0;

    if (*s != '"' && *s != '[' && *s != '{')
        return s + strcspn(s, ",]}");
    do {
        if (*s == '"') {
            s = string_end(s);
            continue;
        }
        depth += *s == '[' || *s == '{';
        depth -= *s == ']' || *s == '}';
        s++;
    } while (depth > 0);
    return s;
}

struct mmds_value mmds_value(const char *text)
{
    return (struct mmds_value){ text, (size_t)(value_end(text) - text) };
}

enum mmds_type mmds_type(struct mmds_value v)
{
    switch (*v.at) {
    case 'n': return MMDS_NULL;
    case 't':
    case 'f': return MMDS_BOOL;
    case '"': return MMDS_STRING;
    case '[': return MMDS_ARRAY;
    case '{': return MMDS_OBJECT;
    default: return MMDS_NUMBER;
    }
}

/* The next byte that a string stands for, with *s behind it; -1 at the closing quote. */
static int next_byte(const char **s)
{
    static const char names[] = "bfnrt", bytes[] = "\b\f\n\r\t";
    const char *c = *s, *name;

    if (*c == '"')
        return -1;
    if (*c != '\\') {
        *s = c + 1;
        return (unsigned char)*c;
    }
    if (c[1] == 'u') { /* \u0000 to \u001f */
        *s = c + 6;
        return (c[4] - '0') << 4 | (c[5] >= 'a' ? c[5] - 'a' + 10 : c[5] - '0');
    }
    *s = c + 2;
    name = strchr(names, c[1]);
    return name ? bytes[name - names] : c[1];
}

int mmds_compare(const char *a, const char *b)
{
    int x, y;

    a++;
    b++;
    do {
        x = next_byte(&a);
        y = next_byte(&b);
    } while (x == y && x >= 0);
    return x - y;
}

size_t mmds_unescape(struct mmds_value v, char *out)
{
    const char *s = v.at + 1;
    size_t n = 0;

    for (int byte; (byte = next_byte(&s)) >= 0;)
        out[n++] = (char)byte;
    return n;
}

bool mmds_next_member(struct mmds_value object, struct mmds_member *m)
{
    const char *key = m->key.at ? m->value.at + m->value.length + 1 : object.at + 1;

    if (key >= object.at + object.length || *key != '"')
        return false;
    m->key = (struct mmds_value){ key, (size_t)(string_end(key) - key) };
    m->value = mmds_value(key + m->key.length + 1);
    return true;
}

static bool can_be_asked_for(const char *key)
{
    bool is_empty = true;
    int byte;

    for (key++; (byte = next_byte(&key)) >= 0; is_empty = false)
        if (byte <= ' ' || byte == 0x7f)
            return false;
    return !is_empty;
}

bool mmds_has_unreachable_key(const char *text)
{
    while (*text) {
        const char *string = text;

        if (*text != '"') {
            text++;
            continue;
        }
        text = string_end(text);
        if (*text == ':' && !can_be_asked_for(string))
            return true;
    }
    return false;
}

/* A piece of a pointer, between slashes. */
struct step {
    const char *at, *end;
};

/* The next byte that a step stands for; -1 at its end. */
static int next_step_byte(struct step *s)
{
    if (s->at == s->end)
        return -1;
    if (*s->at == '~' && s->end - s->at > 1 && (s->at[1] == '0' || s->at[1] == '1')) {
        s->at += 2;
        return s->at[-1] == '0' ? '~' : '/';
    }
    return (unsigned char)*s->at++;
}

static bool key_is(const char *key, struct step s)
{
    int x, y;

    key++;
    do {
        x = next_byte(&key);
        y = next_step_byte(&s);
    } while (x == y && x >= 0);
    return x == y;
}

/* The value of an object's member; NULL: it has none of that name. */
static const char *member_of(const char *object, struct step s)
{
    for (const char *at = object + 1; *at == '"'; at++) {
        const char *value = string_end(at) + 1;

        if (key_is(at, s))
            return value;
        at = value_end(value);
        if (*at == '}')
            break;
    }
    return NULL;
}

/* A decimal number without a sign or leading zeros. */
static bool parse_index(struct step s, size_t *index)
{
    if (s.at == s.end || (*s.at == '0' && s.end - s.at > 1))
        return false;
    for (*index = 0; s.at < s.end; s.at++) {
        if (*s.at < '0' || *s.at > '9' || *index > (SIZE_MAX - 9) / 10)
            return false;
        *index = *index * 10 + (size_t)(*s.at - '0');
    }
    return true;
}

static const char *element_of(const char *array, struct step s)
{
    const char *at = array + 1;
    size_t index;

    if (!parse_index(s, &index) || *at == ']')
        return NULL;
    for (; index > 0; index--) {
        at = value_end(at);
        if (*at++ == ']')
            return NULL;
    }
    return at;
}

bool mmds_find(struct mmds_value root, const char *pointer, size_t n, struct mmds_value *out)
{
    const char *at = root.at, *end = pointer + n;

    while (pointer < end) {
        struct step s = { pointer + 1, NULL };

        if (*pointer != '/')
            return false;
        s.end = memchr(s.at, '/', (size_t)(end - s.at));
        if (!s.end)
            s.end = end;
        pointer = s.end;
        at = *at == '{' ? member_of(at, s) : *at == '[' ? element_of(at, s) : NULL;
        if (!at)
            return false;
    }
    *out = mmds_value(at);
    return true;
}
