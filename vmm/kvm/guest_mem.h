/*
 * Guest memory: the only place where a guest-physical address becomes a pointer.
 *
 * Owns the host mappings behind the guest's RAM, which no core dump contains. Any thread may read
 * and write; the set of regions is fixed between gmem_init() or gmem_init_file() and gmem_fini().
 * The guest writes this memory at any moment, so each value is copied out once, checked and then
 * used. gmem_host_() alone yields a pointer, for the two that need one: virtio/queue.c and the
 * memory slots in kvm.c (a test greps for it).
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

#define GMEM_PAGE_BYTES  4096u
#define GMEM_REGIONS_MAX 3

struct gmem_region {
    uint64_t start; /* guest-physical */
    uint64_t bytes; /* a multiple of the page size */
    uint8_t *host;
};

struct guest_mem {
    struct gmem_region regions[GMEM_REGIONS_MAX]; /* ascending, disjoint */
    unsigned region_count;
    bool hugetlb; /* backed by 2 MiB pages: files can't be mapped over them */
};

/* Maps mem_size_mib of zeroed, lazily allocated memory. Fails, leaving *m empty, where the size
 * can't be addressed or the host refuses. */
must_check int gmem_init(struct guest_mem *m, uint64_t mem_size_mib, enum huge_pages huge_pages,
                         struct error *e);

/* The same, but memory holds what the file does from offset on, its regions one behind the other; a
 * longer file will do. It is mapped copy-on-write: the file is never written to, and what no guest
 * writes is shared with the page cache, so the file must neither change nor shrink (a page that is
 * gone is a SIGBUS). Such memory has no huge pages; a caller that wants them reads the file into
 * memory of gmem_init(). fd stays the caller's and may be closed. */
must_check int gmem_init_file(struct guest_mem *m, uint64_t mem_size_mib, int fd, uint64_t offset,
                              struct error *e);

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

/* Makes guest memory at [at, at + n) hold n bytes of fd from offset, in the cheapest way: whole
 * pages are mapped copy-on-write from the page cache where address and offset agree modulo the page
 * size (so that a start copies little, and what no guest writes is shared), the rest is read. fd
 * stays the caller's. Fails where the range leaves RAM or the file is shorter. */
must_check int gmem_load_file(struct guest_mem *m, gpa_t at, int fd, uint64_t offset, uint64_t n,
                              struct error *e);

/* Gives the pages that [at, at + n) is in to the guest as its own where they still are a file's, as
 * its first write would. False where they stay as they are: no RAM, or a host that can't (before
 * Linux 5.14). */
must_check bool gmem_make_own(const struct guest_mem *m, gpa_t at, uint64_t n);

/* Host address of [at, at + n), or NULL unless it lies within one region and n > 0. The contents
 * change under the caller's feet. */
void *gmem_host_(const struct guest_mem *m, gpa_t at, uint64_t n);
