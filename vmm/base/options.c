#include "vmm/base/options.h"

#include <stdio.h>
#include <string.h>

static const char *name_of(const char *argument)
{
    return strncmp(argument, "--", 2) == 0 ? argument + 2 : NULL;
}

static const struct option *find_option(const struct options *o, const char *argument)
{
    const char *name = name_of(argument);

    for (unsigned i = 0; name && i < o->count; i++)
        if (strcmp(o->rows[i].name, name) == 0)
            return &o->rows[i];
    return NULL;
}

static bool is_end(const char *argument)
{
    return !argument || strcmp(argument, "--") == 0;
}

const struct option *options_alone(const struct options *o, char **argv)
{
    for (const struct option *row = o->rows + o->count; row-- > o->rows;)
        for (char **at = argv; row->rules & OPTION_ALONE && !is_end(*at); at++)
            if (find_option(o, *at) == row ||
                (strcmp(*at, "-h") == 0 && strcmp(row->name, "help") == 0))
                return row;
    return NULL;
}

static int fail_unknown_option(const char *argument, struct error *e)
{
    return fail(e, ERR_INVALID,
                "Found argument '%s' which wasn't expected, or isn't valid in this context.",
                name_of(argument) ? name_of(argument) : argument);
}

/* An option at argv[0]: how many elements it takes, or -1. */
static int check_option(const struct options *o, char **argv, uint32_t *seen, struct error *e)
{
    const struct option *row = find_option(o, *argv);
    uint32_t bit;

    if (!row)
        return fail_unknown_option(*argv, e);
    bit = UINT32_C(1) << (row - o->rows);
    if (*seen & bit && !(row->rules & OPTION_REPEATABLE))
        return fail(e, ERR_INVALID, "The argument '%s' was provided more than once.", row->name);
    *seen |= bit;
    if (row->value && (!argv[1] || name_of(argv[1])))
        return fail(e, ERR_INVALID, "The argument '%s' requires a value, but none was supplied.",
                    row->name);
    return row->value ? 2 : 1;
}

int options_check(const struct options *o, char **argv, struct error *e)
{
    uint32_t seen = 0;

    for (int taken; !is_end(*argv); argv += taken) {
        taken = check_option(o, argv, &seen, e);
        if (taken < 0)
            return -1;
    }
    for (unsigned i = 0; i < o->count; i++)
        if (o->rows[i].rules & OPTION_REQUIRED && !(seen & UINT32_C(1) << i))
            return fail(e, ERR_INVALID, "Argument '%s' required, but not found.", o->rows[i].name);
    return 0;
}

static int take_option(const struct option *row, const char *value, void *object, struct error *e)
{
    void *place = (char *)object + row->at;

    if (row->parse)
        return row->parse(row->name, value, place, e);
    if (row->value)
        *(const char **)place = value;
    else
        *(bool *)place = true;
    return 0;
}

char **options_take(const struct options *o, char **argv, void *object, struct error *e)
{
    while (!is_end(*argv)) {
        const struct option *row = find_option(o, *argv);

        if (!row) {
            fail_unknown_option(*argv, e);
            return NULL;
        }
        if (take_option(row, argv[1], object, e) < 0)
            return NULL;
        argv += row->value ? 2 : 1;
    }
    return *argv ? argv + 1 : argv;
}

int option_number(const char *name, const char *text, uint64_t max, uint64_t *out, struct error *e)
{
    uint64_t value = 0;

    for (const char *at = text; *at || at == text; at++) {
        unsigned digit = (unsigned)(*at - '0');

        if (digit > 9)
            return fail(e, ERR_INVALID, "The argument '%s' must be a number, not '%s'.", name,
                        text);
        if (digit > max || value > (max - digit) / 10)
            return fail(e, ERR_INVALID, "The argument '%s' must be at most %llu, not %s.", name,
                        (unsigned long long)max, text);
        value = value * 10 + digit;
    }
    *out = value;
    return 0;
}

void options_print(const struct options *o)
{
    for (const struct option *row = o->rows; row < o->rows + o->count; row++)
        printf("  --%s%s%-*s  %s\n", row->name, row->value ? " " : "",
               (int)(31 - strlen(row->name) - !!row->value), row->value ? row->value : "",
               row->help);
}
