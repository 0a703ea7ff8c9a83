/*
 * What benchmarks/snapshot saves and loads. It writes to each page of its memory from 18 MiB on, as
 * many MiB as it is told. Then it writes again and again to those of the first few MiB: a byte on
 * the console for each sixteen pages. Or it waits for a byte on the console, says "<", visits a
 * working set, says ">", and waits again: runs of 8 pages, scattered over all it has written to; it
 * writes to 45 % of them. Or it halts.
 * Command line: touched=MIB, and dirty=MIB, or runs=RUNS, or neither.
 */
#include "runtime/boot.h"
#include "runtime/io.h"
#include "runtime/report.h"

#define FIRST     (18ul << 20)
#define PAGE      4096
#define BYTE_EACH (16 * PAGE)
#define COM1      0x3f8
#define COM1_LSR  0x3fd
#define LSR_DATA  1

static void write_pages(uint64_t mib, uint64_t value, const char *said)
{
    for (uint64_t at = 0; at < mib << 20; at += PAGE) {
        mmio_write64(FIRST + at, value);
        if (said && at % BYTE_EACH == BYTE_EACH - PAGE)
            print("%s", said);
    }
}

/* One instruction a page: some hosts emulate each, and would be what is measured. */
static void visit_run(uint64_t at, bool writes)
{
#define EIGHT(access)                                                                              \
    access(0) access(1) access(2) access(3) access(4) access(5) access(6) access(7)
#define READ(n)  mmio_read64(at + (n)*PAGE);
#define WRITE(n) mmio_write64(at + (n)*PAGE, at);
    if (writes) {
        EIGHT(WRITE)
    } else {
        EIGHT(READ)
    }
}

static void wait_for_byte(void)
{
    while (!(inb(COM1_LSR) & LSR_DATA))
        ;
    inb(COM1);
}

static _Noreturn void visit(uint64_t runs, uint64_t apart)
{
    for (;;) {
        wait_for_byte();
        outb(COM1, '<');
        for (uint64_t run = 0, share = 0, at = FIRST; run < runs; run++, at += apart) {
            share = (share + 9) % 20;
            visit_run(at, share < 9);
        }
        outb(COM1, '>');
    }
}

void guest_main(void)
{
    const uint64_t touched = boot_number("touched", 0), runs = boot_number("runs", 0);
    const uint64_t dirty = boot_number("dirty", 0);

    write_pages(touched, 1, NULL);
    print("ready\n");
    if (runs)
        visit(runs, (touched << 20) / PAGE / runs * PAGE);
    if (dirty)
        for (uint64_t pass = 2;; pass++)
            write_pages(dirty, pass, ".");
    for (;;)
        __asm__ volatile("hlt");
}
