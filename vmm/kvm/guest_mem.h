/*
 * Guest memory: the only place where a guest-physical address becomes a pointer.
 *
 * Owns the host mappings behind the guest's RAM, which no core dump contains. Any thread may read
 * and write; the set of regions is fixed between gmem_init() or gmem_init_file() and gmem_fini().
 * The guest writes this memory at any moment, so each value is copied out once, checked and then
 * used. gmem_host_() alone yields a pointer, for the two that need one: virtio/queue.c and the
 * memory slots in kvm.c (a test greps for it). vmm/snapshot hands whole regions to the kernel,
 * while nobody writes.
 *
 * Layout: RAM from 0 up to the 32-bit MMIO gap (3 GiB to 4 GiB), then from 4 GiB, with a second gap
 * from 256 GiB to 512 GiB.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm/base/config.h"
#include "vmm/base/error.h"
#include "vmm/kvm/layout.h"

#define GMEM_PAGE_BYTES     4096u
#define GMEM_REGIONS_MAX    3
#define GMEM_FILE_PARTS_MAX 16

struct gmem_region {
    uint64_t start; /* guest-physical */
    uint64_t bytes; /* a multiple of the page size */
    uint8_t *host;
};

/* What gmem_load_file() has mapped, in whole pages. */
struct gmem_file_part {
    gpa_t at;
    uint64_t bytes;
    int fd; /* as it was given: says which file it was, and may be closed */
};

struct guest_mem {
    struct gmem_region regions[GMEM_REGIONS_MAX]; /* ascending, disjoint */
    unsigned region_count;
    bool hugetlb; /* backed by 2 MiB pages: files can't be mapped over them */
    struct gmem_file_part file_parts[GMEM_FILE_PARTS_MAX];
    unsigned file_part_count;
    uint64_t *written; /* see gmem_track_writes(); NULL: nobody asks */
};

/* Maps mem_size_mib of zeroed memory, allocated when it is touched; huge pages of 2 MiB are
 * reserved at once, since one that lacks later is a SIGBUS. Fails, leaving *m empty, where the size
 * can't be addressed or the host refuses. The mappings are named "guest memory" where the host has
 * names for them (Linux 5.17). */
must_check int gmem_init(struct guest_mem *m, uint64_t mem_size_mib, enum huge_pages huge_pages,
                         struct error *e);

/* The same, but memory holds what the file does from offset on, its regions one behind the other; a
 * longer file will do. It is mapped copy-on-write: the file is never written to, and what no guest
 * writes is shared with the page cache, so the file must neither change nor shrink (a page that is
 * gone is a SIGBUS). Of a file of 2 MiB pages (hugetlbfs) memory has such pages, too, and what its
 * copies of them will need is reserved. fd stays the caller's and may be closed. */
must_check int gmem_init_file(struct guest_mem *m, uint64_t mem_size_mib, int fd, uint64_t offset,
                              struct error *e);

/* Puts what a file has in the place of the pages [page, page + count), counted as gmem_page_of()
 * does, each from its place in the file: mapped copy-on-write as there; or copied, also where the
 * host has no more mappings. Before anybody else knows the memory. */
must_check int gmem_lay_pages(struct guest_mem *m, uint64_t page, uint64_t count, int fd, bool maps,
                              struct error *e);

/* Asks for transparent huge pages, where the host's policy leaves that to who asks: of a file, they
 * are those that its file system has (tmpfs). */
void gmem_want_huge_pages(const struct guest_mem *m);

/* Unmaps all. Every thread that may touch guest memory has ended. Works on a zeroed object. */
void gmem_fini(struct guest_mem *m);

/* True where [at, at + n) lies within one region. n may be 0. */
bool gmem_has(const struct guest_mem *m, gpa_t at, uint64_t n);

/* Copies n bytes between the guest and a host object; -EFAULT, touching nothing, unless the whole
 * range lies within one region. Use the gmem_get/gmem_put forms for objects of known size. */
must_check int gmem_read_(const struct guest_mem *m, gpa_t at, void *dst, size_t n);
must_check int gmem_write_(struct guest_mem *m, gpa_t at, const void *src, size_t n);
#define gmem_get(m, at, obj) gmem_read_((m), (at), (obj), sizeof(*(obj)))
#define gmem_put(m, at, obj) gmem_write_((m), (at), (obj), sizeof(*(obj)))

/* Pages of all regions, and the number of one when they are counted one region behind the other (at
 * is in one of them). */
uint64_t gmem_pages(const struct guest_mem *m);
uint64_t gmem_page_of(const struct guest_mem *m, gpa_t at);

/* The other way. With the host's address, and how many pages follow in the same region, this one
 * included: for vmm/snapshot, which hands them to the kernel. */
gpa_t gmem_page_at(const struct guest_mem *m, uint64_t page);
uint8_t *gmem_page_host_(const struct guest_mem *m, uint64_t page, uint64_t *count);

/* From now on each page that the VMM itself writes, or lets the kernel write for a device, is
 * marked in m->written: one bit a page, in their order. The guest's own writes are KVM's to know.
 * While no other thread runs that writes guest memory; until gmem_forget_writes(), likewise, or
 * gmem_fini(). 0 or -ENOMEM. */
must_check int gmem_track_writes(struct guest_mem *m);
void gmem_forget_writes(struct guest_mem *m);

/* Adds the marks to words, one bit a page, and takes them away. */
void gmem_take_written(struct guest_mem *m, uint64_t *words);

/* The number of the page that has a host address, which is in guest memory: as gmem_page_of(). */
uint64_t gmem_page_of_(const struct guest_mem *m, uint64_t address);

/* Marks the pages of n bytes at a host address (of gmem_host_()), which was written: who copies
 * memory while its guest runs may have taken a page before. Who writes by such an address says so.
 * Any thread. */
void gmem_mark_(const struct guest_mem *m, const void *host, size_t n);
static inline void gmem_wrote_(const struct guest_mem *m, const void *host, size_t n)
{
    if (__builtin_expect(m->written != NULL, 0))
        gmem_mark_(m, host, n);
}

/* Reads a byte of guest memory, as the one thing that it is about: its page is there afterwards. */
void gmem_touch(const struct guest_mem *m, gpa_t at);

/* How long a regular file or a block device is; 0: it is neither, or empty. Moves the offset of a
 * block device. */
uint64_t gmem_file_bytes(int fd);

/* Makes guest memory at [at, at + n) hold n bytes of fd from offset, in the cheapest way: whole
 * pages are mapped copy-on-write from the page cache where address and offset agree modulo the page
 * size (so that a start copies little, and what no guest writes is shared), and listed in
 * file_parts while there is room; the rest is read. fd stays the caller's. Fails where the range
 * leaves RAM or the file is shorter.
 *
 * While a part is mapped, a change of the file changes what the guest has not written there, and a
 * file that is truncated takes the guest's own pages with it: it ends by SIGBUS. */
must_check int gmem_load_file(struct guest_mem *m, gpa_t at, int fd, uint64_t offset, uint64_t n,
                              struct error *e);

/* Gives the pages that [at, at + n) is in to the guest where they still are a file's, as its first
 * write would. The guest may run. False where they stay as they are: no RAM, or a host that can't
 * (before Linux 5.14). */
must_check bool gmem_make_own(const struct guest_mem *m, gpa_t at, uint64_t n);

/* Memory to put in the place of a file's pages: n bytes, whole pages, allocated. NULL: the host has
 * none. */
void *gmem_spare(uint64_t n);

/* Copies [at, at + n), whole pages of RAM that are mapped from a file, to a spare of that size and
 * puts this in their place: from then on they have nothing to do with the file. Nobody touches
 * guest memory meanwhile. Takes the spare. 0 or -errno. */
must_check int gmem_part_from_file(struct guest_mem *m, gpa_t at, uint64_t n, void *spare);

/* Host address of [at, at + n), or NULL unless it lies within one region and n > 0. The contents
 * change under the caller's feet. */
void *gmem_host_(const struct guest_mem *m, gpa_t at, uint64_t n);
