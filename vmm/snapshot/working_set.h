/*
 * The pages of a snapshot that its guest touches soon after a load: recorded once (recorder.h),
 * brought in ahead of the guest at later loads (prefetch.h). This text is the specification of the
 * file.
 *
 * It belongs to one snapshot, and names it. Numbers are little-endian:
 *
 *    0   8  "MAYFLYW", NUL
 *    8   2  format, 1: a reader takes no other
 *   10   6  zero
 *   16  16  UUID of the snapshot
 *   32   8  pages of guest memory
 *   40   4  runs of pages: 1 to 16384
 *   44  12  zero
 *   56   4  CRC-32C (RFC 3720) of the runs
 *   60   4  CRC-32C of the header before it
 *   64      the runs, ascending; none overlaps another:
 *            0  8  number of the first page, the regions one behind the other as in a memory file
 *            8  4  pages: 1 or more
 *           12  4  1: the guest wrote to them; 0: it only read them
 *
 * At the next multiple of 4096 follow the contents of all these pages, one behind the other, as
 * they are in the snapshot's memory. The file ends with them. They are there because a disk is far
 * quicker with one large read than with many small ones; they are trusted as a memory file is.
 *
 * A file is not trusted beyond that: whatever it says, a page of the guest's holds what the
 * snapshot's memory file has there, or what these contents have.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "vmm/base/error.h"
#include "vmm/base/uuid.h"
#include "vmm/snapshot/memory.h"

/* Each may become a mapping of its own, beside one that is left of what it lies in; a process may
 * have 65530 (vm.max_map_count). */
#define WORKING_SET_RUNS_MAX 16384u

struct working_set {
    struct working_set_run {
        uint64_t page;
        uint32_t count;
        bool is_written;
    } * runs;
    uint32_t count;
    uint64_t contents; /* where they begin in the file */
};

/* Lists the pages of `touched`; `written` says which of them were. Where these are more runs than
 * there may be, the pages between some are taken, too. -1: there is no page, or no memory. */
must_check int working_set_make(struct working_set *w, const struct page_set *touched,
                                const struct page_set *written, struct error *e);

/* How many pages it has. */
uint64_t working_set_pages(const struct working_set *w);

/* Writes a file for the snapshot of that name, with the contents that the pages have in `memory`.
 */
must_check int working_set_write(const struct working_set *w, int fd, const struct uuid *name,
                                 const struct guest_mem *memory, struct error *e);

/* Whether a file begins as a working set does. */
bool working_set_is_in(int fd);

/* Reads a file: of the snapshot of that name, whose memory has so many pages, and whole. */
must_check int working_set_read(struct working_set *w, int fd, const struct uuid *name,
                                uint64_t pages, struct error *e);

/* Frees the runs. Works on a zeroed object. */
void working_set_fini(struct working_set *w);
