/*
 * Values in canonical JSON text, which this room has everything in: no blanks, an object's keys
 * sorted by the bytes that they stand for and each there once, strings escaped no more than JSON
 * wants, depth at most MMDS_DEPTH_MAX. api/canonical.h makes it of what a client sends, and nothing
 * here reads other text: so these functions can't fail, and neither allocate nor recurse.
 *
 * A value is a piece of the text, which it borrows.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#define MMDS_DEPTH_MAX 127 /* of arrays and objects in one another */

enum mmds_type { MMDS_NULL, MMDS_BOOL, MMDS_NUMBER, MMDS_STRING, MMDS_ARRAY, MMDS_OBJECT };

struct mmds_value {
    const char *at;
    size_t length;
};

/* A member of an object; a zeroed one is before the first. */
struct mmds_member {
    struct mmds_value key; /* a string */
    struct mmds_value value;
};

/* The value that a canonical text, or a piece of it, begins with. */
struct mmds_value mmds_value(const char *text);

enum mmds_type mmds_type(struct mmds_value v);

/* The value that a JSON pointer (RFC 6901; n bytes, no NUL needed behind them) leads to from
 * `root`; false: to none. */
bool mmds_find(struct mmds_value root, const char *pointer, size_t n, struct mmds_value *out);

/* Steps to the next member of an object, in the order of the keys; false behind the last. */
bool mmds_next_member(struct mmds_value object, struct mmds_member *m);

/* Writes the bytes that a string stands for, without a NUL behind them: fewer than v.length.
 * Returns how many; they may hold NULs. */
size_t mmds_unescape(struct mmds_value v, char *out);

/* Whether a canonical text has a key that no path of an HTTP request can name: an empty one, as
 * slashes that follow each other count as one, or one with a blank or a control character. */
bool mmds_has_unreachable_key(const char *text);

/* The order of two keys: <0, 0 or >0. */
int mmds_compare(const char *a, const char *b);
