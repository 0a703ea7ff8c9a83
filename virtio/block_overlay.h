/*
 * An overlay: a sparse file that takes the writes to a disk whose base many share and none writes.
 * This text is the format's specification.
 *
 * Above the base there may be layers, which are overlays that were frozen, and above these is the
 * top, which alone is written. A sector is read from the highest of them that has it, else from the
 * base. No write copies anything up: what a file has is known by the sector. Discarded and zeroed
 * sectors are present, and holes.
 *
 * Numbers are little-endian. A file begins with a block of 4096 bytes, of which the rest is zero:
 *
 *    0   8  "MAYFLYO", NUL
 *    8   4  version of the format: 1
 *   12   4  1: it is frozen, and written no more; else 0
 *   16  16  UUID of this overlay: another one each time it is opened as a top
 *   32  16  UUID of the overlay below it; zero: the base
 *   48   8  sectors (of 512 bytes) of the disk: as many as the base has
 *   56   8  stamp of the host's boot in which it was last open, see below
 *
 * Then come two bitmaps, each a bit a sector, the lowest of a byte first, and zeroes up to a
 * multiple of 4096 bytes; then the disk's sectors. A sector is present if its bit is set in the
 * first bitmap, which is called committed; or in the second, the recent one, as long as the stamp
 * is that of the host's present boot.
 *
 * Why that holds whatever dies, and needs no journal:
 *
 *   A write to a sector that is present goes to its place, as in a plain file. One that is not is
 *   written to its place, where nobody looks, and only then gets its bit, in memory and in the
 *   recent bitmap. Only then the guest is told.
 *   A flush makes data durable, then writes the bits that were set before that to the committed
 *   bitmap, then makes these durable. No bit is taken away while the file is in use, so that a
 *   bitmap of which a part was written is as good as the old one and as the new one.
 *   When the VMM dies (kill -9), both bitmaps and the data are as they were last written: the page
 *   cache is the kernel's. Nothing is lost, whatever the cache type.
 *   When the host dies, the recent bitmap may have got to the disk before the data that it tells
 *   of. So it isn't looked at in another boot of the host, and the committed one alone counts: it
 *   has what was promised by a flush, and what was there when the VMM ended in order or made a
 *   snapshot.
 *   Storage that loses what it has cached while the host lives on (a disk that is reset, a file
 *   server that starts again) is as the host's death for what was not flushed; but nobody tells of
 *   it, and the stamp stays. A sector that the recent bitmap has and the storage has not is read as
 *   zeroes, or as an older version, until it is written again. What was flushed is there.
 *
 * The stamp is the difference between CLOCK_REALTIME and CLOCK_BOOTTIME in nanoseconds. As long as
 * a host runs it is the same to the nanosecond, but for when somebody sets the clock; a boot makes
 * it anew, from a clock that has gone on. (A cell has no /proc, and so no boot_id.) Where it
 * differs for no good reason, no more is lost than when the host dies.
 *
 * Layers are folded into the top by copying up what it lacks and one of them has: like writes of
 * the guest, with what it reads there anyway. When the top has all of it, and that is committed,
 * its header says that the base is right below it; whatever dies, before that the old stack holds,
 * and after it the top alone. The layers' files aren't touched: others may be above them.
 *
 * The file of a top is locked (flock(2)) for itself, those of layers are shared; who has one is
 * waited for, half a second, since a dead VMM's io_uring keeps it for a while. All functions are
 * called under the lock of the device whose disk it is, or before there is one.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "vmm/base/config.h"
#include "vmm/base/error.h"

#define BLOCK_LAYERS_MAX 8u

/* What can be read or written in one go: n bytes at an offset of a file. */
struct block_extent {
    int fd;
    unsigned file; /* 0: the base; 1 and so on: layers from the lowest, then the top */
    uint64_t offset;
    uint32_t bytes;
};

struct block_overlay;

/* Opens the overlay of a drive with its layers, above a base of so many sectors. A top that is
 * missing or an empty file is made, which takes no time and no space; of a drive that is frozen it
 * must be such a one, or have nothing yet. The highest layer need not be sealed where a top was
 * made above it: it is with the next flush. -1, with a text that names the file; nothing was made
 * then.
 */
must_check int block_overlay_open(struct block_overlay **out, const struct drive_config *d,
                                  int base_fd, uint64_t sectors, struct error *e);

/* Works on NULL. What was not committed stays in the recent bitmap. */
void block_overlay_close(struct block_overlay *o);

/* The same, and removes the top's file if it was made here: what it was made for failed. */
void block_overlay_drop(struct block_overlay *o);

/* Lets another one be opened on the same top, which takes its place, or not. */
void block_overlay_lend(const struct block_overlay *o);
void block_overlay_take_back(const struct block_overlay *o);

/* The top's. */
int block_overlay_fd(const struct block_overlay *o);

/* How many files there are beside the base, and one's descriptor: from 1 on. */
unsigned block_overlay_files(const struct block_overlay *o);
int block_overlay_file(const struct block_overlay *o, unsigned file);

/* Where the first of n bytes at an offset of the disk are to be read, or written, and how many of
 * them in one go: 1 or more. base_fd is the base's. */
struct block_extent block_overlay_find(const struct block_overlay *o, int base_fd, bool is_read,
                                       uint64_t offset, uint32_t n);

/* Tells that n bytes at an offset of the disk are in the top now: those of a sector of which the
 * first bytes were told of before make it present. 0, or -errno: then they may be or not. */
must_check int block_overlay_wrote(struct block_overlay *o, uint64_t offset, uint32_t n);

/* Whether a commit would write anything. */
bool block_overlay_is_dirty(const struct block_overlay *o);

/* The second step of a flush: the first has made durable all that was told of. 0: that was all; 1:
 * bits were written, and are to be made durable; or -errno. */
must_check int block_overlay_commit(struct block_overlay *o);

/* A whole flush. 0 or -errno. */
must_check int block_overlay_sync(struct block_overlay *o);

/*
 * Makes a layer of the top, and goes on in a new one, whose file is made; that takes no time. The
 * old file is not touched yet: with the next flush it is sealed, and a layer to others. Nothing may
 * be under way. -1, with a text: nothing has changed.
 */
must_check int block_overlay_freeze(struct block_overlay *o, const char *path, int base_fd,
                                    struct error *e);

/* Undoes the last block_overlay_freeze(), flushed or not. Nothing was told of since. */
void block_overlay_thaw(struct block_overlay *o);

/*
 * Folding. Each function does a bounded amount of work, but for block_overlay_fold_end(), a flush.
 *
 * block_overlay_fold_next() goes on with the search for what the top lacks; a freeze or a thaw
 * makes it begin anew. True: it is *n bytes at *offset of the disk, and block_overlay_fold_copy()
 * copies them at once, or as many as it can; no write to them may be under way, and no flush may
 * be in its first step. The bytes copied, or -errno.
 *
 * When block_overlay_is_folded() says that the top has all, block_overlay_fold_end() commits that
 * and writes the header. Nothing may be under way. 0 or -errno, and it is as it was. From then on
 * the top is the only file; the others stay open until block_overlay_fold_close(), or until
 * block_overlay_fold_undo(), which has the stack again: it serves to go on with.
 */
bool block_overlay_fold_next(struct block_overlay *o, uint64_t *offset, uint32_t *n);
must_check int block_overlay_fold_copy(struct block_overlay *o, uint64_t offset, uint32_t n);
bool block_overlay_is_folded(const struct block_overlay *o);
must_check int block_overlay_fold_end(struct block_overlay *o);
void block_overlay_fold_close(struct block_overlay *o);
void block_overlay_fold_undo(struct block_overlay *o);
