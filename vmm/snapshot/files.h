/*
 * The two files of a snapshot: its state, and guest memory.
 *
 * They are a pair: at whatever moment the process dies, and with sync the host, a load finds the
 * old pair, the new one, or refuses. Both are written beside their names (PATH.mayfly-new, which a
 * create that is ended leaves to the next) and then renamed, memory first, which is marked with the
 * name of its snapshot (mark.h). A file without a mark, as a copy is, is loaded, and the log says
 * so.
 *
 * In place, and meanwhile marked as unfinished, is written
 *
 *   a Diff   into the memory file of what it is a diff to; into no other one
 *   any      where nothing can be renamed: what is mounted, a symbolic link's target, a directory
 *            in which nothing may be made, a name to which nothing can be added
 *
 * For this nobody else may hold a lock (flock(2)) on the file: whoever is mapped from it does.
 * Where a file system has no marks, a Diff makes a copy of the file and is written into that; and
 * the old state is taken away before the old memory, so that a pair that is cut off lacks one.
 *
 * Main thread. Everything blocks for as long as the disk does.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm/base/error.h"
#include "vmm/snapshot/memory.h"

#define SNAPSHOT_STATE_BYTES 10000000u /* the most that a state file may have */

struct snapshot_files {
    const char *state_path, *memory_path;
    bool sync; /* both are on the disk, and their names, before the call returns */
};

/* Writes both. state: the whole content of its file, which holds the name (of
 * uuid_make()). On failure the files under both names are what they were, or refused by a
 * load where memory had to be written in place; guest memory and what is known of it are unchanged,
 * so that another try is as good. The text of an error begins with what could not be done: "Cannot
 * perform open on the snapshot backing file: ...". */
must_check int snapshot_files_write(const struct snapshot_files *f, struct snapshot_memory *m,
                                    enum snapshot_kind kind, const struct uuid *name,
                                    const void *state, size_t bytes, struct error *e);

/*
 * The same in steps, for a guest that runs meanwhile. The paths are borrowed until it is closed.
 */
struct snapshot_pair;

/* Opens both and makes memory's ready for its pages. NULL on failure. */
must_check struct snapshot_pair *snapshot_pair_begin(const struct snapshot_files *f,
                                                     struct snapshot_memory *m,
                                                     enum snapshot_kind kind,
                                                     const struct uuid *name, struct error *e);

/* Writes those of the pages [from, to) that are in the set; is_first: also, from where they are,
 * those that are not. */
must_check int snapshot_pair_write(struct snapshot_pair *p, const struct page_set *set,
                                   bool is_first, uint64_t from, uint64_t to, struct error *e);

/* Of what was written of those pages, and before: has them on their way to the disk, and waits for
 * those that were on it before. */
must_check int snapshot_pair_push(struct snapshot_pair *p, uint64_t from, uint64_t to,
                                  struct error *e);

/* What was written of memory is on the disk. */
must_check int snapshot_pair_sync(struct snapshot_pair *p, struct error *e);

/* Writes pages that were copied (snapshot_pages_take()). */
must_check int snapshot_pair_put(struct snapshot_pair *p, const struct page_set *set,
                                 uint8_t *bytes, struct error *e);

/* All is written but the state. */
must_check int snapshot_pair_end(struct snapshot_pair *p, const void *state, size_t bytes,
                                 struct error *e);

/* Frees it; one that did not come to its end has failed. */
void snapshot_pair_close(struct snapshot_pair *p);

/* Reads a state file whole into memory that the caller frees. A regular file of 8 bytes to
 * SNAPSHOT_STATE_BYTES, else an error whose text begins with "Failed to open snapshot file: " or
 * "Failed to load snapshot state from file: ", or is "Snapshot size exceeds ...". */
must_check int snapshot_files_read_state(const char *path, uint8_t **state, size_t *bytes,
                                         struct error *e);
