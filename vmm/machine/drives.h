/*
 * The drives that a client has configured, with the files they hold open.
 */
#pragma once

#include "virtio/block.h"
#include "vmm/base/config.h"

struct drives {
    struct drive {
        struct drive_config config;
        struct block_file file;
        struct block_async *async; /* NULL: the Sync engine */
    } * items;                     /* in attach order: the root drive first */
    unsigned count;
};

/* Closes all. Works on a zeroed object. */
void drives_fini(struct drives *list);

/* The drive of that id, or `count`. */
unsigned drives_find(const struct drives *list, const char *id);

/* Adds a drive, whose file is opened now, or puts it in the place of the one that has that id, and
 * takes over what *d holds. On failure (-1, with a text for the client) nothing has changed. */
must_check int drives_put(struct drives *list, struct drive_config *d, struct error *e);
