/*
 * Guest memory that ends where it says: two small regions, one above 4 GiB, each between pages that
 * nobody may touch. Zeroed for each input.
 */
#pragma once

#include <sys/mman.h>

#include "tests/fuzz/support/input.h"
#include "vmm/kvm/guest_mem.h"

#define LOW_BYTES  0x20000u
#define HIGH_START 0x100000000u
#define HIGH_BYTES 0x4000u
#define HOLE       0xc0000000u /* no memory here */

static inline uint8_t *map_guarded(size_t bytes)
{
    uint8_t *at =
        mmap(NULL, bytes + 2 * GMEM_PAGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    MUST(at != MAP_FAILED);
    at += GMEM_PAGE_BYTES;
    MUST(mprotect(at, bytes, PROT_READ | PROT_WRITE) == 0);
    return at;
}

static inline struct guest_mem *zeroed_memory(void)
{
    static struct guest_mem m;

    if (m.region_count == 0)
        m = (struct guest_mem){
            .regions = { { 0, LOW_BYTES, map_guarded(LOW_BYTES) },
                         { HIGH_START, HIGH_BYTES, map_guarded(HIGH_BYTES) } },
            .region_count = 2,
        };
    for (unsigned i = 0; i < m.region_count; i++)
        memset(m.regions[i].host, 0, m.regions[i].bytes);
    return &m;
}

/* Mostly where there is memory, else at its edges, in holes, or anywhere. */
static inline uint64_t take_address(struct input *in)
{
    static const uint64_t edges[] = { 0,    LOW_BYTES,  HIGH_START,        HIGH_START + HIGH_BYTES,
                                      HOLE, UINT64_MAX, UINT64_C(1) << 63, UINT32_MAX };
    uint8_t how = take8(in);

    if (how < 0xc0)
        return take16(in);
    if (how < 0xe0)
        return HIGH_START + take16(in) % HIGH_BYTES;
    if (how < 0xf8)
        return edges[how % 8] - (take8(in) & 0x1f);
    return take64(in);
}

static inline uint32_t take_length(struct input *in)
{
    uint8_t how = take8(in);

    if (how < 0x80)
        return how;
    if (how < 0xf0)
        return 512u * (how & 0x0f);
    return take32(in);
}
