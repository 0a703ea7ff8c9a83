/*
 * Errors meant for a person or an API client.
 *
 * Two idioms, one boundary: mechanism (guest memory, virtqueues, the loop) returns 0 or -errno;
 * whatever a client can cause takes a last `struct error *` and returns what fail() returns, which
 * is always -1. The text names the object, the rule and the value given. It is logged or sent where
 * it is consumed, never where it is made. Text is cut at the buffer's size, never overrun.
 *
 * Also here: the cleanup attributes for file descriptors and heap blocks, since they exist to make
 * `return fail(...)` safe at any point of a function.
 */
#pragma once

#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

#include "vmm/base/bug.h"

#define must_check __attribute__((warn_unused_result))

enum err_kind {
    ERR_INVALID = 1, /* the request is wrong */
    ERR_STATE,       /* the request is right, but not now */
    ERR_TOO_LARGE,   /* over a stated limit */
    ERR_HOST,        /* the host refused: os_errno says why */
};

struct error {
    enum err_kind kind;
    int os_errno; /* 0 when the operating system had no part in it */
    char msg[1024];
};

/* Fills *e and returns -1. */
int fail(struct error *e, enum err_kind kind, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* What an errno (positive) means, in the words of musl's strerror(): a released Firecracker is
 * linked with musl, and its clients match some of them. Never allocates, translates or reads a
 * file: any thread, and under any filter. */
const char *os_error_text(int os_errno);

/* As fail(ERR_HOST), with ": TEXT (os error N)" of os_errno (positive) added. Returns -1. */
int fail_os(struct error *e, int os_errno, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* As fail_os(), with " PATH" behind it, as Firecracker does for some files: clients match what is
 * before. An empty path adds nothing. */
int fail_path(struct error *e, int os_errno, const char *path, const char *what);

/* Puts "PREFIX: " before the text of a filled *e, keeping its kind. Returns -1. */
int fail_within(struct error *e, const char *prefix);

static inline void close_fdp(int *fd)
{
    if (*fd >= 0)
        close(*fd);
}
static inline void free_ptrp(void *p)
{
    free(*(void **)p);
}
#define autofd   __attribute__((cleanup(close_fdp))) /* always initialise: autofd int fd = -1; */
#define autofree __attribute__((cleanup(free_ptrp))) /* always initialise, NULL will do */

/* Gives up ownership of an autofd. */
static inline int take_fd(int *fd)
{
    int taken = *fd;

    *fd = -1;
    return taken;
}

/* The struct of type T whose member m is *p. */
#define owner_of(p, T, m) ((T *)((char *)(1 ? (p) : &((T *)0)->m) - offsetof(T, m)))
