/*
 * Folds the layers of overlay drives in the background (virtio/block_overlay.h): a piece of each
 * drive in a millisecond, while the machine runs. A drive gets there by snapshots that froze its
 * overlay, and has no layers afterwards.
 *
 * All functions are for the loop's thread.
 */
#pragma once

#include <stdint.h>

#include "virtio/block.h"
#include "vmm/base/config.h"

/* More than so many layers are folded. */
#define FOLD_LAYERS 4u

struct fold {
    struct loop_source timer; /* fd -1: nothing is folded now */
    struct loop *loop;
    struct block *blocks; /* of the drives; all borrowed */
    struct drive_configs *drives;
    uint32_t due; /* drives, a bit each */
    bool is_held;
};

/* After a try to freeze overlays of the machine's drives: sees which of them are to be folded.
 * Their configuration changes when they are. A drive whose host fails is left as it is, with a line
 * in the log, until the next time. */
void fold_begin(struct fold *f, struct drive_configs *drives);

/* The machine is held, or not any more. */
void fold_hold(struct fold *f);
void fold_release(struct fold *f);
