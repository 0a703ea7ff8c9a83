/*
 * One of a snapshot's two files while it is made: beside its name, to be renamed to that when it is
 * whole; or in place, where nothing can be renamed (files.h). Main thread.
 */
#pragma once

#include <stdbool.h>
#include <sys/stat.h>

#include "vmm/base/error.h"

/* How a file is opened that is written. */
#define SNAPSHOT_OPEN_FLAGS (O_RDWR | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)

/* Behind a path: what is written before it is renamed to that. One that a write was ended over is
 * the next one's. */
#define SNAPSHOT_TEMPORARY ".mayfly-new"

struct half {
    char *path;           /* of a link that leads to nothing: where it leads */
    const char *what;     /* in errors */
    bool can_be_replaced; /* by rename(2) */
    bool exists;
    bool is_made;    /* in place, where nothing was, and not yet whole */
    struct stat old; /* of what is there */
    int old_fd;      /* the same; -1: nothing is */
    char *temporary; /* NULL: written in place, or not yet made */
    int fd;          /* what is written; old_fd where that is in place */
};

/* "Cannot perform VERB on the WHAT backing file: ...". Returns -1. */
int half_fail(struct error *e, int os_errno, const char *verb, const struct half *h);

/* Looks at what there is, as whom it belongs to must allow it to be written; changes nothing.
 * half_close() also where it fails. */
must_check int half_open(struct half *h, const char *what, const char *path, struct error *e);

/* Closes it, and takes away what was not renamed, or made in place and is not whole. */
void half_close(struct half *h);

bool is_same_file(const struct stat *a, const struct stat *b);

/* Opens what is to be renamed, which may be there from before, and locks it; its length is the
 * caller's. The descriptor, or -errno: -EAGAIN: another process is writing it; -EBUSY: it is
 * somebody else's, and can't be renamed; -EEXIST: it is the other half (NULL: there is none). */
must_check int half_open_temporary(const char *path, const struct half *other);

/* Fails where what is under the name of one is the other one. */
must_check int half_check_other(const struct half *h, const struct half *other, struct error *e);

/* Opens what is to be written: a new file, or where nothing new can be beside the old one, but that
 * can be written itself, that. */
must_check int half_begin(struct half *h, const struct half *other, struct error *e);

/* Puts it, and the names in its directory, on the disk, where that is wanted. */
must_check int half_sync(const struct half *h, bool wanted, struct error *e);
must_check int half_sync_directory(const struct half *h, bool wanted, struct error *e);

/* Gives the new file its name. */
must_check int half_rename(struct half *h, struct error *e);
