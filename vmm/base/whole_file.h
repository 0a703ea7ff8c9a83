/*
 * A file that is read to its end: of a pipe or a FIFO, until its writers have closed it.
 */
#pragma once

#include <sys/types.h>

#include "vmm/base/error.h"

/* Reads what there is, in as many pieces as it comes, and no more than there is room for. Waits
 * where the descriptor does. How many bytes, or -errno. */
must_check ssize_t whole_file_read(int fd, char *bytes, size_t room);
