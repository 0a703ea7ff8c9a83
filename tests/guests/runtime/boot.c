/*
 * The zero page (Linux, Documentation/arch/x86/zero-page.rst) and PVH's start info
 * (Xen, public/arch-x86/hvm/start_info.h).
 */
#include "boot.h"

#include "interrupts.h"
#include "io.h"
#include "power.h"
#include "report.h"

#define PVH_MAGIC 0x336ec578

struct entry_state entry_state;
struct boot boot;

extern char image_end[];

static void add_range(uint64_t start, uint64_t bytes, uint32_t type)
{
    if (boot.range_count < MEMORY_RANGES_MAX)
        boot.ranges[boot.range_count++] = (struct memory_range){ start, bytes, type };
}

static void read_zero_page(uint64_t page)
{
    boot.rsdp = mmio_read64(page + 0x70);
    boot.initrd = mmio_read32(page + 0x218) | (uint64_t)mmio_read32(page + 0xc0) << 32;
    boot.initrd_bytes = mmio_read32(page + 0x21c) | (uint64_t)mmio_read32(page + 0xc4) << 32;
    boot.command_line = mmio_read32(page + 0x228) | (uint64_t)mmio_read32(page + 0xc8) << 32;
    for (unsigned i = 0; i < mmio_read8(page + 0x1e8); i++) {
        uint64_t entry = page + 0x2d0 + i * 20;
        add_range(mmio_read64(entry), mmio_read64(entry + 8), mmio_read32(entry + 16));
    }
}

static void read_start_info(uint64_t info)
{
    uint64_t modules = mmio_read64(info + 16), map = mmio_read64(info + 40);

    if (mmio_read32(info) != PVH_MAGIC)
        give_up("start_info_has_its_magic", "another number");
    boot.command_line = mmio_read64(info + 24);
    boot.rsdp = mmio_read64(info + 32);
    if (mmio_read32(info + 12) != 0) {
        boot.initrd = mmio_read64(modules);
        boot.initrd_bytes = mmio_read64(modules + 8);
    }
    for (unsigned i = 0; i < mmio_read32(info + 48); i++) {
        uint64_t entry = map + i * 24;
        add_range(mmio_read64(entry), mmio_read64(entry + 8), mmio_read32(entry + 16));
    }
}

void boot_read(void)
{
    if (entry_state.is_pvh)
        read_start_info(entry_state.info);
    else
        read_zero_page(entry_state.info);
}

/* The text behind `prefix` where a word of the command line begins with it, or NULL. */
static const char *find_word(const char *prefix)
{
    const char *line = (const char *)boot.command_line;
    size_t n = strlen(prefix);

    while (line != NULL && *line != '\0') {
        size_t word = 0;
        while (line[word] != '\0' && line[word] != ' ')
            word++;
        if (word >= n && memcmp(line, prefix, n) == 0)
            return line + n;
        line += word;
        while (*line == ' ')
            line++;
    }
    return NULL;
}

bool boot_has(const char *word)
{
    const char *rest = find_word(word);
    return rest != NULL && (*rest == '\0' || *rest == ' ');
}

uint64_t boot_number(const char *key, uint64_t otherwise)
{
    const char *at = find_word(key);
    uint64_t value = 0;
    unsigned base = 10;

    if (at == NULL || *at++ != '=')
        return otherwise;
    if (at[0] == '0' && at[1] == 'x') {
        base = 16;
        at += 2;
    }
    for (;; at++) {
        if (*at >= '0' && *at <= '9')
            value = value * base + (unsigned)(*at - '0');
        else if (base == 16 && *at >= 'a' && *at <= 'f')
            value = value * base + (unsigned)(*at - 'a' + 10);
        else
            return value;
    }
}

void *alloc_pages(unsigned pages)
{
    static char *next = image_end;
    char *block = next;

    next += pages * 4096ul;
    return block;
}

void guest_start(void);
void guest_start(void)
{
    interrupts_init();
    boot_read();
    guest_main();
    print("done\n");
    power_off();
}
