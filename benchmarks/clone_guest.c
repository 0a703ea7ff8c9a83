/*
 * What benchmarks/clones clones. It writes to as many MiB of its memory as it is told, says so, and
 * waits; a clone, which is told that it is one, says a byte.
 * Command line: touched=MIB; gsi=N of VMGenID, the first device behind the board's.
 */
#include "runtime/boot.h"
#include "runtime/interrupts.h"
#include "runtime/io.h"
#include "runtime/power.h"
#include "runtime/report.h"

#define FIRST (18ul << 20)
#define PAGE  4096

void guest_main(void)
{
    const unsigned gsi = (unsigned)boot_number("gsi", 5);
    const uint64_t bytes = boot_number("touched", 0) << 20;

    for (uint64_t at = 0; at < bytes; at += PAGE)
        mmio_write64(FIRST + at, 1);
    ioapic_route(gsi);
    print("ready\n");
    while (!wait_until(interrupt_count[VECTOR_GSI0 + gsi] > 0))
        ;
    print(".");
    halt();
}
