#include "virtio/rate_limiter.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <sys/timerfd.h>

#define MS UINT64_C(1000000)

static struct rate_limiter l;
static struct loop loop;
static struct error e;
static uint64_t now;
static unsigned refills;

static uint64_t test_clock(void)
{
    return now;
}

static void on_refilled(struct rate_limiter *limiter)
{
    cr_expect_eq(limiter, &l);
    refills++;
}

static const struct rate_limits no_limits;

static void set_up(void)
{
    now = 12345;
    refills = 0;
    cr_assert_eq(loop_init(&loop, &e), 0, "%s", e.msg);
    cr_assert_eq(rate_limiter_init(&l, &loop, test_clock, on_refilled, &no_limits, &e), 0);
}

static void tear_down(void)
{
    rate_limiter_fini(&l);
    loop_fini(&loop);
}

TestSuite(rate_limiter, .init = set_up, .fini = tear_down);

static void update(struct rate_limits limits)
{
    cr_assert_eq(rate_limiter_prepare(&l, &limits, &e), 0, "%s", e.msg);
    rate_limiter_update(&l, &limits);
}

static void limit_bandwidth(uint64_t size, uint64_t refill_ms, uint64_t burst)
{
    update((struct rate_limits){ .has_bandwidth = true, .bandwidth = { size, burst, refill_ms } });
}

static void limit_ops(uint64_t size, uint64_t refill_ms, uint64_t burst)
{
    update((struct rate_limits){ .has_ops = true, .ops = { size, burst, refill_ms } });
}

/* Nanoseconds until the timer fires, rounded up by the few that passed since it was set: at most a
 * second, since tests wait for times far apart. */
static bool timer_is_near(uint64_t ns)
{
    struct itimerspec left;
    uint64_t left_ns;

    cr_assert_eq(timerfd_gettime(l.timer.fd, &left), 0);
    left_ns = (uint64_t)left.it_value.tv_sec * 1000 * MS + (uint64_t)left.it_value.tv_nsec;
    return left_ns <= ns && left_ns + 1000 * MS > ns;
}

Test(rate_limiter, without_buckets_lets_everything_pass_and_needs_no_timer)
{
    update((struct rate_limits){ 0 });
    for (unsigned i = 0; i < 1000; i++)
        cr_expect(rate_limiter_take(&l, UINT64_MAX));
    cr_expect_eq(l.timer.fd, -1);
}

Test(rate_limiter, starts_full_and_passes_what_was_refilled)
{
    limit_bandwidth(1000, 100, 0);
    cr_expect(rate_limiter_take(&l, 600));
    cr_expect(rate_limiter_take(&l, 400));
    cr_expect_not(rate_limiter_take(&l, 1));
    now += 100 * MS / 1000 - 1;
    cr_expect_not(rate_limiter_take(&l, 1), "one nanosecond too early");
    now += 1;
    cr_expect(rate_limiter_take(&l, 1));
    cr_expect_not(rate_limiter_take(&l, 1));
    now += 1000 * MS;
    cr_expect(rate_limiter_take(&l, 1000), "full again, and no fuller");
    cr_expect_not(rate_limiter_take(&l, 1));
}

Test(rate_limiter, counts_operations_whatever_their_size)
{
    limit_ops(3, 30, 0);
    for (unsigned i = 0; i < 3; i++)
        cr_expect(rate_limiter_take(&l, i ? UINT64_MAX : 0));
    cr_expect_not(rate_limiter_take(&l, 0));
    now += 10 * MS;
    cr_expect(rate_limiter_take(&l, 0));
    cr_expect_not(rate_limiter_take(&l, 0));
}

Test(rate_limiter, takes_from_both_buckets_or_from_none)
{
    update((struct rate_limits){ .has_bandwidth = true,
                                 .has_ops = true,
                                 .bandwidth = { .size = 100, .refill_time_ms = 100 },
                                 .ops = { .size = 10, .refill_time_ms = 10 } });
    cr_expect(rate_limiter_take(&l, 100));
    for (unsigned i = 0; i < 20; i++)
        cr_expect_not(rate_limiter_take(&l, 1));
    for (unsigned i = 0; i < 9; i++)
        cr_expect(rate_limiter_take(&l, 0), "refused requests cost no operation");
    cr_expect_not(rate_limiter_take(&l, 0));
}

Test(rate_limiter, spends_the_burst_first_and_once)
{
    limit_bandwidth(100, 100, 250);
    cr_expect(rate_limiter_take(&l, 240));
    cr_expect(rate_limiter_take(&l, 110), "the last 10 of the burst and all of the bucket");
    cr_expect_not(rate_limiter_take(&l, 1));
    now += 3600 * 1000 * MS;
    cr_expect(rate_limiter_take(&l, 100));
    cr_expect_not(rate_limiter_take(&l, 1), "the burst does not come back");
}

Test(rate_limiter, passes_a_huge_request_when_full_and_lets_it_pay_in_time)
{
    limit_bandwidth(1000, 100, 0);
    cr_expect(rate_limiter_take(&l, 5000));
    now += 500 * MS - 1;
    cr_expect_not(rate_limiter_take(&l, 1000), "five times the bucket is five refill times");
    now += 1;
    cr_expect(rate_limiter_take(&l, 1000));
    cr_expect_not(rate_limiter_take(&l, 5000));
    now += 100 * MS - 1;
    cr_expect_not(rate_limiter_take(&l, 5000), "not yet full");
    now += 1;
    cr_expect(rate_limiter_take(&l, 5000));
}

Test(rate_limiter, takes_back_an_operation_and_what_it_did_not_move)
{
    limit_bandwidth(100, 1000, 0);
    limit_ops(1, 1000, 0);
    cr_expect(rate_limiter_take(&l, 100));
    cr_expect_not(rate_limiter_take(&l, 60));
    rate_limiter_refund(&l, 60);
    cr_expect_not(rate_limiter_take(&l, 61));
    cr_expect(rate_limiter_take(&l, 60));
}

Test(rate_limiter, keeps_time_without_drift)
{
    /* 7 tokens in 3 ms: no whole number of nanoseconds a token. Asked at odd moments for 10^9 ns,
     * it must give floor(7 * 10^9 / 3 * 10^6) tokens, and the 7 it starts with. */
    const uint64_t start = now, end = now + 1000 * MS;
    uint64_t taken = 0, step = 1;

    limit_ops(7, 3, 0);
    while (now < end) {
        while (rate_limiter_take(&l, 0))
            taken++;
        step = step * 31 % 104729 + 1;
        now += step;
        if (now > end)
            now = end;
    }
    while (rate_limiter_take(&l, 0))
        taken++;
    cr_expect_eq(taken, 7 + 7 * (end - start) / (3 * MS));
}

Test(rate_limiter, never_wraps)
{
    static const uint64_t values[] = { 1,         2,          1000,           UINT32_MAX,
                                       INT64_MAX, UINT64_MAX, UINT64_MAX / MS };
    const unsigned n = sizeof(values) / sizeof(*values);

    for (unsigned i = 0; i < n * n * n; i++) {
        uint64_t size = values[i % n], refill_ms = values[i / n % n], bytes = values[i / n / n];

        tear_down();
        set_up();
        limit_bandwidth(size, refill_ms, 0);
        cr_expect(rate_limiter_take(&l, bytes), "full: %lu of %lu", bytes, size);
        if (refill_ms > UINT64_MAX / MS)
            continue; /* no limit */
        cr_expect_eq(rate_limiter_take(&l, size), false, "%lu / %lu ms", size, refill_ms);
        now = UINT64_MAX;
        if (bytes == size && refill_ms <= INT64_MAX / MS)
            cr_expect(rate_limiter_take(&l, bytes), "%lu / %lu ms", size, refill_ms);
    }
}

Test(rate_limiter, arms_the_timer_for_the_moment_of_the_refill)
{
    limit_bandwidth(1000, 3600 * 1000, 0);
    cr_expect(rate_limiter_take(&l, 1000));
    cr_expect_not(rate_limiter_take(&l, 500));
    cr_expect(timer_is_near(1800 * 1000 * MS));
    cr_expect_not(rate_limiter_take(&l, 1000));
    cr_expect(timer_is_near(3600 * 1000 * MS), "for whoever asked last");
}

Test(rate_limiter, calls_its_owner_from_the_loop)
{
    limit_ops(1, 1, 0);
    cr_expect(rate_limiter_take(&l, 0));
    cr_expect_not(rate_limiter_take(&l, 0));
    cr_expect(loop_turn(&loop, 120000));
    cr_expect_eq(refills, 1);
    cr_expect_not(loop_turn(&loop, 0), "once");
}

Test(rate_limiter, update_replaces_what_is_given_and_keeps_the_rest)
{
    update((struct rate_limits){ .has_bandwidth = true,
                                 .has_ops = true,
                                 .bandwidth = { .size = 100, .refill_time_ms = 100 },
                                 .ops = { .size = 2, .refill_time_ms = 100 } });
    cr_expect(rate_limiter_take(&l, 100));
    limit_bandwidth(50, 100, 0);
    cr_expect(rate_limiter_take(&l, 50), "a new bucket is full");
    cr_expect_not(rate_limiter_take(&l, 0), "the other one goes on from where it was");
    limit_ops(0, 0, 0);
    for (unsigned i = 0; i < 10; i++)
        cr_expect(rate_limiter_take(&l, 0), "removed");
    cr_expect_not(rate_limiter_take(&l, 50));
    limit_bandwidth(UINT64_MAX, UINT64_MAX, 0);
    cr_expect(rate_limiter_take(&l, UINT64_MAX), "refilled never: as good as none, as in the API");
}

Test(rate_limiter, update_wakes_whoever_waits)
{
    struct pollfd fd = { .events = POLLIN };

    limit_ops(1, 3600 * 1000, 0);
    cr_expect(rate_limiter_take(&l, 0));
    cr_expect_not(rate_limiter_take(&l, 0));
    limit_ops(0, 0, 0);
    fd.fd = l.timer.fd;
    cr_assert_eq(poll(&fd, 1, 120000), 1);
    cr_expect(rate_limiter_take(&l, 0));
}

Test(rate_limiter, update_wakes_nobody_where_nobody_waits)
{
    struct itimerspec set;

    limit_ops(0, 0, 0); /* there is no timer yet */
    cr_expect_eq(l.timer.fd, -1);
    limit_ops(1, 3600 * 1000, 0);
    cr_assert_eq(timerfd_gettime(l.timer.fd, &set), 0);
    cr_expect(set.it_value.tv_sec == 0 && set.it_value.tv_nsec == 0);
}

Test(rate_limiter, goes_on_from_a_state_by_another_clock)
{
    const struct rate_limits limits = { .has_bandwidth = true,
                                        .has_ops = true,
                                        .bandwidth = { 1000, 50, 100 },
                                        .ops = { .size = 10, .refill_time_ms = 1000 } };
    struct rate_limiter_state saved, again;

    update(limits);
    cr_expect(rate_limiter_take(&l, 1050));
    now += 10 * MS; /* 100 tokens, and a tenth of an operation */
    rate_limiter_get_state(&l, &saved);
    tear_down();
    now = 77; /* of a host that started a moment ago */
    cr_assert_eq(loop_init(&loop, &e), 0, "%s", e.msg);
    cr_assert_eq(rate_limiter_init(&l, &loop, test_clock, on_refilled, &limits, &e), 0);
    cr_assert_eq(rate_limiter_set_state(&l, &saved), 0);
    rate_limiter_get_state(&l, &again);
    cr_expect_arr_eq(&again, &saved, sizeof(saved));
    cr_expect_not(rate_limiter_take(&l, 101));
    cr_expect(rate_limiter_take(&l, 100));
    now += 10 * MS;
    cr_expect(rate_limiter_take(&l, 100));
    cr_expect_not(rate_limiter_take(&l, 1));
}

Test(rate_limiter, refuses_a_state_without_tokens_that_fills)
{
    struct rate_limiter_state saved = { .ops = { .refill_ns = 1, .missing = 1 } };

    limit_ops(10, 10, 0);
    cr_expect_eq(rate_limiter_set_state(&l, &saved), -EINVAL);
    cr_expect(rate_limiter_take(&l, 1), "and goes on as it was");
}

Test(rate_limiter, fini_works_on_one_that_was_never_set_up)
{
    struct rate_limiter zero = { 0 };

    rate_limiter_fini(&zero);
}
