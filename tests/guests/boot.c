/* What the VMM hands over: registers, zero page or start info, command line, map, initrd. The map,
 * the command line and the initrd are printed for the test to compare. */
#include "runtime/boot.h"
#include "runtime/io.h"
#include "runtime/report.h"

#define ZERO_PAGE  0x7000
#define START_INFO 0x6000
#define CR0_PE     (1ul << 0)
#define CR0_ET     (1ul << 4)
#define CR0_PG     (1ul << 31)
#define CR4_PAE    (1ul << 5)
#define RFLAGS_IF  (1ul << 9)

static void check_linux64(void)
{
    expect_equal(entry_state.info, ZERO_PAGE, "rsi_points_to_the_zero_page");
    expect_equal(entry_state.rsp, 0x8ff0, "the_stack_is_at_0x8ff0");
    expect((entry_state.cr0 & (CR0_PE | CR0_PG)) == (CR0_PE | CR0_PG), "paging_is_on");
    expect((entry_state.cr4 & CR4_PAE) != 0, "pae_is_on");
    expect_equal(mmio_read16(ZERO_PAGE + 0x1fe), 0xaa55, "the_zero_page_has_the_boot_flag");
    expect_equal(mmio_read32(ZERO_PAGE + 0x202), 0x53726448, "the_zero_page_has_the_header_magic");
    expect_equal(mmio_read8(ZERO_PAGE + 0x210), 0xff, "the_loader_type_is_undefined");
}

static void check_pvh(void)
{
    expect_equal(entry_state.info, START_INFO, "rbx_points_to_the_start_info");
    expect_equal(entry_state.cr0 & ~CR0_ET, CR0_PE, "protected_mode_is_all_that_is_on");
    expect_equal(entry_state.cr4, 0, "cr4_is_clear");
    expect_equal(entry_state.rsp, 0x8ff0, "there_is_a_stack_though_pvh_promises_none");
    expect_equal(mmio_read32(START_INFO + 4), 1, "the_start_info_is_version_1");
}

static void print_initrd(void)
{
    uint32_t sum = 0;

    for (uint64_t i = 0; i < boot.initrd_bytes; i++)
        sum = sum * 31 + mmio_read8(boot.initrd + i);
    print("initrd 0x%lx %lu 0x%x\n", boot.initrd, boot.initrd_bytes, sum);
}

void guest_main(void)
{
    print("protocol %s\n", entry_state.is_pvh ? "pvh" : "linux64");
    if (entry_state.is_pvh)
        check_pvh();
    else
        check_linux64();
    expect((entry_state.rflags & RFLAGS_IF) == 0, "interrupts_are_off");
    expect_equal(boot.command_line, 0x20000, "the_command_line_is_at_0x20000");
    print("command line: %s\n", (const char *)boot.command_line);
    for (unsigned i = 0; i < boot.range_count; i++)
        print("range 0x%lx 0x%lx %u\n", boot.ranges[i].start, boot.ranges[i].bytes,
              boot.ranges[i].type);
    print_initrd();
}
