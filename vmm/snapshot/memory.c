#include "vmm/snapshot/memory.h"

#include <string.h>

bool snapshot_memory_logs(enum snapshot_source source, bool tracks, bool hugetlb)
{
    return tracks || (source != SNAPSHOT_SOURCE_BOOT && !hugetlb);
}

int snapshot_memory_open(struct snapshot_memory *s, struct guest_mem *mem, const struct kvm *kvm,
                         enum snapshot_source source, bool tracks, int file_fd,
                         const struct snapshot_uuid *base, struct error *e)
{
    (void)e;
    *s = (struct snapshot_memory){
        .mem = mem,
        .kvm = kvm,
        .source = source,
        .logs = snapshot_memory_logs(source, tracks, mem->hugetlb),
        .forgets = tracks,
        .is_whole = source == SNAPSHOT_SOURCE_BOOT,
        .file_fd = file_fd,
    };
    if (base)
        s->base = *base;
    return 0;
}

void snapshot_memory_close(struct snapshot_memory *s)
{
    if (s->mem)
        close_fdp(&s->file_fd);
    free(s->past);
    *s = (struct snapshot_memory){ .file_fd = -1 };
}

uint64_t snapshot_memory_bytes(const struct snapshot_memory *s)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < s->mem->region_count; i++)
        bytes += s->mem->regions[i].bytes;
    return bytes;
}

int snapshot_memory_pages(const struct snapshot_memory *s, enum snapshot_kind kind,
                          struct page_set *set, struct error *e)
{
    (void)kind;
    set->pages = snapshot_memory_bytes(s) / GMEM_PAGE_BYTES;
    set->words = malloc(set->pages / 8);
    if (!set->words)
        return fail(e, ERR_HOST, "no memory for the list of pages");
    memset(set->words, 0xff, set->pages / 8);
    return 0;
}

int snapshot_memory_written(struct snapshot_memory *s, const struct page_set *set,
                            const struct snapshot_uuid *name, struct error *e)
{
    (void)set;
    (void)e;
    s->base = *name;
    return 0;
}
