/*
 * Files with holes, as memory files are. Any thread. What is an int is 0 or -errno.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "vmm/base/error.h"

/* Whether a file's holes may be as small as a page of 4096 bytes. Where its file system has larger
 * blocks (tmpfs with huge pages, say), or tells of none (NFS), zeroes that nobody wrote pass for
 * data. */
bool sparse_has_pages(int fd);

/* Finds the next part of a file that is no hole, from *from on and before end, and puts it into
 * [*from, *to). 1; 0: there is none. */
must_check int sparse_find_data(int fd, off_t *from, off_t *to, off_t end);

/* Copies what is no hole of [offset, end) from one file to the same place of another. -EIO: the
 * file was made shorter meanwhile. */
must_check int sparse_copy(int from, int to, off_t offset, off_t end);
