#include "vmm/legacy/boot_timer.h"

#include <criterion/criterion.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "tests/unit/support/files.h"
#include "vmm/base/clock.h"
#include "vmm/base/log.h"
#include "vmm/base/timeline.h"
#include "vmm/kvm/layout.h"

#define DONE 123

static char path[] = NEW_FILE;
static char text[4096];
static struct bus bus;
static struct boot_timer timer;
static struct error e;

static void set_up(void)
{
    close(new_file(path));
    cr_assert_eq(log_open(path, &e), 0, "%s", e.msg);
    log_set_options((struct log_options){ .level = LOG_INFO });
    boot_timer_init(&timer);
    bus_add(&bus, &timer.bus);
}

static void tear_down(void)
{
    unlink(path);
}

TestSuite(boot_timer, .init = set_up, .fini = tear_down);

static void write_at(uint64_t offset, uint64_t value, unsigned bytes)
{
    bus_write(&bus, LAYOUT_BOOT_TIMER + offset, (const uint8_t *)&value, bytes);
}

Test(boot_timer, says_how_long_it_took_in_wall_time_and_cpu_time)
{
    uint64_t us, ms, cpu_us, cpu_ms;
    const char *line;

    timer.start_wall_us = monotonic_us() - 5000000;
    timer.start_cpu_us -= 3000000;
    write_at(0, DONE, 1);
    line = strstr(read_text(path, text, sizeof(text)), "Guest-boot-time");
    cr_assert_not_null(line, "%s", text);
    cr_assert_eq(sscanf(line,
                        "Guest-boot-time = %" SCNu64 " us %" SCNu64 " ms, %" SCNu64
                        " CPU us %" SCNu64 " CPU ms\n",
                        &us, &ms, &cpu_us, &cpu_ms),
                 4, "%s", line);
    cr_expect(us >= 5000000 && us <= monotonic_us() - timer.start_wall_us);
    cr_expect(cpu_us >= 3000000 &&
              cpu_us <= clock_us(CLOCK_PROCESS_CPUTIME_ID) - timer.start_cpu_us);
    cr_expect_eq(ms, us / 1000);
    cr_expect_eq(cpu_ms, cpu_us / 1000);
    cr_expect_geq(timeline_us(PHASE_GUEST_MARK), 0);
}

Test(boot_timer, begins_when_it_is_made)
{
    uint64_t wall = monotonic_us(), cpu = clock_us(CLOCK_PROCESS_CPUTIME_ID);

    boot_timer_init(&timer);
    cr_expect(timer.start_wall_us >= wall && timer.start_wall_us <= monotonic_us());
    cr_expect(timer.start_cpu_us >= cpu &&
              timer.start_cpu_us <= clock_us(CLOCK_PROCESS_CPUTIME_ID));
}

Test(boot_timer, hears_its_byte_at_its_address_only)
{
    for (unsigned value = 0; value < 256; value++)
        if (value != DONE)
            write_at(0, value, 1);
    write_at(1, DONE, 1);
    write_at(0xfff, DONE, 1);
    for (unsigned bytes = 2; bytes <= 8; bytes *= 2)
        write_at(0, DONE, bytes);
    cr_expect_str_empty(read_text(path, text, sizeof(text)));
    cr_expect_eq(timeline_us(PHASE_GUEST_MARK), -1);
}

Test(boot_timer, reads_as_zeroes_in_its_page)
{
    uint64_t value = UINT64_MAX;

    bus.idle_byte = 0xff;
    bus_read(&bus, LAYOUT_BOOT_TIMER + 0xff8, (uint8_t *)&value, 8);
    cr_expect_eq(value, 0);
    bus_read(&bus, LAYOUT_BOOT_TIMER + 0x1000, (uint8_t *)&value, 8);
    cr_expect_eq(value, UINT64_MAX);
}
