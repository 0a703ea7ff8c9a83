#include "virtio/block.h"

#include <pthread.h>
#include <sys/resource.h>

#include "tests/unit/support/disk.h"
#include "tests/unit/support/lock.h"

/* Drain, pause and reset. */

BOTH(pause_finishes_what_was_begun_and_takes_up_nothing)
{
    fill_ring(VIRTIO_BLK_T_OUT);
    driver_serve(&d);
    virtio_mmio_pause(&d.transport);
    cr_expect_eq(ring_used_idx(ring), 80);
    offer(0, VIRTIO_BLK_T_IN, 0, SECTOR, 1);
    driver_serve(&d);
    cr_expect_eq(ring_used_idx(ring), 80);
    virtio_mmio_resume(&d.transport);
    kick();
    cr_expect_eq(ring_used_idx(ring), 81);
}

/* What the thread below does while the device drains: the host's disk answers late. */
static int slow_disk[2];
static unsigned slow_sectors;

static void *answer_late(void *lock)
{
    uint8_t sector[SECTOR];

    while (pthread_mutex_trylock(lock) == 0) /* the pause holds it */
        pthread_mutex_unlock(lock);
    memset(sector, 0x5c, sizeof(sector));
    for (unsigned i = 0; i < slow_sectors; i++)
        cr_assert_eq(write(slow_disk[1], sector, sizeof(sector)), sizeof(sector));
    return NULL;
}

/* Reads of a pipe that is empty stay under way for as long as the test likes. */
static void read_from_a_slow_disk(unsigned sectors)
{
    struct block_file pipe_end = file;

    slow_sectors = sectors;
    cr_assert_eq(pipe(slow_disk), 0);
    pipe_end.fd = slow_disk[0];
    cr_assert_eq(block_async_set_file(block.host.async, &pipe_end), 0);
}

static void close_slow_disk(void)
{
    cr_assert_eq(block_async_set_file(block.host.async, &file), 0);
    close(slow_disk[0]);
    close(slow_disk[1]);
}

Test(async, pause_waits_for_what_the_host_has_under_way_and_pushes_it)
{
    pthread_t thread;

    read_from_a_slow_disk(80);
    fill_ring(VIRTIO_BLK_T_IN);
    driver_serve(&d);
    cr_assert_eq(ring_used_idx(ring), 0);
    cr_assert_eq(block.operations, 80);
    driver_interrupts(&d);
    cr_assert_eq(pthread_create(&thread, NULL, answer_late, &d.transport.lock), 0);
    virtio_mmio_pause(&d.transport);
    cr_assert_eq(ring_used_idx(ring), 80); /* else the thread waits on */
    cr_expect_eq(block.idle_count, block.request_count);
    cr_expect_eq(driver_interrupts(&d), 1, "one for all");
    for (uint16_t i = 0; i < 80; i++) {
        cr_expect_eq(status_of((uint16_t)(3 * i)), VIRTIO_BLK_S_OK, "request %u", i);
        cr_expect_eq(ring_used(ring, i).len, SECTOR + 1);
    }
    cr_expect_eq(get16(ring, DATA), 0x5c5c);
    pthread_join(thread, NULL);
    close_slow_disk();
}

/* Bounds of a drain. */

Test(async, as_many_bytes_are_under_way_as_a_drain_may_wait_for)
{
    pthread_t thread;

    fill_ring_with_big_reads();
    read_from_a_slow_disk(BLOCK_PIECE_BYTES / SECTOR);
    for (unsigned turn = 0; turn < 4; turn++)
        driver_serve(&d);
    cr_assert_eq(block.operations, BIG_FITTING);
    cr_assert_eq(block.bytes_under_way, BLOCK_PIECE_BYTES);
    cr_expect_not(driver_serve(&d), "a full device does not ask for turns");
    cr_assert_eq(pthread_create(&thread, NULL, answer_late, &d.transport.lock), 0);
    virtio_mmio_pause(&d.transport);
    pthread_join(thread, NULL);
    cr_expect_eq(ring_used_idx(ring), BIG_FITTING);
    cr_expect_eq(d.transport.device->queues[0].state.next_avail, BIG_FITTING);
    close_slow_disk();
    virtio_mmio_resume(&d.transport);
    while (kick())
        ;
    cr_expect_eq(ring_used_idx(ring), BIG_REQUESTS);
    for (uint16_t i = 0; i < BIG_REQUESTS; i++)
        cr_expect_eq(status_of((uint16_t)(3 * i)), VIRTIO_BLK_S_OK, "request %u", i);
}

/* Lets the loop run until so many are answered. */
static void run_until_answered(unsigned n)
{
    virtio_ask_turn(&block.dev, 0);
    while (ring_used_idx(ring) < n)
        cr_assert(loop_turn(&d.loop, 120000), "%u are answered", ring_used_idx(ring));
}

#define HUGE_REQUESTS 12u

static void fill_ring_with_huge_requests(uint32_t type)
{
    make_huge(HUGE_REQUESTS * (uint64_t)HUGE_BYTES);
    for (uint16_t i = 0; i < HUGE_REQUESTS; i++)
        offer_huge(i, type, i * (uint64_t)HUGE_BYTES / SECTOR);
}

/* Those that were answered, in any order, once each; the ring goes on behind them. */
static unsigned huge_answers(void)
{
    unsigned seen = 0;

    for (uint16_t i = 0; i < ring_used_idx(ring); i++) {
        uint32_t head = ring_used(ring, i).id;

        cr_assert_lt(head, HUGE_REQUESTS);
        cr_expect_not(seen & 1u << head, "request %u is answered twice", head);
        cr_expect_eq(status_of((uint16_t)(2 * head)), VIRTIO_BLK_S_OK, "request %u", head);
        seen |= 1u << head;
    }
    for (uint16_t i = 0; i < HUGE_REQUESTS; i++)
        if (!(seen & 1u << i))
            cr_expect_eq(status_of((uint16_t)(2 * i)), UNTOUCHED, "request %u", i);
    return ring_used_idx(ring);
}

static uint64_t bytes_of_the_file(void)
{
    struct stat st;

    cr_assert_eq(fstat(file.fd, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

/* What is written shows in the file's size on the host: a hole has none. */
BOTH(pause_moves_what_is_under_way_and_no_more)
{
    const uint64_t slack = 1 << 20; /* of the file system */
    uint64_t before = bytes_of_the_file();

    fill_ring_with_huge_requests(VIRTIO_BLK_T_OUT);
    cr_assert(driver_serve(&d));
    virtio_mmio_pause(&d.transport);
    cr_expect_leq(bytes_of_the_file(), before + BLOCK_PIECE_BYTES + slack);
    cr_expect_null(block.current);
    cr_expect_eq(block.idle_count, block.request_count);
    cr_expect_eq(huge_answers(), 0);
    cr_expect_eq(block.dev.queues[0].state.next_avail, 0, "it is in the ring again");
}

BOTH(what_a_pause_put_back_is_answered_once)
{
    unsigned put_back = 0;

    fill_ring_with_huge_requests(VIRTIO_BLK_T_OUT);
    for (unsigned n = 1; n <= HUGE_REQUESTS; n++) {
        run_until_answered(n);
        put_back += block.current != NULL;
        virtio_mmio_pause(&d.transport);
        cr_expect_eq(block.dev.queues[0].state.next_avail, huge_answers());
        virtio_mmio_resume(&d.transport);
    }
    cr_expect_eq(huge_answers(), HUGE_REQUESTS);
    cr_expect_gt(put_back, HUGE_REQUESTS / 2);
}

BOTH(a_reset_forgets_what_is_not_done)
{
    fill_ring_with_huge_requests(VIRTIO_BLK_T_OUT);
    cr_assert(driver_serve(&d));
    cr_assert_not_null(block.current);
    driver_start(&d);
    cr_expect_eq(block.idle_count, block.request_count);
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 1, SECTOR, 1), VIRTIO_BLK_S_OK);
    cr_expect_eq(ring_used_idx(ring), 1);
}

BOTH(reset_with_requests_under_way_waits_for_them_and_tells_nobody)
{
    fill_ring(VIRTIO_BLK_T_FLUSH);
    driver_serve(&d);
    reg_write(&d, VIRTIO_MMIO_STATUS, 0);
    cr_expect_eq(block.idle_count, block.request_count);
    driver_start(&d);
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 5, SECTOR, 1), VIRTIO_BLK_S_OK);
    cr_expect_eq(get16(ring, DATA), 0x0505);
}

/* Another file. */

BOTH(swap_gives_the_guest_another_disk_and_tells_it)
{
    struct block_file other = other_file(7);
    uint32_t generation = reg_read(&d, VIRTIO_MMIO_CONFIG_GENERATION);
    char id[BLOCK_ID_BYTES];
    struct error e;

    fill_ring(VIRTIO_BLK_T_OUT);
    driver_serve(&d);
    reg_write(&d, VIRTIO_MMIO_INTERRUPT_ACK, UINT32_MAX);
    cr_assert_eq(block_update(&block, &other, NULL, &e), 0, "%s", e.msg);
    cr_expect_eq(ring_used_idx(ring), 80, "nothing is lost");
    cr_expect_neq(reg_read(&d, VIRTIO_MMIO_CONFIG_GENERATION), generation);
    cr_expect(reg_read(&d, VIRTIO_MMIO_INTERRUPT_STATUS) & VIRTIO_MMIO_INT_CONFIG);
    cr_expect_eq(reg_read(&d, VIRTIO_MMIO_CONFIG), 7);
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 6, SECTOR, 1), VIRTIO_BLK_S_OK);
    cr_expect_eq(get16(ring, DATA), 0xcccc);
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 7, SECTOR, 1), VIRTIO_BLK_S_IOERR);
    cr_expect_eq(request(VIRTIO_BLK_T_GET_ID, 0, BLOCK_ID_BYTES, 1), VIRTIO_BLK_S_OK);
    cr_assert_eq(gmem_get(&d.mem, gpa(DATA), &id), 0);
    cr_expect_arr_eq(id, other.id, BLOCK_ID_BYTES);
    cr_expect_eq(unlink(other_path), 0);
}

BOTH(swap_puts_back_what_is_not_done_and_the_other_disk_answers_it)
{
    struct block_file other = other_file(7);
    struct error e;

    fill_ring_with_huge_requests(VIRTIO_BLK_T_IN);
    cr_assert(driver_serve(&d));
    cr_assert_not_null(block.current);
    cr_assert_eq(block_update(&block, &other, NULL, &e), 0, "%s", e.msg);
    cr_expect_eq(ring_used_idx(ring), 0);
    while (ring_used_idx(ring) < HUGE_REQUESTS)
        cr_assert(loop_turn(&d.loop, 120000), "it has asked for no turn");
    for (uint16_t i = 0; i < HUGE_REQUESTS; i++)
        cr_expect_eq(status_of((uint16_t)(2 * i)), VIRTIO_BLK_S_IOERR, "beyond its end");
    cr_expect_eq(unlink(other_path), 0);
}

BOTH(swap_before_the_driver_is_there_interrupts_nobody)
{
    struct block_file other = other_file(9);
    struct error e;

    reg_write(&d, VIRTIO_MMIO_STATUS, 0);
    driver_interrupts(&d);
    cr_assert_eq(block_update(&block, &other, NULL, &e), 0, "%s", e.msg);
    cr_expect_eq(driver_interrupts(&d), 0);
    driver_start(&d);
    cr_expect_eq(reg_read(&d, VIRTIO_MMIO_CONFIG), 9);
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 8, SECTOR, 1), VIRTIO_BLK_S_OK);
    cr_expect_eq(unlink(other_path), 0);
}

Test(async, swap_that_can_not_be_done_changes_nothing)
{
    struct block_file none = file;
    struct error e;

    none.fd = -1;
    none.sectors = 1;
    close(block_async_fd(block.host.async)); /* the ring is broken */
    cr_expect_eq(block_update(&block, &none, NULL, &e), -1);
    cr_expect_eq(reg_read(&d, VIRTIO_MMIO_CONFIG), DISK_SECTORS);
    cr_expect_neq(file.fd, -1);
}

/* Limits. */

static uint64_t now;

static uint64_t test_clock(void)
{
    return now;
}

static void limit(struct rate_limits limits)
{
    struct error e;

    block.limiter.clock = test_clock;
    block.limiter.counted_ns = now;
    cr_assert_eq(block_update(&block, NULL, &limits, &e), 0, "%s", e.msg);
}

BOTH(requests_over_the_limit_wait_and_none_is_lost)
{
    const uint64_t ms = 1000000;

    limit((struct rate_limits){ .has_ops = true, .ops = { .size = 10, .refill_time_ms = 10 } });
    fill_ring(VIRTIO_BLK_T_IN);
    kick();
    cr_expect_eq(ring_used_idx(ring), 10);
    kick();
    cr_expect_eq(ring_used_idx(ring), 10, "kicking does not help");
    for (unsigned passed = 11; passed <= 80; passed++) {
        now += ms;
        block.limiter.timer.on_ready(&block.limiter.timer, EPOLLIN);
        kick();
        cr_expect_eq(ring_used_idx(ring), passed);
    }
    for (uint16_t i = 0; i < 80; i++)
        cr_expect_eq(status_of((uint16_t)(3 * i)), VIRTIO_BLK_S_OK, "request %u", i);
}

BOTH(a_notification_counts_once_however_often_its_requests_wait)
{
    limit((struct rate_limits){ .has_ops = true, .ops = { .size = 10, .refill_time_ms = 10 } });
    for (uint16_t i = 0; i < 40; i++)
        offer((uint16_t)(3 * i), VIRTIO_BLK_T_IN, i, SECTOR, 1);
    kick();
    for (unsigned i = 0; i < 3; i++) {
        now += 10000000;
        block.limiter.timer.on_ready(&block.limiter.timer, EPOLLIN);
        while (block.operations) {
            struct pollfd results = { .fd = block.results.fd, .events = POLLIN };

            cr_assert_eq(poll(&results, 1, 120000), 1);
            block.results.on_ready(&block.results, EPOLLIN);
        }
    }
    cr_expect_eq(ring_used_idx(&d.rings[0]), 40);
    cr_expect_eq(metric_get(&block.metrics.rate_limiter_event_count), 3);
    cr_expect_eq(metric_get(&block.metrics.queue_event_count), 1);
}

BOTH(the_bandwidth_limit_counts_data)
{
    limit((struct rate_limits){ .has_bandwidth = true,
                                .bandwidth = { .size = 4 * SECTOR, .refill_time_ms = 10 } });
    for (unsigned i = 0; i < 100; i++)
        cr_expect_eq(request(VIRTIO_BLK_T_FLUSH, 0, 0, 0), VIRTIO_BLK_S_OK);
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 0, 3 * SECTOR, 1), VIRTIO_BLK_S_OK);
    cr_expect_eq(request(VIRTIO_BLK_T_OUT, 0, SECTOR, 1), VIRTIO_BLK_S_OK);
    offer(0, VIRTIO_BLK_T_IN, 0, SECTOR, 1);
    kick();
    cr_expect_eq(status_of(0), UNTOUCHED);
    limit((struct rate_limits){ .has_bandwidth = true });
    kick();
    cr_expect_eq(status_of(0), VIRTIO_BLK_S_OK, "a limit that goes lets it pass");
}

/* The limiter's bucket, and how full it is now. */
static uint64_t tokens_left(void)
{
    const struct bucket *bw = &block.limiter.state.bandwidth;

    return bw->size - (uint64_t)(bw->missing / bw->refill_ns);
}

BOTH(what_goes_back_to_the_ring_pays_for_what_was_moved)
{
    const uint64_t size = 10 * (uint64_t)HUGE_BYTES;

    limit((struct rate_limits){ .has_bandwidth = true,
                                .bandwidth = { .size = size, .refill_time_ms = 10 },
                                .has_ops = true,
                                .ops = { .size = 10, .refill_time_ms = 10 } });
    fill_ring_with_huge_requests(VIRTIO_BLK_T_OUT);
    cr_assert(driver_serve(&d));
    cr_expect_eq(tokens_left(), size - HUGE_BYTES);
    virtio_mmio_pause(&d.transport);
    cr_expect_eq(tokens_left(), size - BLOCK_PIECE_BYTES);
    cr_expect_eq(block.limiter.state.ops.missing, 0);
}

/* What a host has to give to a limit. */
BOTH(a_limit_without_a_timer_is_refused_and_changes_nothing)
{
    const struct rate_limits limits = { .has_ops = true,
                                        .ops = { .size = 1, .refill_time_ms = 1000 } };
    struct block_file other = other_file(7);
    struct rlimit before;
    struct error e;

    cr_assert_eq(getrlimit(RLIMIT_NOFILE, &before), 0);
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &(struct rlimit){ 0, before.rlim_max }), 0);
    cr_expect_eq(block_update(&block, &other, &limits, &e), -1);
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
    cr_expect(strstr(e.msg, "Rate limiter: timer: No file descriptors available"), "%s", e.msg);
    cr_expect_eq(reg_read(&d, VIRTIO_MMIO_CONFIG), DISK_SECTORS);
    cr_expect_eq(block.limiter.state.ops.size, 0);
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 5, SECTOR, 1), VIRTIO_BLK_S_OK);
    cr_expect_eq(get16(ring, DATA), 0x0505);
    block_file_close(&other);
    cr_expect_eq(unlink(other_path), 0);
}

static void lift_limit(void)
{
    cr_expect_eq(
        block_update(&block, NULL, &(struct rate_limits){ .has_ops = true }, &(struct error){ 0 }),
        0);
}

BOTH(is_changed_by_one_thread_at_a_time)
{
    cr_expect(waits_for(&d.transport.lock, lift_limit));
}

BOTH(a_request_that_waits_dies_with_a_reset)
{
    limit((struct rate_limits){ .has_ops = true, .ops = { .size = 1, .refill_time_ms = 10 } });
    cr_expect_eq(request(VIRTIO_BLK_T_IN, 0, SECTOR, 1), VIRTIO_BLK_S_OK);
    offer(0, VIRTIO_BLK_T_IN, 0, SECTOR, 1);
    kick();
    reg_write(&d, VIRTIO_MMIO_STATUS, 0);
    block.limiter.timer.on_ready(&block.limiter.timer, EPOLLIN);
    cr_expect_eq(status_of(0), UNTOUCHED);
    cr_expect_eq(block.idle_count, block.request_count);
}

/* Counters. */

BOTH(what_waits_behind_each_request_is_counted)
{
    for (uint16_t i = 0; i < 4; i++)
        offer((uint16_t)(3 * i), VIRTIO_BLK_T_IN, i, SECTOR, 1);
    kick();
    cr_expect_eq(metric_get(&block.metrics.remaining_reqs_count), 3 + 2 + 1);
}

BOTH(a_malformed_ring_is_a_failed_event)
{
    ring_desc(ring, 0, UINT64_C(1) << 40, 16, VRING_DESC_F_NEXT, 1);
    ring_offer(ring, 0);
    kick();
    cr_expect_eq(metric_get(&block.metrics.event_fails), 1);
}

BOTH(a_ring_that_is_nowhere_is_a_failed_activation)
{
    ring->used = UINT64_C(1) << 40;
    cr_assert_not(driver_start_with(&d, offered_features(&d)));
    cr_expect_eq(metric_get(&block.metrics.activate_fails), 1);
    cr_expect(needs_reset(&d));
}

BOTH(a_write_to_the_configuration_is_counted_and_changes_nothing)
{
    reg_write(&d, VIRTIO_MMIO_CONFIG, 1);
    cr_expect_eq(metric_get(&block.metrics.cfg_fails), 1);
    cr_expect_eq(reg_read(&d, VIRTIO_MMIO_CONFIG), DISK_SECTORS);
}

/* What is saved. */

BOTH(a_device_goes_on_in_the_place_of_one_that_was_saved)
{
    const struct rate_limits limits = { .has_ops = true,
                                        .ops = { .size = 10, .refill_time_ms = 10 } };
    struct rate_limiter_state limiter;
    struct virtio_mmio_state saved;
    struct block_host host;
    struct error e;

    limit(limits);
    fill_ring(VIRTIO_BLK_T_IN);
    kick();
    cr_expect_eq(ring_used_idx(&d.rings[0]), 10);
    virtio_mmio_pause(&d.transport);
    virtio_mmio_get_state(&d.transport, &saved);
    rate_limiter_get_state(&block.limiter, &limiter);
    host = block.host;
    host.limits = limits;
    block_fini(&block);
    cr_assert_eq(block_init(&block, &host, &e), 0, "%s", e.msg);
    now = 1;
    block.limiter.clock = test_clock;
    cr_assert_eq(rate_limiter_set_state(&block.limiter, &limiter), 0);
    driver_restore(&d, &block.dev, &saved);
    virtio_mmio_resume(&d.transport);
    kick();
    cr_expect_eq(ring_used_idx(&d.rings[0]), 10, "the limiter is as empty as it was");
    now += 10000000;
    kick();
    cr_expect_eq(ring_used_idx(&d.rings[0]), 20);
    limit((struct rate_limits){ .has_ops = true });
    kick();
    cr_expect_eq(ring_used_idx(&d.rings[0]), 80);
    for (uint16_t i = 0; i < 80; i++)
        cr_expect_eq(status_of((uint16_t)(3 * i)), VIRTIO_BLK_S_OK, "request %u", i);
}

BOTH(a_device_that_is_restored_answers_what_was_put_back)
{
    struct virtio_mmio_state saved;
    struct block_host host;
    struct error e;

    fill_ring_with_huge_requests(VIRTIO_BLK_T_OUT);
    run_until_answered(3);
    cr_assert_not_null(block.current);
    virtio_mmio_pause(&d.transport);
    virtio_mmio_get_state(&d.transport, &saved);
    host = block.host;
    block_fini(&block);
    cr_assert_eq(block_init(&block, &host, &e), 0, "%s", e.msg);
    driver_restore(&d, &block.dev, &saved);
    virtio_mmio_resume(&d.transport);
    run_until_answered(HUGE_REQUESTS);
    cr_expect_eq(huge_answers(), HUGE_REQUESTS);
}
