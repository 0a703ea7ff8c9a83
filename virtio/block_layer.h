/*
 * One file of an overlay, in the format of block_overlay.h: which sectors it has, and how that is
 * kept.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "vmm/base/error.h"
#include "vmm/base/uuid.h"

#define BLOCK_SECTOR_BYTES 512u

struct block_layer {
    int fd;
    char *path;
    bool was_made;   /* here */
    bool name_lasts; /* is on the disk, too */
    struct uuid name, below;
    uint64_t sectors, bitmap_bytes;
    uint64_t *present; /* a bit a sector */
    /* Which of these bits are not committed: a bit for some of them, and the range of those outside
     * of which none is. */
    uint64_t *dirty, dirty_from, dirty_end;
};

/* How a file is opened. */
struct block_layer_way {
    bool is_frozen; /* to be read as a layer; else to be written as the top */
    bool is_fresh;  /* a top that may have nothing yet */
    int base_fd;
    uint64_t sectors;
    struct uuid below;
};

/* Works on one whose fd is -1, and leaves such a one on failure (-1). A top that is missing or an
 * empty file is made. The text of an error begins with the path. */
must_check int block_layer_open(struct block_layer *l, const char *path,
                                const struct block_layer_way *way, struct error *e);
void block_layer_close(struct block_layer *l);

/* Gives a top another name: what was made above it before, and is above no sealed layer, fits no
 * more. */
must_check int block_layer_name(struct block_layer *l, struct error *e);

/* Whether the file at a path says of itself that it is not frozen. */
bool block_layer_is_top(const char *path);

/* The same, and removes the file if it was made here. */
void block_layer_drop(struct block_layer *l);

/* Where in the file the disk begins. */
uint64_t block_layer_data(const struct block_layer *l);

/* Whether it has a sector, and of how many of the n from there on the same is true. */
bool block_layer_has(const struct block_layer *l, uint64_t sector);
uint64_t block_layer_run(const struct block_layer *l, uint64_t sector, uint64_t n);

/* The sectors from `first` to before `end` are written. 0 or -errno. */
must_check int block_layer_add(struct block_layer *l, uint64_t first, uint64_t end);

/* Whether a flush has to commit something, and does it, when the data are durable: 0: there was
 * nothing; 1: it is to be made durable in its turn; or -errno. */
bool block_layer_is_dirty(const struct block_layer *l);
must_check int block_layer_commit(struct block_layer *l);

/* Makes what was written to the file durable. 0 or -errno. */
must_check int block_layer_sync(const struct block_layer *l);

/* Says in the file that it is frozen, with all of it durable, and shares it; or that it is not. */
must_check int block_layer_freeze(struct block_layer *l);
void block_layer_thaw(struct block_layer *l);

/* Says in the file that the base is right below it, and makes that durable. 0, or -errno: then it
 * says what it said, as far as the host lets it. */
must_check int block_layer_put_on_base(struct block_layer *l);

/* Gives the top n bytes at an offset of the disk that a layer has, or the first of them: how many.
 * What is a hole there is one here. At most INT_MAX bytes. -errno; -ENOSPC: less than a 16th of the
 * file system would be free. Nothing is told of. */
must_check int block_layer_copy(const struct block_layer *top, const struct block_layer *from,
                                uint64_t offset, uint32_t n);
