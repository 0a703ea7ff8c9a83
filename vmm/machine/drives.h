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

/* Opens the file at `path` for a drive, as its `is_read_only` and `discard` say, with its overlay;
 * the caller closes it. -1, with a text for the client. */
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

/* Refuses a snapshot whose files would take the place of what a drive with an overlay has. */
must_check int drives_check_create(const struct drive_configs *list, const struct drive *open,
                                   const struct snapshot_create_config *c, struct error *e);

/*
 * Freezes the overlays of the drives that are named, and lets these go on in new ones, at the paths
 * that are named; the configuration has them then. What is saved of it meanwhile has the layers,
 * and no overlay. The guest stands still, and nothing is under way. On failure (-1), as where
 * drives_check_create() says so, nothing has changed.
 *
 * drives_sync_overlays() makes all overlays durable, and layers of those that were frozen: it waits
 * for the disk. It comes before anybody can load the snapshot.
 *
 * drives_go_on() ends it, when the state is encoded, in the same turn of the event loop; or
 * drives_thaw(), before the guest runs: then nothing was frozen.
 */
must_check int drives_freeze(struct drive_configs *list, struct drive *open,
                             const struct snapshot_create_config *c, struct error *e);
must_check int drives_sync_overlays(const struct drive_configs *list, struct drive *open,
                                    struct error *e);
void drives_go_on(struct drive_configs *list);
void drives_thaw(struct drive_configs *list, struct drive *open);

/* Closes the first `count`, and frees the list. */
void drives_close(struct drive *open, size_t count);
