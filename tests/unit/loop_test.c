#include "vmm/base/loop.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <unistd.h>

static struct loop loop;
static struct error e;

static void set_up(void)
{
    cr_assert_eq(loop_init(&loop, &e), 0, "%s", e.msg);
}

static void tear_down(void)
{
    loop_fini(&loop);
}

TestSuite(loop, .init = set_up, .fini = tear_down);

struct probe {
    struct loop_source source;
    unsigned calls;
    struct probe *removes;
};

static void on_probe(struct loop_source *src, uint32_t ready)
{
    struct probe *p = owner_of(src, struct probe, source);

    cr_expect(ready & EPOLLIN);
    p->calls++;
    loop_drain(src->fd);
    if (p->removes)
        loop_remove(&loop, &p->removes->source);
    loop_stop(&loop, (int)p->calls);
}

static struct probe probe_new(uint32_t want)
{
    return (struct probe){ .source = { eventfd(1, EFD_NONBLOCK), want, on_probe } };
}

Test(loop, calls_what_is_ready_and_returns_the_first_exit_code)
{
    struct probe p = probe_new(EPOLLIN);

    cr_assert_eq(loop_add(&loop, &p.source), 0);
    cr_expect_eq(loop_run(&loop), 1);
    loop_stop(&loop, 9);
    cr_expect_eq(loop_run(&loop), 1, "the first call's code counts");
    cr_expect_eq(p.calls, 1);
}

Test(loop, drops_events_of_a_source_that_a_callback_removed)
{
    struct probe a = probe_new(EPOLLIN), b = probe_new(EPOLLIN);

    /* Whichever is served first removes the other. */
    a.removes = &b;
    b.removes = &a;
    cr_assert_eq(loop_add(&loop, &a.source), 0);
    cr_assert_eq(loop_add(&loop, &b.source), 0);
    loop_run(&loop);
    loop.stopping = 0;
    loop.batch_next = loop.batch_count = 0;
    cr_expect_eq(a.calls + b.calls, 1);
}

Test(loop, lets_a_callback_remove_its_own_source)
{
    struct probe p = probe_new(EPOLLIN);

    p.removes = &p;
    cr_assert_eq(loop_add(&loop, &p.source), 0);
    loop_run(&loop);
    cr_expect_eq(p.calls, 1);
    cr_assert_eq(loop_add(&loop, &p.source), 0, "it can be added again");
}

Test(loop, refuses_a_file_that_cannot_be_polled)
{
    struct probe p = { .source = { open("/proc/self/exe", O_RDONLY), EPOLLIN, on_probe } };

    cr_expect_eq(loop_add(&loop, &p.source), -EPERM);
}

Test(loop, removes_a_source_that_was_never_added)
{
    struct loop_source none = { .fd = -1 };

    loop_remove(&loop, &none);
}

static void on_fired(struct loop_source *src, uint32_t ready)
{
    struct probe *p = owner_of(src, struct probe, source);

    cr_expect(ready & EPOLLIN);
    p->calls++;
    loop_drain(src->fd);
}

Test(loop, calls_for_a_timer_once_each_time_it_fires)
{
    const struct itimerspec at_once = { .it_value = { 0, 1 } };
    struct probe p = { 0 };

    cr_assert_eq(loop_add_timer(&loop, &p.source, on_fired), 0);
    cr_expect_not(loop_turn(&loop, 0), "it is not set yet");
    for (unsigned i = 1; i <= 2; i++) {
        cr_assert_eq(timerfd_settime(p.source.fd, 0, &at_once, NULL), 0);
        cr_assert(loop_turn(&loop, 120000));
        cr_expect_eq(p.calls, i);
        cr_expect_not(loop_turn(&loop, 0));
    }
    loop_remove_timer(&loop, &p.source);
    cr_expect_eq(p.source.fd, -1);
    loop_remove_timer(&loop, &p.source);
}

Test(loop, has_no_timer_where_the_host_has_none_or_cannot_watch_it)
{
    int next = dup(0); /* the lowest that is free */
    struct probe p = { 0 };
    struct rlimit before;

    close(next);
    loop_fini(&loop);
    cr_expect_eq(loop_add_timer(&loop, &p.source, on_fired), -EBADF);
    cr_expect_eq(p.source.fd, -1);
    cr_assert_eq(getrlimit(RLIMIT_NOFILE, &before), 0);
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &(struct rlimit){ 0, before.rlim_max }), 0);
    cr_expect_eq(loop_add_timer(&loop, &p.source, on_fired), -EMFILE);
    cr_expect_eq(p.source.fd, -1);
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
    cr_assert_eq(loop_init(&loop, &e), 0, "%s", e.msg);
    cr_expect_leq(loop.epoll_fd, next, "no descriptor was left behind");
}

Test(loop_drain, gives_the_count_and_then_nothing)
{
    int fd = eventfd(0, EFD_NONBLOCK);
    const uint64_t five = 5;

    cr_expect_eq(loop_drain(fd), 0);
    cr_assert_eq(write(fd, &five, sizeof(five)), sizeof(five));
    cr_expect_eq(loop_drain(fd), 5);
    cr_expect_eq(loop_drain(fd), 0);
}
