/* A directory that a test makes for itself, and what is in it. */
#pragma once

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/unit/support/files.h"

static char directory[sizeof(NEW_FILE)];

static inline void make_directory(void)
{
    strcpy(directory, NEW_FILE);
    cr_assert_not_null(mkdtemp(directory));
}

static inline void remove_directory(void)
{
    char command[sizeof(directory) + 16];

    snprintf(command, sizeof(command), "rm -r %s", directory);
    (void)!system(command);
}

/* The path of a name in it; the last four stand. */
static inline const char *at(const char *name)
{
    static char paths[4][PATH_MAX];
    static unsigned next;
    char *path = paths[next++ % 4];

    cr_assert_lt(snprintf(path, PATH_MAX, "%s/%s", directory, name), PATH_MAX);
    return path;
}

/* A file that anybody may execute, with this text in the place of what it had. */
static inline void put(const char *name, const char *text)
{
    const ssize_t n = (ssize_t)strlen(text);
    int fd = open(at(name), O_WRONLY | O_CREAT | O_TRUNC, 0755);

    cr_assert(fd >= 0 && write(fd, text, (size_t)n) == n);
    close(fd);
}

/* What the file has, until the next call. */
static inline const char *get(const char *name)
{
    static char text[256];

    return read_text(at(name), text, sizeof(text));
}
