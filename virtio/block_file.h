/*
 * The host side of a disk: a raw file or a block device, opened when the drive is configured.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "vmm/error.h"

#define BLOCK_SECTOR_BYTES 512u
#define BLOCK_ID_BYTES     20u /* virtio 1.2, section 5.2.6.1 */

struct block_file {
    int fd; /* -1: none */
    bool is_read_only;
    uint64_t sectors;        /* a trailing partial sector is out of reach */
    char id[BLOCK_ID_BYTES]; /* device and inode numbers: tells two disks apart; zero-padded */
};

/* Opens path for reading, and for writing unless is_read_only. An empty file is a legal, empty
 * disk; what has no size (a FIFO, a terminal, a directory) is refused. */
must_check int block_file_open(struct block_file *f, const char *path, bool is_read_only,
                               struct error *e);
void block_file_close(struct block_file *f);

/* Makes what was written durable. 0 or -errno. */
must_check int block_file_sync(const struct block_file *f);
