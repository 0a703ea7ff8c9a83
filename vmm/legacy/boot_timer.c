#include "vmm/legacy/boot_timer.h"

#include <inttypes.h>

#include "vmm/base/clock.h"
#include "vmm/base/error.h"
#include "vmm/base/log.h"
#include "vmm/base/timeline.h"
#include "vmm/kvm/layout.h"

#define BOOT_TIMER_BYTES 0x1000u
#define BOOT_DONE_VALUE  123u

static void boot_timer_write(struct bus_device *d, uint64_t offset, const uint8_t *data,
                             unsigned bytes)
{
    struct boot_timer *t = owner_of(d, struct boot_timer, bus);
    uint64_t wall, cpu;

    if (offset != 0 || bytes != 1 || *data != BOOT_DONE_VALUE)
        return;
    timeline_mark(PHASE_GUEST_MARK);
    wall = monotonic_us() - t->start_wall_us;
    cpu = clock_us(CLOCK_PROCESS_CPUTIME_ID) - t->start_cpu_us;
    log_limited(&t->marks, LOG_INFO,
                "Guest-boot-time = %6" PRIu64 " us %" PRIu64 " ms, %6" PRIu64 " CPU us %" PRIu64
                " CPU ms",
                wall, wall / 1000, cpu, cpu / 1000);
}

static const struct bus_ops boot_timer_ops = {
    .read = bus_read_zeroes,
    .write = boot_timer_write,
};

void boot_timer_init(struct boot_timer *t)
{
    t->bus = (struct bus_device){
        .ops = &boot_timer_ops,
        .base = LAYOUT_BOOT_TIMER,
        .bytes = BOOT_TIMER_BYTES,
    };
    t->start_wall_us = monotonic_us();
    t->start_cpu_us = clock_us(CLOCK_PROCESS_CPUTIME_ID);
}
