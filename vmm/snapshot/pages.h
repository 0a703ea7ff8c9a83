/*
 * Guest memory's way into a file. Main thread.
 */
#pragma once

#include "vmm/snapshot/memory.h"

/* Makes a file hold those of the pages [from, to) that are in a set, each at its place, from guest
 * memory, and what lies between from the files of `rest` (NULL: none), whose holes stay holes.
 * Nothing else is written. 0 or -errno. */
must_check int snapshot_pages_write(int fd, const struct guest_mem *mem, const struct page_set *set,
                                    const struct snapshot_chain *rest, uint64_t from, uint64_t to);

/* Copies the pages of a set, one behind the other, and writes what was copied, each at its place. 0
 * or -errno. */
void snapshot_pages_take(const struct guest_mem *mem, const struct page_set *set, uint8_t *bytes);
must_check int snapshot_pages_put(int fd, const struct page_set *set, uint8_t *bytes);
