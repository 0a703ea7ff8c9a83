#include "virtio/mmio.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/resource.h>

#include "tests/unit/support/driver.h"
#include "tests/unit/support/lock.h"

#define FEATURES (FEATURE(VIRTIO_F_VERSION_1) | FEATURE(5) | FEATURE(29))

/* A device that counts what the transport asks of it. */
static struct probe {
    struct virtio_device dev;
    unsigned activations, turns, tries, resets, drains;
    bool wants_more, breaks;
} probe;

static const uint8_t config[12] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 };
static struct driver d;

static void probe_activate(struct virtio_device *dev)
{
    (void)dev;
    probe.activations++;
}

static bool probe_serve(struct virtio_device *dev, unsigned queue)
{
    cr_expect_eq(queue, 0);
    probe.turns++;
    if (probe.breaks)
        virtio_needs_reset(dev, "the test says so");
    return probe.wants_more;
}

static void probe_drain(struct virtio_device *dev)
{
    (void)dev;
    probe.drains++;
}

static void probe_reset(struct virtio_device *dev)
{
    (void)dev;
    probe.resets++;
}

static bool probe_try_serve(struct virtio_device *dev, unsigned queue)
{
    (void)dev;
    cr_expect_eq(queue, 0);
    probe.tries++;
    return probe.wants_more;
}

#define OPS                                                                                        \
    .name = "probe", .id = 42, .queue_count = 1, .activate = probe_activate, .serve = probe_serve, \
    .drain = probe_drain, .reset = probe_reset

static const struct virtio_ops probe_ops = { OPS };
static const struct virtio_ops trying_ops = { OPS, .try_serve = probe_try_serve };

static void new_probe(void)
{
    probe = (struct probe){ .dev = { .ops = &probe_ops,
                                     .offered = FEATURES,
                                     .config = config,
                                     .config_bytes = sizeof(config) } };
}

static void set_up(void)
{
    new_probe();
    driver_init(&d, &probe.dev, 16);
}

static void tear_down(void)
{
    driver_fini(&d);
}

TestSuite(registers, .init = set_up, .fini = tear_down);
TestSuite(negotiation, .init = set_up, .fini = tear_down);
TestSuite(status, .init = set_up, .fini = tear_down);
TestSuite(activation, .init = set_up, .fini = tear_down);
TestSuite(turn, .init = set_up, .fini = tear_down);
TestSuite(config_space, .init = set_up, .fini = tear_down);

Test(registers, identify_the_device)
{
    cr_expect_eq(reg_read(&d, VIRTIO_MMIO_MAGIC_VALUE), 0x74726976);
    cr_expect_eq(reg_read(&d, VIRTIO_MMIO_VERSION), 2);
    cr_expect_eq(reg_read(&d, VIRTIO_MMIO_DEVICE_ID), 42);
    cr_expect_eq(reg_read(&d, VIRTIO_MMIO_VENDOR_ID), 0);
    cr_expect_eq(reg_read(&d, VIRTIO_MMIO_QUEUE_NUM_MAX), 256);
    cr_expect_eq(reg_read(&d, VIRTIO_MMIO_SHM_LEN_LOW), UINT32_MAX);
    cr_expect_eq(reg_read(&d, 0x0fc), 0);
    cr_expect_eq(reg_read(&d, 0x0dc), 0, "reserved");
}

Test(registers, show_no_queue_past_the_last)
{
    static const uint32_t past[] = { 1, 3, 0xffff, UINT32_MAX };

    for (unsigned i = 0; i < sizeof(past) / sizeof(*past); i++) {
        reg_write(&d, VIRTIO_MMIO_QUEUE_SEL, past[i]);
        cr_expect_eq(reg_read(&d, VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
        cr_expect_eq(reg_read(&d, VIRTIO_MMIO_QUEUE_READY), 0);
        reg_write(&d, VIRTIO_MMIO_QUEUE_READY, 1);
        reg_write(&d, VIRTIO_MMIO_QUEUE_NUM, 8);
    }
    cr_expect_eq(probe.dev.queues[0].state.size, 0);
}

Test(registers, are_32_bits_wide)
{
    uint8_t bytes[8];

    for (unsigned width = 1; width <= 8; width *= 2) {
        memset(bytes, 0x5a, sizeof(bytes));
        d.transport.bus.ops->read(&d.transport.bus, VIRTIO_MMIO_MAGIC_VALUE, bytes, width);
        cr_expect_eq(bytes[0], width == 4 ? 'v' : 0x5a, "%u bytes", width);
    }
    memset(bytes, 0, sizeof(bytes));
    bytes[0] = 1; /* as a value of 32 bits it would be taken */
    for (unsigned width = 1; width <= 8; width *= 2) {
        if (width == 4)
            continue;
        d.transport.bus.ops->write(&d.transport.bus, VIRTIO_MMIO_STATUS, bytes, width);
        cr_expect_eq(reg_read(&d, VIRTIO_MMIO_STATUS), 0, "%u bytes", width);
    }
    d.transport.bus.ops->write(&d.transport.bus, VIRTIO_MMIO_STATUS, bytes, 4);
    cr_expect_eq(reg_read(&d, VIRTIO_MMIO_STATUS), 1);
}

Test(negotiation, offers_64_bits_and_nothing_behind)
{
    cr_expect_eq(offered_features(&d), FEATURES);
    reg_write(&d, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    cr_expect_eq(reg_read(&d, VIRTIO_MMIO_DEVICE_FEATURES), 0);
    reg_write(&d, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0x08000000);
    cr_expect_eq(reg_read(&d, VIRTIO_MMIO_DEVICE_FEATURES), 0);
}

Test(negotiation, accepts_any_subset_with_version_1)
{
    cr_expect(driver_negotiate(&d, FEATURE(VIRTIO_F_VERSION_1)));
    cr_expect_eq(virtio_acked(&probe.dev), FEATURE(VIRTIO_F_VERSION_1));
    reg_write(&d, VIRTIO_MMIO_STATUS, 0);
    cr_expect(driver_negotiate(&d, FEATURES));
    cr_expect_eq(virtio_acked(&probe.dev), FEATURES);
}

Test(negotiation, refuses_a_legacy_driver)
{
    cr_expect_not(driver_negotiate(&d, FEATURE(5)));
    cr_expect_eq(reg_read(&d, VIRTIO_MMIO_STATUS),
                 VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
    driver_ok(&d);
    cr_expect_eq(probe.activations, 0);
}

Test(negotiation, refuses_a_feature_that_was_not_offered)
{
    cr_expect_not(driver_negotiate(&d, FEATURES | 1));
    reg_write(&d, VIRTIO_MMIO_STATUS, 0);
    cr_expect_not(driver_negotiate(&d, FEATURES | FEATURE(63)));
    cr_expect_eq(virtio_acked(&probe.dev), 0);
}

Test(negotiation, takes_what_was_written_last)
{
    const uint64_t fewer = FEATURES & ~FEATURE(5) & ~FEATURE(29);

    driver_begin(&d);
    driver_accept(&d, FEATURES);
    driver_accept(&d, fewer);
    cr_expect(driver_features_ok(&d));
    cr_expect_eq(virtio_acked(&probe.dev), fewer);
}

Test(negotiation, ignores_features_written_at_the_wrong_time)
{
    reg_write(&d, VIRTIO_MMIO_DRIVER_FEATURES, 1);
    cr_expect(driver_negotiate(&d, FEATURES), "what came before DRIVER counts for nothing");
    reg_write(&d, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
    reg_write(&d, VIRTIO_MMIO_DRIVER_FEATURES, 1);
    cr_expect_eq(virtio_acked(&probe.dev), FEATURES);
}

Test(status, takes_no_step_out_of_order)
{
    static const uint32_t steps[] = {
        VIRTIO_CONFIG_S_DRIVER,
        VIRTIO_CONFIG_S_DRIVER_OK,
        VIRTIO_CONFIG_S_FEATURES_OK,
        VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER,
        VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER_OK,
        0xf,
        VIRTIO_CONFIG_S_NEEDS_RESET,
        0x100,
        UINT32_MAX & ~VIRTIO_CONFIG_S_FAILED,
    };

    for (unsigned i = 0; i < sizeof(steps) / sizeof(*steps); i++) {
        reg_write(&d, VIRTIO_MMIO_STATUS, steps[i]);
        cr_expect_eq(reg_read(&d, VIRTIO_MMIO_STATUS), 0, "0x%x", steps[i]);
    }
    cr_expect_eq(probe.activations, 0);
}

Test(status, takes_no_further_step_behind_the_last)
{
    static const uint32_t steps[] = { 0x3, 0x7, 0xf, 0x10, 0x1f, 0x4f, 0x10f };

    driver_start(&d);
    for (unsigned i = 0; i < sizeof(steps) / sizeof(*steps); i++) {
        reg_write(&d, VIRTIO_MMIO_STATUS, steps[i]);
        cr_expect_eq(reg_read(&d, VIRTIO_MMIO_STATUS), 0xf, "0x%x", steps[i]);
    }
    cr_expect_eq(probe.activations, 1);
}

Test(status, remembers_that_the_driver_gave_up)
{
    reg_write(&d, VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE);
    reg_write(&d, VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_FAILED);
    cr_expect_eq(reg_read(&d, VIRTIO_MMIO_STATUS),
                 VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_FAILED);
    reg_write(&d, VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
    cr_expect_eq(reg_read(&d, VIRTIO_MMIO_STATUS),
                 VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_FAILED);
}

Test(status, forgets_everything_on_reset)
{
    driver_start(&d);
    reg_write(&d, VIRTIO_MMIO_STATUS, 0);
    cr_expect_eq(probe.resets, 1);
    cr_expect_eq(reg_read(&d, VIRTIO_MMIO_STATUS), 0);
    cr_expect_eq(reg_read(&d, VIRTIO_MMIO_QUEUE_READY), 0);
    cr_expect_eq(virtio_acked(&probe.dev), 0);
    cr_expect_null(probe.dev.queues[0].mem);
    driver_serve(&d);
    cr_expect_eq(probe.turns, 0);
    driver_start(&d);
    cr_expect_eq(probe.activations, 2);
}

Test(activation, happens_once)
{
    driver_start(&d);
    driver_ok(&d);
    cr_expect_eq(probe.activations, 1);
}

Test(activation, refuses_a_ring_outside_memory_until_the_next_reset)
{
    struct ring nowhere = d.rings[0];

    nowhere.used = 0xc0001000;
    cr_assert(driver_negotiate(&d, FEATURES));
    driver_set_queue(&d, &nowhere);
    driver_ok(&d);
    cr_expect_eq(probe.activations, 0);
    cr_expect_eq(reg_read(&d, VIRTIO_MMIO_STATUS), 0xf | VIRTIO_CONFIG_S_NEEDS_RESET);
    cr_expect_eq(reg_read(&d, VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
    cr_expect_eq(driver_interrupts(&d), 1);
    driver_serve(&d);
    cr_expect_eq(probe.turns, 0);
    driver_start(&d);
    driver_serve(&d);
    cr_expect_eq(probe.turns, 1);
}

Test(activation, that_failed_is_neither_drained_nor_reset)
{
    const struct ring nowhere = { .size = 16, .desc = LAYOUT_VIRTIO };

    cr_assert(driver_negotiate(&d, FEATURES));
    driver_set_queue(&d, &nowhere);
    driver_ok(&d);
    cr_assert(needs_reset(&d));
    virtio_mmio_pause(&d.transport);
    virtio_mmio_resume(&d.transport);
    reg_write(&d, VIRTIO_MMIO_STATUS, 0);
    cr_expect_eq(probe.activations + probe.drains + probe.resets, 0);
}

Test(activation, takes_no_part_of_a_size_for_the_size)
{
    static const uint32_t sizes[] = { 0x10000, 0x10010, UINT32_MAX };

    for (unsigned i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        reg_write(&d, VIRTIO_MMIO_STATUS, 0);
        cr_assert(driver_negotiate(&d, FEATURES));
        driver_set_queue(&d, &d.rings[0]);
        reg_write(&d, VIRTIO_MMIO_QUEUE_NUM, sizes[i]);
        driver_ok(&d);
        cr_expect(needs_reset(&d), "%u", sizes[i]);
    }
    cr_expect_eq(probe.activations, 0);
}

Test(activation, does_not_serve_a_queue_that_is_not_ready)
{
    cr_assert(driver_negotiate(&d, FEATURES));
    driver_set_queue(&d, &d.rings[0]);
    reg_write(&d, VIRTIO_MMIO_QUEUE_READY, 0);
    driver_ok(&d);
    cr_expect_eq(probe.activations, 1);
    driver_serve(&d);
    cr_expect_eq(probe.turns, 0);
}

Test(activation, takes_no_queue_changes_afterwards)
{
    const struct ring other = { .size = 4, .desc = 0x8000 };

    driver_start(&d);
    driver_set_queue(&d, &other);
    reg_write(&d, VIRTIO_MMIO_QUEUE_READY, 0);
    cr_expect_eq(probe.dev.queues[0].state.desc.v, d.rings[0].desc);
    cr_expect_eq(probe.dev.queues[0].state.size, 16);
    cr_expect_eq(reg_read(&d, VIRTIO_MMIO_QUEUE_READY), 1);
}

Test(turn, comes_back_while_there_is_more)
{
    driver_start(&d);
    probe.wants_more = true;
    cr_expect(driver_serve(&d));
    probe.wants_more = false;
    cr_expect_not(driver_serve(&d));
    cr_expect_eq(probe.turns, 2);
}

Test(turn, is_not_served_by_a_broken_device)
{
    driver_start(&d);
    probe.breaks = true;
    driver_serve(&d);
    driver_serve(&d);
    cr_expect_eq(probe.turns, 1);
    cr_expect_eq(reg_read(&d, VIRTIO_MMIO_STATUS), 0xf | VIRTIO_CONFIG_S_NEEDS_RESET);
    probe.breaks = false;
    driver_start(&d);
    driver_serve(&d);
    cr_expect_eq(probe.turns, 2);
}

/* That one line a second is written is the log's to know (log_limited). */
Test(turn, of_a_device_that_breaks_again_and_again_is_told_of_under_a_limit)
{
    driver_start(&d);
    probe.breaks = true;
    cr_expect_eq(d.transport.complaints.next_ns, 0);
    driver_serve(&d);
    cr_expect_gt(d.transport.complaints.next_ns, 0);
    d.transport.complaints.next_ns = UINT64_MAX;
    for (unsigned i = 0; i < 3; i++) {
        driver_start(&d);
        driver_serve(&d);
    }
    cr_expect_eq(d.transport.complaints.left_out, 3);
}

static void stop_loop(struct loop_source *src, uint32_t ready)
{
    (void)ready;
    loop_drain(src->fd);
    loop_stop(&d.loop, 0);
}

/* Serves what is ready, the eventfd `last` being added behind it. */
static void run_loop(void)
{
    struct loop_source last = { .fd = eventfd(0, 0), .want = EPOLLIN, .on_ready = stop_loop };

    cr_assert_eq(loop_add(&d.loop, &last), 0);
    loop_signal(last.fd);
    d.loop.stopping = 0;
    loop_run(&d.loop);
    loop_remove(&d.loop, &last);
    close(last.fd);
}

Test(turn, waits_while_paused)
{
    driver_start(&d);
    virtio_mmio_pause(&d.transport);
    driver_notify(&d, 0);
    run_loop();
    cr_expect_eq(probe.turns, 0);
    cr_expect_eq(probe.drains, 1);
    virtio_mmio_resume(&d.transport);
    run_loop();
    cr_expect_eq(probe.turns, 1);
}

Test(turn, of_a_broken_device_is_drained_at_a_pause)
{
    driver_start(&d);
    probe.breaks = true;
    driver_serve(&d);
    cr_assert(needs_reset(&d));
    virtio_mmio_pause(&d.transport);
    cr_expect_eq(probe.drains, 1);
    virtio_mmio_resume(&d.transport);
}

Test(turn, wakes_the_loop_once_a_write)
{
    driver_start(&d);
    for (unsigned i = 1; i <= 3; i++) {
        driver_notify(&d, 0);
        run_loop();
        run_loop();
        cr_expect_eq(probe.turns, i);
    }
}

/* The guest's, as KVM passes it on. */
static void notify(void)
{
    loop_signal(d.transport.notifiers[0].source.fd);
}

Test(turn, is_counted_where_the_guest_asked_for_it_and_nowhere_else)
{
    metric notified = 0;

    probe.dev.notifications[0] = &notified;
    driver_start(&d);
    notify();
    probe.wants_more = true;
    for (unsigned i = 0; i < 4; i++)
        run_loop();
    cr_expect_geq(probe.turns, 4);
    cr_expect_eq(notified, 1, "more of the same");
    probe.wants_more = false;
    run_loop();
    virtio_serve(&probe.dev, 0);
    cr_expect_eq(notified, 1, "a timer, or a socket");
    notify();
    run_loop();
    cr_expect_eq(notified, 2);
    virtio_mmio_pause(&d.transport);
    notify();
    run_loop();
    virtio_mmio_resume(&d.transport);
    run_loop();
    cr_expect_eq(notified, 3, "one that came in a pause, which is served after it");
    reg_write(&d, VIRTIO_MMIO_STATUS, 0);
    notify();
    run_loop();
    cr_expect_eq(notified, 3, "one to a device that has no driver");
}

/* A device that a vCPU's thread serves. */

static metric tried_notifications;

static void set_up_trying(void)
{
    set_up();
    probe.dev.ops = &trying_ops;
    probe.dev.notifications[0] = &tried_notifications;
    driver_start(&d);
}

TestSuite(notification, .init = set_up_trying, .fini = tear_down);

Test(notification, is_served_where_it_comes_and_the_loop_sleeps)
{
    for (unsigned i = 1; i <= 1000; i++)
        driver_notify(&d, 0);
    cr_expect_not(loop_turn(&d.loop, 0));
    cr_expect_eq(probe.tries, 1000);
    cr_expect_eq(probe.turns, 0);
    cr_expect_eq(tried_notifications, 1000);
}

Test(notification, of_more_than_was_done_goes_on_in_the_loop_and_counts_once)
{
    probe.wants_more = true;
    driver_notify(&d, 0);
    probe.wants_more = false;
    run_loop();
    cr_expect_eq(probe.tries, 1);
    cr_expect_eq(probe.turns, 1);
    cr_expect_eq(tried_notifications, 1);
}

/* Whoever has the lock may wait for a disk: a vCPU doesn't. */
Test(notification, goes_to_the_loop_while_the_device_is_in_use)
{
    virtio_lock(&probe.dev);
    driver_notify(&d, 0);
    virtio_unlock(&probe.dev);
    cr_expect_eq(probe.tries, 0);
    run_loop();
    cr_expect_eq(probe.turns, 1);
    cr_expect_eq(tried_notifications, 1);
}

/* Who waits is next, however often a vCPU notifies. */
Test(notification, goes_to_the_loop_while_somebody_waits_for_the_device)
{
    d.transport.waiting = 1;
    driver_notify(&d, 0);
    d.transport.waiting = 0;
    cr_expect_eq(probe.tries, 0);
    run_loop();
    cr_expect_eq(probe.turns, 1);
}

Test(notification, of_no_queue_or_to_no_driver_does_nothing)
{
    static const uint32_t queues[] = { 1, 3, 0x10000, UINT32_MAX };
    const uint8_t zero[8] = { 0 };

    for (unsigned i = 0; i < sizeof(queues) / sizeof(*queues); i++)
        reg_write(&d, VIRTIO_MMIO_QUEUE_NOTIFY, queues[i]);
    for (unsigned width = 1; width <= 8; width *= 2)
        if (width != 4)
            d.transport.bus.ops->write(&d.transport.bus, VIRTIO_MMIO_QUEUE_NOTIFY, zero, width);
    reg_write(&d, VIRTIO_MMIO_STATUS, 0);
    driver_notify(&d, 0);
    cr_assert(driver_negotiate(&d, FEATURES));
    driver_notify(&d, 0);
    driver_ok(&d); /* without a queue */
    driver_notify(&d, 0);
    cr_expect_not(loop_turn(&d.loop, 0));
    cr_expect_eq(probe.tries, 0);
    cr_expect_eq(tried_notifications, 0);
}

Test(notification, is_not_served_by_a_broken_device)
{
    probe.breaks = true;
    driver_serve(&d);
    driver_notify(&d, 0);
    cr_expect_eq(probe.tries, 0);
}

/* A restored device is paused until it goes on; a vCPU runs no sooner, but that is not for the
 * transport to know. */
Test(notification, is_not_served_in_a_pause)
{
    virtio_mmio_pause(&d.transport);
    driver_notify(&d, 0);
    cr_expect_eq(probe.tries, 0);
    virtio_mmio_resume(&d.transport);
    run_loop();
    cr_expect_eq(probe.turns, 1);
    driver_notify(&d, 0);
    cr_expect_eq(probe.tries, 1);
}

Test(config_space, reads_in_every_width_and_ends_in_zeroes)
{
    static const struct {
        uint64_t offset;
        unsigned bytes;
        uint64_t value;
    } cases[] = {
        { 0, 1, 0x01 },       { 3, 2, 0x0504 }, { 4, 4, 0x08070605 }, { 4, 8, 0x0c0b0a0908070605 },
        { 8, 8, 0x0c0b0a09 }, { 11, 4, 0x0c },  { 12, 4, 0 },         { 0xef8, 8, 0 },
    };

    for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        uint64_t value = UINT64_MAX;

        d.transport.bus.ops->read(&d.transport.bus, 0x100 + cases[i].offset, (uint8_t *)&value,
                                  cases[i].bytes);
        if (cases[i].bytes < 8)
            value &= (UINT64_C(1) << 8 * cases[i].bytes) - 1;
        cr_expect_eq(value, cases[i].value, "offset %lu, %u bytes: 0x%lx", cases[i].offset,
                     cases[i].bytes, value);
    }
}

Test(config_space, is_read_only)
{
    reg_write(&d, 0x100, UINT32_MAX);
    cr_expect_eq(reg_read(&d, 0x100), 0x04030201);
}

/* Without a configuration space, and with nothing to do for an activation or a drain. */
Test(config_space, may_be_absent)
{
    static const struct virtio_ops least = {
        .name = "least", .id = 4, .queue_count = 1, .serve = probe_serve, .reset = probe_reset
    };

    virtio_mmio_fini(&d.transport);
    memset(d.page, 0, sizeof(d.page));
    probe = (struct probe){ .dev = { .ops = &least, .offered = FEATURES } };
    cr_assert_eq(driver_attach(&d, &probe.dev, 16, &(struct error){ 0 }), 0);
    driver_start(&d);
    cr_expect_eq(reg_read(&d, 0x100), 0);
    virtio_mmio_pause(&d.transport);
    virtio_mmio_resume(&d.transport);
    cr_expect_eq(reg_read(&d, VIRTIO_MMIO_STATUS), 0xf);
}

/* Out of descriptors between the notifiers of two queues: the standard streams stay open. */
Test(transport, that_is_half_made_leaves_nothing, .init = set_up, .fini = tear_down)
{
    static const struct virtio_ops two_queues = {
        .name = "two", .id = 4, .queue_count = 2, .serve = probe_serve, .reset = probe_reset
    };
    const int notifier = d.transport.notifiers[0].source.fd;
    struct rlimit before;
    struct error e;
    int first, next;

    virtio_mmio_fini(&d.transport);
    virtio_mmio_fini(&d.transport);
    cr_expect_eq(fcntl(notifier, F_GETFD), -1, "the descriptor of the one queue is free");
    first = dup(d.loop.epoll_fd);
    next = dup(d.loop.epoll_fd); /* the one after the only one that is to be had */
    close(first);
    close(next);
    probe.dev.ops = &two_queues;
    cr_assert_eq(getrlimit(RLIMIT_NOFILE, &before), 0);
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &(struct rlimit){ (rlim_t)next, before.rlim_max }), 0);
    cr_expect_eq(driver_attach(&d, &probe.dev, 16, &e), -1);
    cr_expect_str_eq(e.msg, "eventfd: No file descriptors available (os error 24)");
    virtio_mmio_fini(&d.transport);
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
    for (int fd = 0; fd < 3; fd++)
        cr_expect_geq(fcntl(fd, F_GETFD), 0, "stream %d", fd);
    cr_expect_eq(dup(d.loop.epoll_fd), first);
    cr_expect_null(d.transport.device, "nothing is kept");
}

static void end_transport(struct loop_source *src, uint32_t ready)
{
    (void)src;
    (void)ready;
    virtio_mmio_fini(&d.transport);
}

Test(transport, that_is_gone_serves_nothing_of_the_same_turn, .init = set_up, .fini = tear_down)
{
    struct loop_source end = { .fd = eventfd(1, 0), .want = EPOLLIN, .on_ready = end_transport };

    driver_start(&d);
    cr_assert_eq(loop_add(&d.loop, &end), 0);
    loop_signal(d.transport.notifiers[0].source.fd); /* is ready after the other */
    cr_expect(loop_turn(&d.loop, 0));
    cr_expect_null(d.transport.device);
    cr_expect_eq(probe.turns, 0);
    loop_remove(&d.loop, &end);
    close(end.fd);
}

static void write_a_register(void)
{
    reg_write(&d, VIRTIO_MMIO_QUEUE_SEL, 0);
}

static void take_a_turn(void)
{
    driver_serve(&d);
}

static void pause_transport(void)
{
    virtio_mmio_pause(&d.transport);
}

static void resume_transport(void)
{
    virtio_mmio_resume(&d.transport);
}

static void change_device(void)
{
    virtio_lock(&probe.dev);
    virtio_unlock(&probe.dev);
}

/* vCPUs, the event loop, and whoever changes the device. */
Test(transport, is_used_by_one_thread_at_a_time, .init = set_up, .fini = tear_down)
{
    pthread_mutex_t *lock = &d.transport.lock;

    driver_start(&d);
    cr_expect(waits_for(lock, write_a_register));
    cr_expect(waits_for(lock, take_a_turn));
    cr_expect_eq(probe.turns, 1);
    cr_expect(waits_for(lock, pause_transport));
    cr_expect(waits_for(lock, resume_transport));
    cr_expect(waits_for(lock, change_device));
}

/* What is saved. */

static void save(struct virtio_mmio_state *s)
{
    virtio_mmio_pause(&d.transport);
    virtio_mmio_get_state(&d.transport, s);
}

/* A device that has served one chain, interrupted its guest and been told of half a driver's wish;
 * it waits for the next. */
static void use_device(void)
{
    struct chain chain;

    driver_start(&d);
    ring_desc(&d.rings[0], 0, RING_DATA, 4, 0, 0);
    ring_offer(&d.rings[0], 0);
    ring_offer(&d.rings[0], 0);
    cr_assert_eq(virtq_pop(&probe.dev.queues[0], &chain), POP_OK);
    virtq_push(&probe.dev.queues[0], &chain);
    virtio_signal_used(&probe.dev, 0);
    virtio_config_changed(&probe.dev);
    reg_write(&d, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
    reg_write(&d, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
    reg_write(&d, VIRTIO_MMIO_QUEUE_SEL, 0);
}

Test(state, of_a_transport_makes_another_that_a_guest_cannot_tell_apart, .init = set_up,
     .fini = tear_down)
{
    struct virtio_mmio_state saved, again;
    uint8_t page[sizeof(d.page)];
    struct chain chain;

    use_device();
    save(&saved);
    cr_expect_eq(saved.interrupt_status, VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG);
    memcpy(page, d.page, sizeof(page));
    new_probe();
    driver_restore(&d, &probe.dev, &saved);
    virtio_mmio_get_state(&d.transport, &again);
    cr_expect_arr_eq(&again, &saved, sizeof(saved));
    cr_expect_arr_eq(d.page, page, sizeof(page));
    cr_expect_eq(virtio_acked(&probe.dev), FEATURES);
    cr_expect_eq(probe.activations, 1);
    cr_assert_eq(virtq_pop(&probe.dev.queues[0], &chain), POP_OK, "the next chain");
    virtq_push(&probe.dev.queues[0], &chain);
    cr_expect_eq(ring_used_idx(&d.rings[0]), 2);
    run_loop();
    cr_expect_eq(probe.turns, 0, "it is paused");
    virtio_mmio_resume(&d.transport);
    run_loop();
    cr_expect_eq(probe.turns, 1);
    reg_write(&d, VIRTIO_MMIO_STATUS, 0);
    cr_expect_eq(probe.resets, 1);
}

Test(state, half_of_a_handshake_goes_on, .init = set_up, .fini = tear_down)
{
    struct virtio_mmio_state saved;

    reg_write(&d, VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE);
    reg_write(&d, VIRTIO_MMIO_STATUS, DRIVER_STATUS);
    reg_write(&d, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)FEATURES);
    reg_write(&d, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
    save(&saved);
    new_probe();
    driver_restore(&d, &probe.dev, &saved);
    virtio_mmio_resume(&d.transport);
    cr_expect_eq(virtio_acked(&probe.dev), 0);
    reg_write(&d, VIRTIO_MMIO_DRIVER_FEATURES, FEATURES >> 32);
    reg_write(&d, VIRTIO_MMIO_STATUS, DRIVER_STATUS | VIRTIO_CONFIG_S_FEATURES_OK);
    cr_expect_eq(virtio_acked(&probe.dev), FEATURES);
    driver_set_queue(&d, &d.rings[0]);
    driver_ok(&d);
    cr_expect_eq(probe.activations, 1);
}

Test(state, that_no_guest_leads_to_is_refused, .init = set_up, .fini = tear_down)
{
    struct virtio_mmio_state good, bad[9];

    use_device();
    save(&good);
    for (unsigned i = 0; i < sizeof(bad) / sizeof(*bad); i++)
        bad[i] = good;
    bad[0].registers.status = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER_OK;
    bad[1].registers.status |= 0x10;
    bad[2].registers.driver_features |= 1; /* was not offered */
    bad[3].registers.driver_features = 0;
    bad[4].registers.is_activated = false;
    bad[5].registers.status = DRIVER_STATUS | VIRTIO_CONFIG_S_FEATURES_OK; /* and activated */
    bad[6].interrupt_status = 4;
    bad[7].queues[0].size = 3;
    bad[8].queues[0].used = gpa(UINT64_C(1) << 40);
    for (unsigned i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        struct error e;

        new_probe();
        virtio_mmio_fini(&d.transport);
        cr_assert_eq(virtio_mmio_init(&d.transport, &probe.dev, gpa(LAYOUT_VIRTIO), d.page, &d.mem,
                                      &d.loop, &e),
                     0);
        cr_expect_eq(virtio_mmio_set_state(&d.transport, &bad[i]), -EINVAL, "state %u", i);
        cr_expect_eq(probe.activations, 0);
    }
}
