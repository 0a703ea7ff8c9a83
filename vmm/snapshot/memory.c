#include "vmm/snapshot/memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>

#include "vmm/base/log.h"

/* Pages that one question to the host is about: a multiple of what a word of a set has. */
#define PAGES_ASKED 16384u

bool snapshot_memory_logs(enum snapshot_source source, bool tracks, bool hugetlb)
{
    return tracks || (source != SNAPSHOT_SOURCE_BOOT && !hugetlb);
}

int snapshot_memory_open(struct snapshot_memory *s, struct guest_mem *mem, const struct kvm *kvm,
                         enum snapshot_source source, bool tracks, struct snapshot_chain *files,
                         const struct uuid *base, struct error *e)
{
    *s = (struct snapshot_memory){
        .mem = mem,
        .kvm = kvm,
        .source = source,
        .logs = snapshot_memory_logs(source, tracks, mem->hugetlb),
        .forgets = tracks,
        .is_whole = source == SNAPSHOT_SOURCE_BOOT,
    };
    if (files) {
        s->files = *files;
        files->count = 0;
    }
    if (base)
        s->base = s->last = *base;
    if (source == SNAPSHOT_SOURCE_FILE && tracks)
        s->past = calloc(gmem_pages(mem) / 64, sizeof(*s->past));
    if ((s->logs && gmem_track_writes(mem) < 0) ||
        (source == SNAPSHOT_SOURCE_FILE && tracks && !s->past)) {
        snapshot_memory_close(s);
        return fail_os(e, ENOMEM, "cannot keep a list of the pages that change");
    }
    return 0;
}

int snapshot_memory_watch(const struct snapshot_memory *s, bool on, struct error *e)
{
    return s->logs ? 0 : kvm_track_dirty(s->kvm, s->mem, on, e);
}

void snapshot_memory_close(struct snapshot_memory *s)
{
    snapshot_chain_close(&s->files);
    free(s->past);
    *s = (struct snapshot_memory){ 0 };
}

uint64_t snapshot_memory_bytes(const struct snapshot_memory *s)
{
    return gmem_pages(s->mem) * GMEM_PAGE_BYTES;
}

bool page_set_has(const struct page_set *set, uint64_t page)
{
    return set->words[page / 64] >> page % 64 & 1;
}

static void page_set_add(struct page_set *set, uint64_t page)
{
    set->words[page / 64] |= UINT64_C(1) << page % 64;
}

static void page_set_add_all(struct page_set *set, const uint64_t *words)
{
    for (uint64_t i = 0; i < set->pages / 64; i++)
        set->words[i] |= words[i];
}

static bool is_zero(const uint8_t *page)
{
    const uint64_t *words = (const uint64_t *)page;
    uint64_t any = 0;

    for (unsigned i = 0; i < GMEM_PAGE_BYTES / sizeof(*words); i++)
        any |= words[i];
    return any == 0;
}

/* Of what a start mapped from files, the host says what the file has in memory. */
static void add_file_parts(const struct guest_mem *mem, struct page_set *set, uint64_t from,
                           uint64_t to)
{
    for (unsigned i = 0; i < mem->file_part_count; i++) {
        const struct gmem_file_part *part = &mem->file_parts[i];
        const uint64_t first = gmem_page_of(mem, part->at);
        const uint64_t end = first + part->bytes / GMEM_PAGE_BYTES;

        for (uint64_t page = first < from ? from : first; page < end && page < to; page++)
            page_set_add(set, page);
    }
}

/* What is swapped out has no memory: where that may be, all are looked at instead. (Of one that was
 * never touched that makes the host's one page of zeros, which is nobody's memory, but would count
 * as the guest's if the host were asked again.) */
int snapshot_memory_present_(const struct guest_mem *mem, struct page_set *set, uint64_t from,
                             uint64_t to, bool may_be_swapped)
{
    unsigned char is_present[PAGES_ASKED];

    for (uint64_t page = from, n; page < to; page += n) {
        const uint8_t *host = gmem_page_host_(mem, page, &n);

        if (n > to - page)
            n = to - page;
        if (n > PAGES_ASKED)
            n = PAGES_ASKED;
        if (!may_be_swapped && mincore((void *)host, n * GMEM_PAGE_BYTES, is_present) < 0)
            return -errno;
        for (uint64_t i = 0; i < n; i++)
            if (may_be_swapped ? !is_zero(host + i * GMEM_PAGE_BYTES) : is_present[i] & 1)
                page_set_add(set, page + i);
    }
    add_file_parts(mem, set, from, to);
    return 0;
}

/* Asked after the host was asked for its pages: what it had swapped out then, it still has. */
static bool host_swaps(void)
{
    struct sysinfo info;

    return sysinfo(&info) < 0 || info.freeswap != info.totalswap;
}

static int ask_present(const struct snapshot_memory *s, struct page_set *set, uint64_t from,
                       uint64_t to, bool may_be_swapped, struct error *e)
{
    const int ret = snapshot_memory_present_(s->mem, set, from, to, may_be_swapped);

    return ret < 0 ? fail_os(e, -ret, "cannot tell which pages of guest memory there are") : 0;
}

int snapshot_memory_find_(const struct snapshot_memory *s, struct page_set *set, uint64_t from,
                          uint64_t to, struct error *e)
{
    const int ret = ask_present(s, set, from, to, false, e);

    if (ret < 0 || s->mem->hugetlb || !host_swaps())
        return ret;
    memset(&set->words[from / 64], 0, (to - from) / 8);
    return ask_present(s, set, from, to, true, e);
}

/* Those that changed since what a Diff is relative to. */
static int changed_pages(const struct snapshot_memory *s, struct page_set *set, struct error *e)
{
    if (kvm_get_dirty(s->kvm, s->mem, set->words, e) < 0)
        return -1;
    page_set_add_all(set, s->mem->written);
    return 0;
}

enum snapshot_content snapshot_memory_content_(const struct snapshot_memory *s,
                                               enum snapshot_kind kind)
{
    if (s->source == SNAPSHOT_SOURCE_UFFD && kind == SNAPSHOT_FULL)
        return SNAPSHOT_ALL;
    if (!s->logs || (s->source == SNAPSHOT_SOURCE_BOOT && (s->is_whole || kind == SNAPSHOT_FULL)))
        return SNAPSHOT_PRESENT;
    return SNAPSHOT_CHANGED;
}

static int fill_set(const struct snapshot_memory *s, enum snapshot_kind kind, struct page_set *set,
                    struct error *e)
{
    switch (snapshot_memory_content_(s, kind)) {
    case SNAPSHOT_ALL: memset(set->words, 0xff, set->pages / 8); return 0;
    case SNAPSHOT_PRESENT: return snapshot_memory_find_(s, set, 0, set->pages, e);
    case SNAPSHOT_CHANGED: break;
    }
    if (changed_pages(s, set, e) < 0)
        return -1;
    if (kind == SNAPSHOT_FULL && s->past)
        page_set_add_all(set, s->past);
    return 0;
}

static int new_set(const struct snapshot_memory *s, struct page_set *set, struct error *e)
{
    set->pages = gmem_pages(s->mem);
    set->words = calloc(set->pages / 64, sizeof(*set->words));
    if (set->words)
        return 0;
    fail_os(e, ENOMEM, "cannot make a list of the pages of guest memory");
    return -1;
}

int snapshot_memory_pages(const struct snapshot_memory *s, enum snapshot_kind kind,
                          struct page_set *set, struct error *e)
{
    return new_set(s, set, e) < 0 ? -1 : fill_set(s, kind, set, e);
}

static int fetch_set(const struct guest_mem *mem, const struct page_set *set, struct uffd *u,
                     struct error *e)
{
    uint64_t page = 0;

    for (unsigned i = 0; i < mem->region_count; i++) {
        const struct gmem_region *r = &mem->regions[i];
        const uint64_t first = page, end = first + r->bytes / GMEM_PAGE_BYTES;

        while (page < end) {
            const uint64_t from = page;

            while (page < end && page_set_has(set, page))
                page++;
            if (page > from && uffd_fetch(u, gpa(r->start + (from - first) * GMEM_PAGE_BYTES),
                                          (page - from) * GMEM_PAGE_BYTES, e) < 0)
                return -1;
            page += page < end;
        }
    }
    return 0;
}

int snapshot_memory_fetch(const struct snapshot_memory *s, enum snapshot_kind kind, struct uffd *u,
                          struct error *e)
{
    struct page_set missing = { 0 }, there = { 0 };
    int ret = -1;

    if (snapshot_memory_pages(s, kind, &missing, e) == 0 && new_set(s, &there, e) == 0 &&
        ask_present(s, &there, 0, there.pages, false, e) == 0) {
        for (uint64_t i = 0; i < missing.pages / 64; i++)
            missing.words[i] &= ~there.words[i];
        ret = fetch_set(s->mem, &missing, u, e);
    }
    free(missing.words);
    free(there.words);
    return ret;
}

void snapshot_memory_written(struct snapshot_memory *s, const struct page_set *set,
                             const struct uuid *name)
{
    struct error e;

    s->last = *name;
    s->torn = (struct uuid){ 0 };
    if (!s->forgets)
        return;
    if (kvm_clear_dirty(s->kvm, s->mem, set->words, &e) < 0) {
        log_error("The next snapshot holds more than it needs to: %s", e.msg);
        return;
    }
    for (uint64_t i = 0; i < set->pages / 64; i++) {
        s->mem->written[i] &= ~set->words[i];
        if (s->past)
            s->past[i] |= set->words[i];
    }
    s->base = *name;
    s->is_whole = false;
}
