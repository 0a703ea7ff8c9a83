/*
 * The drives of a configuration, and the files that they hold open. The two lists go together: what
 * is open for config->drives.items[i] is (*open)[i].
 */
#pragma once

#include "virtio/block.h"
#include "vmm/base/config.h"

struct drive {
    struct block_file file;
    struct block_async *async; /* NULL: the Sync engine */
};

/* Opens the file at `path` for a drive, as its `is_read_only` and `discard` say; the caller closes
 * it. -1, with a text for the client. */
must_check int drives_open_file(struct block_file *f, const struct drive_config *d,
                                const char *path, struct error *e);

/* The drive of that id, or `count`. */
unsigned drives_find(const struct drive_configs *list, const char *id);

/* Whether a drive may be beside those of the list that have another id. */
must_check int drives_check(const struct drive_configs *list, const struct drive_config *d,
                            struct error *e);

/* Adds a drive, whose file is opened now, or puts it in the place of the one that has that id, and
 * takes over what *d holds. On failure (-1, with a text for the client) nothing has changed. */
must_check int drives_put(struct drive_configs *list, struct drive **open, struct drive_config *d,
                          struct error *e);

/* Opens the files of all drives of a list: the caller's, to be given to drives_close(). On failure
 * (-1) nothing is open. */
must_check int drives_open(struct drive **open, const struct drive_configs *list, struct error *e);

/* Closes the first `count`, and frees the list. */
void drives_close(struct drive *open, size_t count);
