/*
 * JSON coming in, read in the order of the document. The punctuation of objects and arrays is
 * walked here, so that an error has a place; strings and numbers that look like JSON's are read by
 * json-c, which is laxer. Clients match the words of Firecracker's errors, which are those of
 * the serde_json crate: "TEXT at line L column C", C counting bytes from 1.
 *
 * Errors come back as -1 with a filled struct error.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "vmm/base/error.h"

#define JSON_DEPTH_MAX 127 /* of a value that is walked through or skipped */

struct json_object;
struct json_tokener;

struct json_reader {
    const char *text; /* borrowed; text[length] is a NUL */
    size_t length, at;
    struct json_tokener *tokener;
};

/* length at most INT_MAX - 1. */
void json_reader_init(struct json_reader *r, const char *text, size_t length);
void json_reader_fini(struct json_reader *r);

/* Skips blanks; the byte that follows, or -1 at the end. */
int json_peek(struct json_reader *r);

/* Fails with the place of byte `at`, counted from 1: r->at for what has been read, r->at + 1 for
 * what comes next. */
int json_fail(const struct json_reader *r, struct error *e, size_t at, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* Fails for what comes next: "EOF while parsing a value" at the end, else "expected value". */
int json_fail_value(struct json_reader *r, struct error *e);

/* Fails with "invalid type: WHAT, expected EXPECTED" for the value that comes next. */
int json_fail_type(struct json_reader *r, const char *expected, struct error *e);

/* Fails with "invalid KIND: WHAT, expected EXPECTED" for a value just read. */
int json_fail_scalar(const struct json_reader *r, const char *kind, struct json_object *value,
                     const char *expected, struct error *e);

/* Reads a null (as NULL), boolean, number or string. Integers beyond 64 bits, and minus zero, come
 * as doubles. The caller puts the object. */
int json_take(struct json_reader *r, struct json_object **value, struct error *e);

/* A walk through a value of any kind; a zeroed one stands before it. */
struct json_walk {
    struct json_object *value; /* of JSON_KEY and JSON_SCALAR, and else NULL: the caller puts it */
    unsigned depth;
    bool is_map[JSON_DEPTH_MAX];
    bool is_first, is_value_read;
};

enum json_step { JSON_DONE, JSON_KEY, JSON_SCALAR, JSON_ARRAY, JSON_OBJECT, JSON_LEAVE };

/* The next step of a walk: it enters an array or object, meets a key or a value in it, leaves it,
 * is done behind the value; or -1. */
int json_walk(struct json_reader *r, struct json_walk *w, struct error *e);

/* Reads any value and forgets it. */
int json_skip(struct json_reader *r, struct error *e);

/* Steps to the next key of an object, whose '{' has been read; *first is true before the first
 * step. 1 with the key (the caller puts it) and the reader behind it, 0 before the '}', or -1. */
int json_next_key(struct json_reader *r, bool *first, struct json_object **key, struct error *e);

/* Reads the colon that must follow a key. */
int json_colon(struct json_reader *r, struct error *e);

/* Steps to the next element of an array, whose '[' has been read. 1, 0 before the ']', or -1. */
int json_next_element(struct json_reader *r, bool *first, struct error *e);

/* Reads the ']' that must end an array after its last expected element. */
int json_end_array(struct json_reader *r, struct error *e);

/* Reads `closer` if it comes next. serde does before it says what an object or array lacks. */
void json_close(struct json_reader *r, char closer);

/* Nothing but blanks may be left. */
int json_end(struct json_reader *r, struct error *e);
