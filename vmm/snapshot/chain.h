/*
 * The memory files that guest memory is mapped from: a whole one, and upon it layers, each with
 * what has changed since the snapshot of the file below (mark.h). What is data in a file hides what
 * is below, page by page; what is a hole shows it.
 *
 * Each descriptor holds a shared lock (flock(2)), by which no other VMM writes into the file: they
 * stay open for as long as the files are mapped. Main thread.
 */
#pragma once

#include "vmm/base/error.h"
#include "vmm/base/uuid.h"
#include "vmm/kvm/guest_mem.h"

#define SNAPSHOT_LAYERS_MAX 16

struct snapshot_chain {
    int fds[1 + SNAPSHOT_LAYERS_MAX]; /* the whole one first */
    unsigned count;                   /* 0: memory is mapped from no file */
};

/* Opens them, at most all that there is room for, oldest first: regular files of at least so many
 * bytes, whole to their last page, each with a mark or none. By their marks the first is a whole
 * one, each other one a layer upon the one before, and the last is of the snapshot of that name. On
 * failure (-1) none is open. */
must_check int snapshot_chain_open(struct snapshot_chain *c, const char *const *paths,
                                   unsigned count, const struct uuid *name, uint64_t bytes,
                                   struct error *e);

/* The descriptor of the file that has the page at an offset: the highest in which it is data. */
int snapshot_chain_file(const struct snapshot_chain *c, off_t offset);

/* Closes them. Works on a zeroed object. */
void snapshot_chain_close(struct snapshot_chain *c);

/* Makes *mem of them (gmem_init_file()). Where there are so many pieces that the host would run out
 * of mappings, small ones are copied instead. */
must_check int snapshot_chain_map(const struct snapshot_chain *c, struct guest_mem *mem,
                                  uint64_t mem_size_mib, struct error *e);
