/*
 * Puts what a Diff holds into the memory file of the snapshot that it was made after.
 */
#pragma once

#include "vmm/base/error.h"

/* Writes the pages of the file at diff_path, which are those that are no holes, into the one at
 * memory_path, and marks that as the Diff's snapshot: its state file loads it from then on. The
 * files have the same size; no VM is mapped from the one that is written.
 * Where this is cut off, the file is marked so that no VM loads it; the same again completes it. */
must_check int snapshot_rebase(const char *memory_path, const char *diff_path, struct error *e);
