/*
 * Whether the file of an image can change under the guest that it is mapped for.
 *
 * A start maps kernel and initrd, so until a guest has copies of its own (copy_ahead.h) it reads
 * what is in the file now. That is well where the file can't change, or where whoever would change
 * it has to wait:
 *
 *   IMAGE_FIXED   it lies on a file system that can't write at all (squashfs, EROFS, cramfs, ISO
 *                 9660), it is immutable (chattr +i), has fs-verity, or is a memfd sealed against
 *                 writing and shrinking. A mount that is read-only proves nothing: the same file
 *                 may be written by another one, and the mount may change
 *   IMAGE_LEASED  we hold a read lease (fcntl(2), F_SETLEASE): whoever opens it for writing or
 *                 truncates it waits until the lease is given back, at most as long as
 *                 /proc/sys/fs/lease-break-time says. To be had for one's own files, or with
 *                 CAP_LEASE; not while somebody has the file open for writing; trusted on file
 *                 systems of which this kernel sees every writer, and for files that have a name
 *                 (who has made a memfd does not count as a writer)
 *   IMAGE_LOOSE   anything else
 *
 * All functions are for the main thread.
 */
#pragma once

#include <stdint.h>

enum image_guard { IMAGE_NONE, IMAGE_LOOSE, IMAGE_LEASED, IMAGE_FIXED };

struct image_source {
    int fd; /* borrowed */
    enum image_guard guard;
    uint64_t bytes; /* how long it was then; 0 for what has no length */
};

/* What the file is, leased if it can be. SIGIO, which tells that a lease is wanted back, is blocked
 * from then on; threads that are started later inherit that. */
struct image_source image_guard_take(int fd);

/* Gives back the lease, if there is one. */
void image_guard_give_back(int fd);
