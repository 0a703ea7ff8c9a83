/*
 * A command line: `--name value` or `--flag`, nothing twice but where it says so, up to `--`. A row
 * of a table is one option, and leads to its place in a struct. Pure; the VMM and the jailer share
 * it.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm/base/error.h"

/* Turns the value of an option into what is at `place`. -1 with the reason. */
typedef int option_parse(const char *name, const char *text, void *place, struct error *e);

struct option {
    const char *name;
    /* What the help calls it, PATH if it is a file's, a|b if it is one of these; NULL: a flag, for
     * which a bool becomes true. */
    const char *value;
    size_t at;           /* the place in the struct (0: all of it); if alone, what names the row */
    option_parse *parse; /* NULL: a const char *, which is borrowed */
    enum {
        OPTION_REQUIRED = 1 << 0,
        OPTION_REPEATABLE = 1 << 1,
        OPTION_ALONE = 1 << 2, /* wins over all others (options_alone) */
    } rules;
    const char *help;
};

#define OPTIONS_MAX 32

struct options {
    const struct option *rows;
    unsigned count; /* at most OPTIONS_MAX */
};

/* A constant of that name, of the rows of a table. */
#define OPTIONS(name, table)                                                                       \
    _Static_assert(sizeof(table) / sizeof(*(table)) <= OPTIONS_MAX, "a bit for each");             \
    static const struct options name = { (table), sizeof(table) / sizeof(*(table)) }

/* The last row that stands alone and is asked for, `-h` meaning `--help`; NULL: none. */
const struct option *options_alone(const struct options *o, char **argv);

/* Whether all of argv is known, has the value that it needs, and is there once. */
must_check int options_check(const struct options *o, char **argv, struct error *e);

/* Fills a struct that holds the defaults from an argv that was checked. Returns what follows `--`,
 * or argv's end; NULL: a value is none. */
must_check char **options_take(const struct options *o, char **argv, void *object, struct error *e);

/* Reads a decimal number of at most `max`, for a row's parse(). -1, naming the option: it is none.
 */
must_check int option_number(const char *name, const char *text, uint64_t max, uint64_t *out,
                             struct error *e);

/* Prints a line a row, two blanks before the help: packaging/help_text.py reads it. */
void options_print(const struct options *o);
