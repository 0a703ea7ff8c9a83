/*
 * What benchmarks/snapshot saves and loads. It writes to each page of its memory from 18 MiB on, as
 * many MiB as it is told, and then again and again to those of the first few: a byte on the console
 * for each sixteen.
 * Command line: touched=MIB, dirty=MIB.
 */
#include "runtime/boot.h"
#include "runtime/io.h"
#include "runtime/report.h"

#define FIRST     (18ul << 20)
#define PAGE      4096
#define BYTE_EACH (16 * PAGE)

static void write_pages(uint64_t mib, uint64_t value, const char *said)
{
    for (uint64_t at = 0; at < mib << 20; at += PAGE) {
        mmio_write64(FIRST + at, value);
        if (said && at % BYTE_EACH == BYTE_EACH - PAGE)
            print("%s", said);
    }
}

void guest_main(void)
{
    write_pages(boot_number("touched", 0), 1, NULL);
    print("ready\n");
    for (uint64_t pass = 2;; pass++)
        write_pages(boot_number("dirty", 0), pass, ".");
}
