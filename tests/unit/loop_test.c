#include "vmm/loop.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>

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

Test(loop_drain, gives_the_count_and_then_nothing)
{
    int fd = eventfd(0, EFD_NONBLOCK);
    const uint64_t five = 5;

    cr_expect_eq(loop_drain(fd), 0);
    cr_assert_eq(write(fd, &five, sizeof(five)), sizeof(five));
    cr_expect_eq(loop_drain(fd), 5);
    cr_expect_eq(loop_drain(fd), 0);
}
