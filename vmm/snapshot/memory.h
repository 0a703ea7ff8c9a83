/*
 * Which pages of guest memory a snapshot holds.
 *
 * For the main thread, while no guest and no device writes (the VM is paused and drained; passes.h
 * is for others). A page is known to have changed from KVM's dirty log together with the VMM's own
 * marks (gmem_track_writes()); without them, a page that the host has no memory for has never been
 * touched. Nothing here brings a page into memory but snapshot_memory_fetch().
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "vmm/base/error.h"
#include "vmm/base/uuid.h"
#include "vmm/kvm/guest_mem.h"
#include "vmm/kvm/kvm.h"
#include "vmm/snapshot/chain.h"
#include "vmm/snapshot/uffd.h"

enum snapshot_source {
    SNAPSHOT_SOURCE_BOOT, /* memory was zero, but for what a start loads */
    SNAPSHOT_SOURCE_FILE, /* mapped from a snapshot's memory file (gmem_init_file()) */
    SNAPSHOT_SOURCE_UFFD, /* a handler has what was not yet touched */
};

enum snapshot_kind { SNAPSHOT_FULL, SNAPSHOT_DIFF };

/* One bit a page, the regions one behind the other, as in a memory file. */
struct page_set {
    uint64_t *words;
    uint64_t pages; /* a multiple of 64: memory is in whole MiB */
};

bool page_set_has(const struct page_set *set, uint64_t page);

struct snapshot_memory {
    struct guest_mem *mem;
    const struct kvm *kvm;
    enum snapshot_source source;
    bool logs;     /* KVM's log and the VMM's marks are kept */
    bool forgets;  /* a snapshot empties them: a Diff is relative to the last one */
    bool is_whole; /* a Diff needs no other snapshot: a boot of which nothing is forgotten */
    struct snapshot_chain files; /* SOURCE_FILE: what it is mapped from */
    uint64_t *past;              /* pages that changed, and were then forgotten */
    struct uuid base;            /* what a Diff is relative to */
    struct uuid last;            /* the last one made or loaded: no older than base */
    struct uuid torn; /* one whose pages were not all written into a file that had others */
};

/* Whether KVM keeps a log (kvm_add_memory()'s track_dirty): where a client asks for it, and for
 * each restored VM, as it costs no more there: its pages are small and their first write faults
 * anyway. Not over huge pages, which KVM would map as small ones. */
bool snapshot_memory_logs(enum snapshot_source source, bool tracks, bool hugetlb);

/* For a VM whose memory is laid out, before anything is written there that a Diff must have (of a
 * restored one: anything). Takes the files (NULL but for SOURCE_FILE), also when it fails, and
 * leaves none in *files. base: the snapshot that was loaded; NULL for a boot. mem and kvm are
 * borrowed until snapshot_memory_close(). */
must_check int snapshot_memory_open(struct snapshot_memory *s, struct guest_mem *mem,
                                    const struct kvm *kvm, enum snapshot_source source, bool tracks,
                                    struct snapshot_chain *files, const struct uuid *base,
                                    struct error *e);

/* Has KVM's log kept, or no longer, for as long as somebody copies memory while its guest runs
 * (passes.h); the VMM's marks are the caller's (gmem_track_writes()). Does nothing where s->logs
 * says that both are kept anyway. */
must_check int snapshot_memory_watch(const struct snapshot_memory *s, bool on, struct error *e);

/* Gives all back, the files too. Works on a zeroed object. */
void snapshot_memory_close(struct snapshot_memory *s);

/* How long a memory file is. */
uint64_t snapshot_memory_bytes(const struct snapshot_memory *s);

/* Fills a set, whose words are the caller's to free: what a file of this kind has to hold that is
 * not in its base (SOURCE_FILE's Full: the file that memory is mapped from). */
must_check int snapshot_memory_pages(const struct snapshot_memory *s, enum snapshot_kind kind,
                                     struct page_set *set, struct error *e);

/* Fetches from a handler those of these pages that are missing, so that nobody has to wait for them
 * without an end. A Diff has some, too: of what a device was to write, and did not. */
must_check int snapshot_memory_fetch(const struct snapshot_memory *s, enum snapshot_kind kind,
                                     struct uffd *u, struct error *e);

/* The set has been written, for good, as the snapshot of that name: the next Diff is relative to it
 * where the client has asked for tracking. Whatever failed before this call, nothing is forgotten.
 */
void snapshot_memory_written(struct snapshot_memory *s, const struct page_set *set,
                             const struct uuid *name);

/* For passes.c: what a file of this kind holds. */
enum snapshot_content {
    SNAPSHOT_ALL,
    SNAPSHOT_PRESENT, /* what has ever been touched */
    SNAPSHOT_CHANGED, /* what has changed, and for a Full what had before */
};
enum snapshot_content snapshot_memory_content_(const struct snapshot_memory *s,
                                               enum snapshot_kind kind);

/* Adds those of the pages [from, to) that hold something. */
must_check int snapshot_memory_find_(const struct snapshot_memory *s, struct page_set *set,
                                     uint64_t from, uint64_t to, struct error *e);

/* For that and its test. may_be_swapped: what the host has no memory for may still have been
 * written to, and so each is looked at. 0 or -errno. */
must_check int snapshot_memory_present_(const struct guest_mem *mem, struct page_set *set,
                                        uint64_t from, uint64_t to, bool may_be_swapped);
