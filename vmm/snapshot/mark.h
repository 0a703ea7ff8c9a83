/*
 * The mark of a memory file: which snapshot it is of.
 *
 * Memory's bytes are the guest's and nothing else, so it is an extended attribute, SNAPSHOT_MARK,
 * of ASCII text: the snapshot's UUID, a space, and "whole" (all of memory) or "layer on UUID" (what
 * has changed since that snapshot, and holes); then " merging" while pages are written into a file
 * that had others, or where that was cut off. cp and tar drop it, and some file systems have none.
 * Of a layer that an older version made, " on UUID" is missing.
 */
#pragma once

#include <stdbool.h>

#include "vmm/base/error.h"
#include "vmm/base/uuid.h"

#define SNAPSHOT_MARK "user.mayfly.snapshot"

struct snapshot_mark {
    bool is_there;
    bool is_legible; /* else what follows means nothing */
    bool is_whole, is_merging;
    struct uuid name;
    bool is_based;    /* a layer that says upon which */
    struct uuid base; /* snapshot */
};

/* Reads a file's. 0 or -errno. */
must_check int snapshot_mark_get(int fd, struct snapshot_mark *mark);

/* 0 or -errno; -EOPNOTSUPP: this file system has no marks. */
must_check int snapshot_mark_set(int fd, const struct snapshot_mark *mark);
