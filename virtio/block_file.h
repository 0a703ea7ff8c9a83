/*
 * The host side of a disk: a raw file or a block device, opened when the drive is configured; or
 * one that is only read, under an overlay of the drive's own.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "virtio/block_layer.h"
#include "virtio/block_overlay.h"
#include "vmm/base/error.h"
#include "vmm/base/log.h"

#define BLOCK_ID_BYTES 20u /* virtio 1.2, section 5.2.6.1 */

#define BLOCK_FILE_WAITS (-1)

struct block_file {
    int fd;                        /* -1: none */
    struct block_overlay *overlay; /* takes the writes; NULL: the file itself does */
    char *path;                    /* owned; NULL with fd -1 */
    bool is_read_only;
    bool is_thin;              /* a file with holes: space that is given back was never promised */
    uint32_t unit_bytes;       /* what the file system reads and writes at once; a power of two */
    uint64_t sectors;          /* a trailing partial sector is out of reach */
    char id[BLOCK_ID_BYTES];   /* device and inode numbers: tells two disks apart; zero-padded */
    struct log_limit failures; /* of the host's */
    /* The flags of preadv2(2) and pwritev2(2) with which these wait for no disk; BLOCK_FILE_WAITS:
     * there are none. Who finds out that the file system has none (EOPNOTSUPP) says so here. */
    int read_flags, write_flags;
};

/* Opens path for reading, and for writing unless is_read_only. An empty file is a legal, empty
 * disk; what has no size (a FIFO, a terminal, a directory) is refused, and so is a device that the
 * host keeps from being written. */
must_check int block_file_open(struct block_file *f, const char *path, bool is_read_only,
                               struct error *e);

/* Puts the overlay of a drive over a file that was opened to be read, so that it can be written. On
 * failure (-1) the file is as it was. */
must_check int block_file_put_overlay(struct block_file *f, const struct drive_config *d,
                                      struct error *e);

/* Works on one whose fd is -1. */
void block_file_close(struct block_file *f);

/* The same, of one that was just opened: an overlay that was made for it goes again. */
void block_file_drop(struct block_file *f);

/* Where the first of n bytes at an offset of the disk are. */
static inline struct block_extent block_file_find(const struct block_file *f, bool is_read,
                                                  uint64_t offset, uint32_t n)
{
    if (__builtin_expect(f->overlay != NULL, false))
        return block_overlay_find(f->overlay, f->fd, is_read, offset, n);
    return (struct block_extent){ f->fd, 0, offset, n };
}

/* Makes what was written durable. 0 or -errno. */
must_check int block_file_sync(const struct block_file *f);

/* The mode of fallocate(2) that makes a range read as zeroes, and gives its space back where the
 * caller allows that and the file is thin. */
int block_file_zero_mode(const struct block_file *f, bool may_deallocate);

/* fallocate(2) within the disk, for as many bytes as block_file_find() says. 0 or -errno:
 * -EOPNOTSUPP where the file system has no such mode. */
must_check int block_file_fallocate(const struct block_extent *x, int mode);
