#include "vmm/boot/e820.h"

#include "vmm/kvm/layout.h"

static void add_range(struct e820_map *map, uint64_t start, uint64_t bytes, enum e820_type type)
{
    BUG_ON(map->count == E820_ENTRIES_MAX);
    map->entries[map->count++] =
        (struct e820_entry){ .start = start, .bytes = bytes, .type = type };
}

void e820_map_init(struct e820_map *map, const struct guest_mem *m)
{
    *map = (struct e820_map){ 0 };
    add_range(map, 0, LAYOUT_SYSTEM, E820_RAM);
    add_range(map, LAYOUT_SYSTEM, LAYOUT_SYSTEM_END - LAYOUT_SYSTEM, E820_RESERVED);
    if (gmem_has(m, gpa(LAYOUT_HIGH_RAM), 1))
        add_range(map, LAYOUT_HIGH_RAM, m->regions[0].bytes - LAYOUT_HIGH_RAM, E820_RAM);
    add_range(map, LAYOUT_ECAM, LAYOUT_ECAM_BYTES, E820_RESERVED);
    for (unsigned i = 1; i < m->region_count; i++)
        add_range(map, m->regions[i].start, m->regions[i].bytes, E820_RAM);
}
