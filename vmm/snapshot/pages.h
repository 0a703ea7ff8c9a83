/*
 * Guest memory's way into a file, and from one file into another. Main thread; nothing writes guest
 * memory meanwhile.
 */
#pragma once

#include "vmm/snapshot/memory.h"

/* Makes a file hold the pages of a set, each at its place, from guest memory, and what lies between
 * from the file `base` where that is none of -1, whose holes stay holes. Between them nothing else
 * is written. 0 or -errno. */
must_check int snapshot_pages_write(int fd, const struct guest_mem *mem, const struct page_set *set,
                                    int base);

/* Copies what is no hole of [offset, end) from one file to the same place of another. 0 or -errno;
 * -EIO: the file was made shorter meanwhile. */
must_check int snapshot_pages_copy(int from, int to, off_t offset, off_t end);
