/* Files that a test makes for itself, and what was written to them. */
#pragma once

#include <criterion/criterion.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define NEW_FILE "/tmp/mayfly-test-XXXXXX"

/* An empty file; its name goes to `path`, of sizeof(NEW_FILE) bytes. The test closes and unlinks
 * it. */
static inline int new_file(char *path)
{
    int fd;

    strcpy(path, NEW_FILE);
    fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    return fd;
}

/* What a file holds, as far as it fits. */
static inline char *read_text(const char *path, char *text, size_t room)
{
    int fd = open(path, O_RDONLY);
    ssize_t n = read(fd, text, room - 1);

    close(fd);
    text[n < 0 ? 0 : n] = '\0';
    return text;
}
