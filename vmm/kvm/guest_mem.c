#include "vmm/kvm/guest_mem.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <linux/magic.h>
#include <linux/mman.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "vmm/base/whole_file.h"
#include "vmm/kvm/layout.h"

#define HUGE_2M_BYTES (2u << 20)

/* A mapping keeps the host from giving a huge page to the 2 MiB around it. Linux puts one page of
 * text on such a boundary of its own, frees the rest and overwrites it, page by page: that one is
 * read. */
#define MAP_MIN_BYTES (2u * GMEM_PAGE_BYTES)

#define LAZY        (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
#define RESERVED_2M (MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_2MB)

/* What each mapping of guest memory gets, also one that comes to lie over another: its name, which
 * a host that does not know it does without, and that no core dump has it. A dump is for whoever
 * mends the VMM, and no place for a tenant's secrets. 0 or -errno. */
static int claim_pages(void *host, uint64_t bytes)
{
    prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, host, bytes, "guest memory");
    return madvise(host, bytes, MADV_DONTDUMP) < 0 ? -errno : 0;
}

/* Lays a copy-on-write mapping of a file over guest memory. reserve: what its pages' copies will
 * need, now (a huge page that lacks later is a SIGBUS). 0 or -errno. */
static int map_over(void *host, uint64_t bytes, int fd, uint64_t offset, bool reserve)
{
    if (mmap(host, bytes, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_FIXED | (reserve ? 0 : MAP_NORESERVE), fd,
             (off_t)offset) == MAP_FAILED)
        return -errno;
    return claim_pages(host, bytes);
}

/* Guest-physical and host address agree modulo 2 MiB: only then can KVM map a huge page of the host
 * (hugetlb, or a transparent one where the host's policy gives them) as one in the guest. */
static int region_map(struct gmem_region *r, enum huge_pages huge_pages)
{
    const bool is_2m = huge_pages == HUGE_PAGES_2M;
    uint64_t slack = is_2m ? 0 : HUGE_2M_BYTES; /* a huge page is aligned as it is */
    uint64_t lead;
    uint8_t *host;

    host = mmap(NULL, r->bytes + slack, PROT_READ | PROT_WRITE, is_2m ? RESERVED_2M : LAZY, -1, 0);
    if (host == MAP_FAILED)
        return -errno;
    if (slack) {
        lead = -(uintptr_t)host & (HUGE_2M_BYTES - 1);
        if (lead)
            munmap(host, lead);
        host += lead;
        munmap(host + r->bytes, slack - lead);
    }
    if (huge_pages == HUGE_PAGES_TRANSPARENT)
        madvise(host, r->bytes, MADV_HUGEPAGE); /* a host without them still runs the VM */
    r->host = host;
    return claim_pages(host, r->bytes);
}

/* Cuts size_bytes of RAM into the ranges between the gaps. False: more than can be addressed. */
static bool lay_out(struct guest_mem *m, uint64_t size_bytes)
{
    static const struct {
        uint64_t start, end;
    } ranges[] = {
        { 0, LAYOUT_MMIO_GAP },
        { LAYOUT_ABOVE_4G, LAYOUT_GAP2_START },
        { LAYOUT_GAP2_END, UINT64_C(1) << 52 },
    };

    for (unsigned i = 0; i < sizeof(ranges) / sizeof(*ranges) && size_bytes; i++) {
        uint64_t room = ranges[i].end - ranges[i].start;
        uint64_t bytes = size_bytes < room ? size_bytes : room;

        m->regions[m->region_count++] =
            (struct gmem_region){ .start = ranges[i].start, .bytes = bytes };
        size_bytes -= bytes;
    }
    return size_bytes == 0;
}

/* How many of so many huge pages could be reserved now. By trying: a jail has no /sys to ask. */
static uint64_t huge_pages_free(uint64_t needed)
{
    uint64_t some = 0, too_many = needed;

    while (too_many - some > 1) {
        uint64_t pages = some + (too_many - some) / 2;
        void *p = mmap(NULL, pages * HUGE_2M_BYTES, PROT_READ | PROT_WRITE, RESERVED_2M, -1, 0);

        if (p == MAP_FAILED) {
            too_many = pages;
        } else {
            munmap(p, pages * HUGE_2M_BYTES);
            some = pages;
        }
    }
    return some;
}

static int fail_huge_pages(struct error *e, int os_errno, uint64_t needed)
{
    return fail(e, ERR_HOST,
                "Invalid Memory Configuration: Cannot create mmap region: %s (os error %d): %llu "
                "huge pages of 2 MiB are needed, %llu are free",
                os_error_text(os_errno), os_errno, (unsigned long long)needed,
                (unsigned long long)huge_pages_free(needed));
}

int gmem_init(struct guest_mem *m, uint64_t mem_size_mib, enum huge_pages huge_pages,
              struct error *e)
{
    int ret = 0;

    *m = (struct guest_mem){ .hugetlb = huge_pages == HUGE_PAGES_2M };
    if (mem_size_mib > UINT64_MAX >> 20 || !lay_out(m, mem_size_mib << 20))
        ret = -ENOMEM;
    for (unsigned i = 0; i < m->region_count && !ret; i++)
        ret = region_map(&m->regions[i], huge_pages);
    if (!ret)
        return 0;
    gmem_fini(m);
    if (huge_pages == HUGE_PAGES_2M)
        fail_huge_pages(e, -ret, mem_size_mib / 2);
    else
        fail_os(e, -ret, "Invalid Memory Configuration: Cannot create mmap region");
    return -1;
}

static int check_memory_file(const struct guest_mem *m, int fd, uint64_t offset, struct error *e)
{
    uint64_t bytes = 0;
    struct stat st;

    for (unsigned i = 0; i < m->region_count; i++)
        bytes += m->regions[i].bytes;
    if (fstat(fd, &st) < 0)
        return fail_os(e, errno, "cannot read the file of guest memory");
    if (!S_ISREG(st.st_mode))
        return fail(e, ERR_INVALID, "what is to be guest memory is no regular file");
    if (offset % GMEM_PAGE_BYTES)
        return fail(e, ERR_INVALID,
                    "guest memory begins at byte %llu of its file, which is no multiple of %u",
                    (unsigned long long)offset, GMEM_PAGE_BYTES);
    if (offset > (uint64_t)st.st_size || bytes > (uint64_t)st.st_size - offset)
        return fail(e, ERR_INVALID,
                    "the file of guest memory is too short: %llu bytes at %llu of a file of %lld",
                    (unsigned long long)bytes, (unsigned long long)offset, (long long)st.st_size);
    return 0;
}

static int map_source(const struct guest_mem *m, int fd, uint64_t offset, struct error *e)
{
    if (check_memory_file(m, fd, offset, e) < 0)
        return -1;
    for (unsigned i = 0; i < m->region_count; i++) {
        const struct gmem_region *r = &m->regions[i];
        int ret = map_over(r->host, r->bytes, fd, offset, m->hugetlb);

        if (ret && m->hugetlb)
            return fail_huge_pages(e, -ret, gmem_pages(m) / (HUGE_2M_BYTES / GMEM_PAGE_BYTES));
        if (ret)
            return fail_os(e, -ret, "cannot map the file of guest memory");
        offset += r->bytes;
    }
    return 0;
}

static bool has_huge_pages(int fd)
{
    struct statfs fs;

    return fstatfs(fd, &fs) == 0 && fs.f_type == HUGETLBFS_MAGIC && fs.f_bsize == HUGE_2M_BYTES;
}

int gmem_init_file(struct guest_mem *m, uint64_t mem_size_mib, int fd, uint64_t offset,
                   struct error *e)
{
    if (gmem_init(m, mem_size_mib, HUGE_PAGES_NONE, e) < 0)
        return -1;
    m->hugetlb = has_huge_pages(fd);
    if (map_source(m, fd, offset, e) < 0) {
        gmem_fini(m);
        return -1;
    }
    return 0;
}

void gmem_want_huge_pages(const struct guest_mem *m)
{
    for (unsigned i = 0; i < m->region_count; i++)
        madvise(m->regions[i].host, m->regions[i].bytes, MADV_HUGEPAGE);
}

void gmem_fini(struct guest_mem *m)
{
    for (unsigned i = 0; i < m->region_count; i++)
        if (m->regions[i].host)
            munmap(m->regions[i].host, m->regions[i].bytes);
    free(m->written);
    *m = (struct guest_mem){ 0 };
}

uint64_t gmem_pages(const struct guest_mem *m)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < m->region_count; i++)
        bytes += m->regions[i].bytes;
    return bytes / GMEM_PAGE_BYTES;
}

static const struct gmem_region *region_of(const struct guest_mem *m, gpa_t at, uint64_t n)
{
    const struct gmem_region *const end = m->regions + m->region_count;

    for (const struct gmem_region *r = m->regions; r < end; r++) {
        uint64_t offset = at.v - r->start; /* huge where at lies below the region */

        if (offset <= r->bytes && n <= r->bytes - offset)
            return r;
    }
    return NULL;
}

bool gmem_has(const struct guest_mem *m, gpa_t at, uint64_t n)
{
    return region_of(m, at, n) != NULL;
}

void *gmem_host_(const struct guest_mem *m, gpa_t at, uint64_t n)
{
    const struct gmem_region *r = n ? region_of(m, at, n) : NULL;

    return r ? r->host + (at.v - r->start) : NULL;
}

uint64_t gmem_page_of(const struct guest_mem *m, gpa_t at)
{
    uint64_t page = 0;
    unsigned i = 0;

    for (; at.v - m->regions[i].start >= m->regions[i].bytes; i++)
        page += m->regions[i].bytes / GMEM_PAGE_BYTES;
    return page + (at.v - m->regions[i].start) / GMEM_PAGE_BYTES;
}

uint8_t *gmem_page_host_(const struct guest_mem *m, uint64_t page, uint64_t *count)
{
    const struct gmem_region *r = m->regions;

    while (page >= r->bytes / GMEM_PAGE_BYTES)
        page -= r++->bytes / GMEM_PAGE_BYTES;
    *count = r->bytes / GMEM_PAGE_BYTES - page;
    return r->host + page * GMEM_PAGE_BYTES;
}

gpa_t gmem_page_at(const struct guest_mem *m, uint64_t page)
{
    const struct gmem_region *r = m->regions;

    while (page >= r->bytes / GMEM_PAGE_BYTES)
        page -= r++->bytes / GMEM_PAGE_BYTES;
    return gpa(r->start + page * GMEM_PAGE_BYTES);
}

int gmem_track_writes(struct guest_mem *m)
{
    // NOLINTNEXTLINE(clang-analyzer-optin.portability.UnixAPI): there are 256 pages at least
    m->written = calloc(gmem_pages(m) / 64, sizeof(*m->written));
    return m->written ? 0 : -ENOMEM;
}

void gmem_forget_writes(struct guest_mem *m)
{
    free(m->written);
    m->written = NULL;
}

void gmem_take_written(struct guest_mem *m, uint64_t *words)
{
    const uint64_t count = gmem_pages(m) / 64;

    for (uint64_t i = 0; i < count; i++)
        if (__atomic_load_n(&m->written[i], __ATOMIC_RELAXED))
            words[i] |= __atomic_exchange_n(&m->written[i], 0, __ATOMIC_SEQ_CST);
}

uint64_t gmem_page_of_(const struct guest_mem *m, uint64_t address)
{
    const struct gmem_region *r = m->regions;
    uint64_t first = 0;

    for (; address - (uintptr_t)r->host >= r->bytes; r++)
        first += r->bytes / GMEM_PAGE_BYTES;
    return first + (address - (uintptr_t)r->host) / GMEM_PAGE_BYTES;
}

void gmem_mark_(const struct guest_mem *m, const void *host, size_t n)
{
    const uint64_t first = gmem_page_of_(m, (uintptr_t)host);
    const uint64_t bytes = (uintptr_t)host % GMEM_PAGE_BYTES + n;

    /* The bytes are there before a mark that is set already is seen: who takes that, takes them. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    for (uint64_t page = first; page < first + (bytes + GMEM_PAGE_BYTES - 1) / GMEM_PAGE_BYTES;
         page++) {
        uint64_t *word = &m->written[page / 64];
        const uint64_t bit = UINT64_C(1) << page % 64;

        if (!(__atomic_load_n(word, __ATOMIC_RELAXED) & bit))
            __atomic_fetch_or(word, bit, __ATOMIC_RELAXED);
    }
}

int gmem_read_(const struct guest_mem *m, gpa_t at, void *dst, size_t n)
{
    const struct gmem_region *r = region_of(m, at, n);

    if (!r)
        return -EFAULT;
    memcpy(dst, r->host + (at.v - r->start), n);
    return 0;
}

int gmem_write_(struct guest_mem *m, gpa_t at, const void *src, size_t n)
{
    const struct gmem_region *r = region_of(m, at, n);

    if (!r)
        return -EFAULT;
    memcpy(r->host + (at.v - r->start), src, n);
    gmem_wrote_(m, r->host + (at.v - r->start), n);
    return 0;
}

void gmem_touch(const struct guest_mem *m, gpa_t at)
{
    const volatile uint8_t *host = gmem_host_(m, at, 1);

    BUG_ON(!host);
    (void)*host;
}

bool gmem_make_own(const struct guest_mem *m, gpa_t at, uint64_t n)
{
    const struct gmem_region *r = region_of(m, at, n);
    uint64_t head = at.v % GMEM_PAGE_BYTES;

    return r && madvise(r->host + (at.v - head - r->start), n + head, MADV_POPULATE_WRITE) == 0;
}

void *gmem_spare(uint64_t n)
{
    void *spare = mmap(NULL, n, PROT_READ | PROT_WRITE, LAZY | MAP_POPULATE, -1, 0);

    if (spare == MAP_FAILED)
        return NULL;
    if (claim_pages(spare, n) < 0) {
        munmap(spare, n);
        return NULL;
    }
    return spare;
}

int gmem_part_from_file(struct guest_mem *m, gpa_t at, uint64_t n, void *spare)
{
    void *host = gmem_host_(m, at, n);

    BUG_ON(!host);
    memcpy(spare, host, n);
    return mremap(spare, n, n, MREMAP_MAYMOVE | MREMAP_FIXED, host) == MAP_FAILED ? -errno : 0;
}

uint64_t gmem_file_bytes(int fd)
{
    struct stat st;
    off_t bytes = 0;

    if (fstat(fd, &st) == 0)
        bytes = S_ISREG(st.st_mode) ? st.st_size : S_ISBLK(st.st_mode) ? lseek(fd, 0, SEEK_END) : 0;
    return bytes > 0 ? (uint64_t)bytes : 0;
}

static int read_all(uint8_t *dst, int fd, uint64_t offset, uint64_t n, struct error *e)
{
    const int ret = whole_file_read_at(fd, dst, n, offset);

    if (ret == -ENODATA)
        return fail(e, ERR_INVALID, "the image ends before byte %llu",
                    (unsigned long long)offset + n);
    return ret < 0 ? fail_os(e, -ret, "cannot read the image") : 0;
}

/* Maps the whole pages of [offset, offset + n) at a page of the guest's, if that pays; the bytes
 * mapped. */
static uint64_t map_pages(struct guest_mem *m, gpa_t at, int fd, uint64_t offset, uint64_t n)
{
    uint64_t bytes = n & ~(uint64_t)(GMEM_PAGE_BYTES - 1);
    void *host = gmem_host_(m, at, bytes);

    if (m->hugetlb || bytes < MAP_MIN_BYTES || m->file_part_count == GMEM_FILE_PARTS_MAX ||
        map_over(host, bytes, fd, offset, false) < 0)
        return 0;
    m->file_parts[m->file_part_count++] = (struct gmem_file_part){ at, bytes, fd };
    return bytes;
}

int gmem_load_file(struct guest_mem *m, gpa_t at, int fd, uint64_t offset, uint64_t n,
                   struct error *e)
{
    const struct gmem_region *r = region_of(m, at, n);
    uint64_t head = -at.v & (GMEM_PAGE_BYTES - 1), file_bytes = gmem_file_bytes(fd);
    uint8_t *dst;

    if (!r)
        return fail(e, ERR_INVALID, "the image does not fit in guest memory: %llu bytes at 0x%llx",
                    (unsigned long long)n, (unsigned long long)at.v);
    if (offset > file_bytes || n > file_bytes - offset)
        return fail(e, ERR_INVALID, "the image is truncated: %llu bytes at %llu of a file of %llu",
                    (unsigned long long)n, (unsigned long long)offset,
                    (unsigned long long)file_bytes);
    dst = r->host + (at.v - r->start);
    if ((at.v ^ offset) % GMEM_PAGE_BYTES == 0 && head < n) {
        uint64_t mapped;

        if (read_all(dst, fd, offset, head, e) < 0)
            return -1;
        mapped = map_pages(m, gpa(at.v + head), fd, offset + head, n - head);
        dst += head + mapped;
        offset += head + mapped;
        n -= head + mapped;
    }
    return read_all(dst, fd, offset, n, e);
}

int gmem_lay_pages(struct guest_mem *m, uint64_t page, uint64_t count, int fd, bool maps,
                   struct error *e)
{
    while (count) {
        const uint64_t offset = page * GMEM_PAGE_BYTES;
        uint64_t n;
        uint8_t *host = gmem_page_host_(m, page, &n);

        if (n > count)
            n = count;
        if (!(maps && !m->hugetlb && map_over(host, n * GMEM_PAGE_BYTES, fd, offset, false) == 0) &&
            read_all(host, fd, offset, n * GMEM_PAGE_BYTES, e) < 0)
            return -1;
        page += n;
        count -= n;
    }
    return 0;
}
