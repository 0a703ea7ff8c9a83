/* What the VMM handed over at the start, in one form for both boot protocols. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* What the first vCPU found at its first instruction; entry.S knows the offsets. */
struct entry_state {
    uint64_t is_pvh;
    uint64_t info; /* rsi or ebx: zero page or start info */
    uint64_t rsp, cr0, cr4, rflags;
};

#define E820_RAM      1
#define E820_RESERVED 2

struct memory_range {
    uint64_t start, bytes;
    uint32_t type;
};

#define MEMORY_RANGES_MAX 16

struct boot {
    uint64_t command_line, rsdp, initrd, initrd_bytes; /* addresses; 0: none given */
    unsigned range_count;
    struct memory_range ranges[MEMORY_RANGES_MAX];
};

extern struct entry_state entry_state;
extern struct boot boot;

/* Fills `boot`; called before guest_main(). */
void boot_read(void);

/* True where the command line has this word. */
bool boot_has(const char *word);

/* The number behind "KEY=" (decimal, or hexadecimal with 0x), or `otherwise`. */
uint64_t boot_number(const char *key, uint64_t otherwise);

/* A page-aligned, zeroed block of RAM that nothing else uses, for ever. */
void *alloc_pages(unsigned pages);

/* The guest itself: one function in its file. "done" and a power-off follow its return. */
void guest_main(void);
