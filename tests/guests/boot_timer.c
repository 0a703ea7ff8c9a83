/* The boot timer device: the byte 123 at its first address, and much that is not that. Command
 * line: marks=N (1), how often it is written in a row. */
#include "runtime/boot.h"
#include "runtime/io.h"
#include "runtime/report.h"

#define BOOT_TIMER 0xc0000000ul

void guest_main(void)
{
    for (uint64_t i = boot_number("marks", 1); i > 0; i--)
        mmio_write8(BOOT_TIMER, 123);
    mmio_write8(BOOT_TIMER, 0);
    mmio_write8(BOOT_TIMER, 122);
    mmio_write8(BOOT_TIMER + 1, 123);
    mmio_write8(BOOT_TIMER + 0xfff, 123);
    mmio_write16(BOOT_TIMER, 0x7b7b);
    mmio_write32(BOOT_TIMER, 123);
    mmio_write64(BOOT_TIMER, 123);
    (void)mmio_read64(BOOT_TIMER);
    (void)mmio_read32(BOOT_TIMER + 0xffd);
    expect(true, "the_boot_timer_is_survived");
}
