#include "vmm/boot_timer.h"

#include "vmm/boot/layout.h"
#include "vmm/error.h"
#include "vmm/log.h"
#include "vmm/timeline.h"

#define BOOT_TIMER_BYTES 0x1000u
#define BOOT_DONE_VALUE  123u

static long microseconds_since(clockid_t clock, const struct timespec *start)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (now.tv_sec - start->tv_sec) * 1000000 + (now.tv_nsec - start->tv_nsec) / 1000;
}

static void boot_timer_read(struct bus_device *d, uint64_t offset, uint8_t *data, unsigned bytes)
{
    (void)d;
    (void)offset;
    for (unsigned i = 0; i < bytes; i++)
        data[i] = 0;
}

static void boot_timer_write(struct bus_device *d, uint64_t offset, const uint8_t *data,
                             unsigned bytes)
{
    const struct boot_timer *t = owner_of(d, struct boot_timer, bus);
    long wall, cpu;

    if (offset != 0 || bytes != 1 || *data != BOOT_DONE_VALUE)
        return;
    timeline_mark(PHASE_GUEST_MARK);
    wall = microseconds_since(CLOCK_MONOTONIC, &t->start_wall);
    cpu = microseconds_since(CLOCK_PROCESS_CPUTIME_ID, &t->start_cpu);
    log_info("Guest-boot-time = %6ld us %ld ms, %6ld CPU us %ld CPU ms", wall, wall / 1000, cpu,
             cpu / 1000);
}

static const struct bus_ops boot_timer_ops = {
    .read = boot_timer_read,
    .write = boot_timer_write,
};

void boot_timer_init(struct boot_timer *t)
{
    t->bus = (struct bus_device){
        .ops = &boot_timer_ops,
        .base = LAYOUT_BOOT_TIMER,
        .bytes = BOOT_TIMER_BYTES,
    };
    clock_gettime(CLOCK_MONOTONIC, &t->start_wall);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t->start_cpu);
}
