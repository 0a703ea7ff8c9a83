/*
 * The map of the guest's physical memory as its kernel gets it, after the e820 BIOS call (ACPI 6.5,
 * section 15).
 */
#pragma once

#include <stdint.h>

#include "vmm/kvm/guest_mem.h"

enum e820_type { E820_RAM = 1, E820_RESERVED = 2 };

struct e820_entry {
    uint64_t start;
    uint64_t bytes;
    uint32_t type; /* enum e820_type */
};

#define E820_ENTRIES_MAX 6

struct e820_map {
    unsigned count;
    struct e820_entry entries[E820_ENTRIES_MAX]; /* ascending, disjoint */
};

/* The map of RAM, of the system area below 1 MiB and of the ECAM window. */
void e820_map_init(struct e820_map *map, const struct guest_mem *m);
