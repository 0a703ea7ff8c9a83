/*
 * Files of which all that is asked for is read or written, in however many pieces that takes. A
 * signal is no error.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "vmm/base/error.h"

/* Reads what there is to the file's end (of a pipe or a FIFO, until its writers have closed it),
 * and no more than there is room for. Waits where the descriptor does. How many bytes, or -errno.
 */
must_check ssize_t whole_file_read(int fd, char *bytes, size_t room);

/* All n bytes at an offset. 0 or -errno; -ENODATA: the file ends before. The bytes to be written
 * may change meanwhile. */
must_check int whole_file_read_at(int fd, void *bytes, size_t n, uint64_t offset);
must_check int whole_file_write_at(int fd, const void *bytes, size_t n, uint64_t offset);
