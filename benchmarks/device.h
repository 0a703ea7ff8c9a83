/*
 * What the benchmarks of a device without a guest share: a driver in this process keeps the device
 * busy through one of its rings, the event loop serves it as it would a guest's, and a clock runs
 * beside it. No KVM, no guest: what is measured is what the VMM and the host spend. The kick costs
 * one write(2) here, which with a guest is KVM's; the interrupt costs nothing, where it is two
 * ioctls.
 */
#pragma once

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "benchmarks/clock.h"
#include "tests/support/in_process.h"

#define MEMORY_MIB 64
#define QUEUE_SIZE VIRTQ_SIZE_MAX

struct bench {
    struct driver d;
    struct ring *ring;
    uint64_t left; /* requests, or frames, not yet on their way */
};

struct cost {
    uint64_t cpu_ns, wall_ns;
};

_Noreturn static inline void die(const char *what)
{
    fprintf(stderr, "%s: %s\n", program_invocation_short_name, what);
    exit(2);
}

static inline void put(struct bench *b, uint64_t at, const void *object, size_t bytes)
{
    if (gmem_write_(&b->d.mem, gpa(at), object, bytes) < 0)
        die("beyond the memory");
}

/* Before the device is made, which needs the loop. */
static inline void bench_init(struct bench *b)
{
    struct error e;

    if (loop_init(&b->d.loop, &e) < 0 || gmem_init(&b->d.mem, MEMORY_MIB, HUGE_PAGES_NONE, &e) < 0)
        die(e.msg);
}

static inline void bench_start(struct bench *b, struct virtio_device *device, unsigned queue,
                               uint64_t features, void (*on_interrupt)(const struct kvm_line *))
{
    struct error e;

    if (driver_attach(&b->d, device, QUEUE_SIZE, &e) < 0)
        die(e.msg);
    b->d.transport.pulse = on_interrupt;
    b->ring = &b->d.rings[queue];
    if (!driver_start_with(&b->d, features | FEATURE(VIRTIO_F_VERSION_1)))
        die("the device does not start");
}

static inline void kick(struct bench *b)
{
    ring_publish(b->ring);
    driver_notify(&b->d, b->ring->queue);
}

/* Until loop_stop(). */
static inline void kick_and_serve(struct bench *b)
{
    kick(b);
    b->d.loop.stopping = 0;
    loop_run(&b->d.loop);
}

/* Takes what is answered and offers as much again, as long as there is some left. */
static inline void take_and_offer(struct bench *b, void (*offer)(uint32_t id))
{
    const bool is_more = b->left > 0;
    struct vring_used_elem elem;

    while (ring_take(b->ring, &elem))
        if (b->left > 0)
            offer(elem.id);
    if (b->ring->taken == b->ring->offered)
        loop_stop(&b->d.loop, 0);
    else if (is_more)
        kick(b);
}

static inline struct cost cost_now(void)
{
    return (struct cost){ clock_ns(CLOCK_PROCESS_CPUTIME_ID), now_ns() };
}

/* Prints CPU and wall nanoseconds a unit, but for those that were not the device's. */
static inline void print_costs(struct cost since, uint64_t left_out_ns, uint64_t units)
{
    const struct cost now = cost_now();

    printf("%.1f %.1f\n", (double)(now.cpu_ns - since.cpu_ns - left_out_ns) / (double)units,
           (double)(now.wall_ns - since.wall_ns - left_out_ns) / (double)units);
}
