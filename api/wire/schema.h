/*
 * JSON bodies as tables. A struct schema describes a C struct: one row per member, with its JSON
 * name, its type, its place in the struct and what may be left out. The same table decodes requests
 * and the configuration file, words their errors as serde_json does, and encodes the answers.
 *
 * Decoding follows the document's order, so that the first error is the one Firecracker reports. As
 * serde does, it takes an array of values in the table's order for an object. It recurses as deep
 * as the tables are nested, never deeper.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api/wire/json_reader.h"
#include "api/wire/json_writer.h"
#include "vmm/base/error.h"

enum schema_type {
    SCHEMA_BOOL,   /* bool */
    SCHEMA_U8,     /* uint8_t */
    SCHEMA_U16,    /* uint16_t */
    SCHEMA_U32,    /* uint32_t */
    SCHEMA_U64,    /* uint64_t */
    SCHEMA_USIZE,  /* uint64_t, called usize in errors */
    SCHEMA_STRING, /* char *, a heap block; NULL: not given */
    SCHEMA_PATH,   /* the same, called a path string in errors */
    SCHEMA_PARSED, /* a string that `parse` turns into the member; shown as a SCHEMA_STRING */
    SCHEMA_TEXT,   /* char *: any value, as the text of JSON on one line; NULL: not given */
    SCHEMA_ENUM,   /* an enum of unsigned's size */
    SCHEMA_OBJECT, /* a struct inside, described by `object` */
    SCHEMA_LIST,   /* struct schema_list of structs described by `object`, or of `item`s */
    SCHEMA_ABSENT, /* only null or an empty array: not supported by this version */
};

enum schema_flag {
    SCHEMA_REQUIRED = 1 << 0,     /* must be given */
    SCHEMA_NULLABLE = 1 << 1,     /* null is the same as leaving it out */
    SCHEMA_DEFAULT = 1 << 2,      /* may be left out of an array, too */
    SCHEMA_ZERO_IS_NULL = 1 << 3, /* a number that is shown as null when it is 0 */
    SCHEMA_HIDDEN = 1 << 4,  /* is not shown when it is NULL, an object that says nothing, an enum
                                that is 0 or has no name, or a bool that was not given */
    SCHEMA_MAP = 1 << 5,     /* a SCHEMA_TEXT that must be an object of strings */
    SCHEMA_UNSHOWN = 1 << 6, /* is always shown as null */
    SCHEMA_NO_LIST = 1 << 7, /* a SCHEMA_ABSENT that is shown as an empty array */
    SCHEMA_DEPRECATED = 1 << 8, /* see schema_deprecated() */
    SCHEMA_NEW = 1 << 9, /* the Firecracker whose answers were recorded lacks it: no error lists it,
                            and an array of values has no place for it */
};

struct schema_variant {
    const char *name; /* NULL ends a table */
    unsigned value;
};

/* Stands for any `T *items; size_t count;` in a struct. */
struct schema_list {
    void *items; /* a heap block, owned; NULL when count is 0 */
    size_t count;
};

/* Turns a string into *member; -1 with the text of the error. */
typedef int schema_parse(const char *text, void *member, struct error *e);

struct schema_field {
    const char *name;
    enum schema_type type;
    unsigned flags;
    size_t at;                             /* offset of the member */
    size_t has_at;                         /* SCHEMA_HAS(): offset of a bool that says whether it
                                              was given and not null; 0: none */
    const struct schema_variant *variants; /* SCHEMA_ENUM */
    unsigned new_variants; /* of these the last so many are not listed, as with SCHEMA_NEW */
    const char *outdated, *instead;  /* SCHEMA_ENUM: a variant that is deprecated, and the one
                                        to use; NULL: none is */
    const struct schema *object;     /* SCHEMA_OBJECT, SCHEMA_LIST */
    const struct schema_field *item; /* SCHEMA_LIST without `object`; its `at` is 0 */
    size_t item_size;
    schema_parse *parse;  /* SCHEMA_PARSED */
    const char *expected; /* SCHEMA_PARSED: what errors call it; NULL: a string */
};

#define SCHEMA_HAS(T, m) (offsetof(T, m) + 1)

/* A row; what it needs beside name, type, flags and offset follows as designated initialisers. */
#define SCHEMA_FIELD(json, kind, rules, place, ...)                                                \
    {                                                                                              \
        .name = (json), .type = SCHEMA_##kind, .flags = (rules), .at = (place), ##__VA_ARGS__      \
    }

/* The rows of a schema. */
#define SCHEMA_FIELDS(table) .fields = (table), .count = sizeof(table) / sizeof(*(table))

struct schema {
    const char *name; /* as errors call it */
    size_t size;      /* of the struct */
    const struct schema_field *fields;
    unsigned count;     /* of fields, at most 32 */
    bool takes_unknown; /* members that are not in the table are ignored with a
                           warning in the log, not refused */
    /* What is to be said of a whole document; NULL: nothing. */
    int (*check)(const void *object, struct error *e);
    /* Whether a struct says nothing, and is shown as null; NULL: it always says something. */
    bool (*is_none)(const void *object);
};

/*
 * Decodes a whole document into *object, which holds the defaults and owns no strings. Strings are
 * copied to heap blocks; one with a NUL in it is refused. *given gets a bit for each row that was
 * given and not null, the first row's the lowest. On failure (-1) *object is what it was, or half
 * filled: free it as after success.
 */
must_check int schema_decode(const struct schema *s, void *object, const char *text, size_t length,
                             uint32_t *given, struct error *e);

/* The first deprecated member among those given, and of a bool only where it is true; NULL: there
 * is none. */
const char *schema_deprecated(const struct schema *s, const void *object, uint32_t given);

/* The first member that has its deprecated variant in *object, given or not; NULL: there is none.
 */
const struct schema_field *schema_outdated(const struct schema *s, const void *object);

/* Writes *object as a JSON object, members in the table's order. */
void schema_encode(const struct schema *s, const void *object, struct json_writer *w);
