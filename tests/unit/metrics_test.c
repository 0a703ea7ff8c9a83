#include "vmm/base/metrics.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/timerfd.h>

#include "tests/unit/support/files.h"
#include "vmm/base/clock.h"

static char path[] = NEW_FILE;
static struct error e;
static char text[1 << 20];
static struct json_object *parsed; /* an array of what parse() gave: freed at the end of a test */

static void set_up(void)
{
    close(new_file(path));
    parsed = json_object_new_array();
}

static void tear_down(void)
{
    unlink(path);
    json_object_put(parsed);
}

TestSuite(metrics, .init = set_up, .fini = tear_down);

static void open_at(const char *where, bool emit_id, const char *properties)
{
    const struct metrics_config config = { (char *)where, (char *)properties, emit_id };

    cr_assert_eq(metrics_open(&config, "vm-1", &e), 0, "%s", e.msg);
}

static struct json_object *parse(const char *at)
{
    struct json_object *o = json_tokener_parse(at);

    if (o)
        json_object_array_add(parsed, o);
    return o;
}

/* The n-th line that was written, parsed. */
static struct json_object *line(unsigned n)
{
    char *at = read_text(path, text, sizeof(text));
    struct json_object *o;

    for (; n > 0 && at; n--) {
        at = strchr(at, '\n');
        at = at ? at + 1 : NULL;
    }
    cr_assert(at && strchr(at, '\n'), "no such line");
    *strchr(at, '\n') = '\0';
    o = parse(at);
    cr_assert(o, "%s", at);
    return o;
}

static struct json_object *member(struct json_object *o, const char *name)
{
    struct json_object *v = json_object_object_get(o, name);

    cr_assert(v, "no %s", name);
    return v;
}

static uint64_t number(struct json_object *o, const char *group, const char *name)
{
    return json_object_get_uint64(member(member(o, group), name));
}

Test(metrics, are_lines_with_every_group)
{
    static const char *const groups[] = {
        "api_server",
        "balloon",
        "block",
        "deprecated_api",
        "entropy",
        "i8042",
        "get_api_requests",
        "interrupts",
        "latencies_us",
        "logger",
        "mmds",
        "memory_hotplug",
        "net",
        "patch_api_requests",
        "pmem",
        "seccomp",
        "put_api_requests",
        "signals",
        "uart",
        "vcpu",
        "vmm",
        "vsock",
    };
    struct json_object *o;

    open_at(path, false, NULL);
    metrics_write();
    o = line(0);
    for (size_t i = 0; i < sizeof(groups) / sizeof(*groups); i++)
        member(o, groups[i]);
    cr_expect_eq(json_object_object_length(o), sizeof(groups) / sizeof(*groups) + 1);
    cr_expect_gt(json_object_get_uint64(member(o, "utc_timestamp_ms")), 1700000000000);
}

Test(metrics, show_id_and_properties_on_request)
{
    struct json_object *o;

    open_at(path, true, "{\"a\": [1, \"x\"]}");
    metrics_write();
    o = line(0);
    cr_expect_str_eq(json_object_get_string(member(o, "id")), "vm-1");
    cr_expect_str_eq(json_object_to_json_string_ext(member(o, "properties"), 0),
                     "{\"a\":[1,\"x\"]}");
}

Test(metrics, are_differences_but_for_values)
{
    open_at(path, false, NULL);
    metric_add(&metrics.uart.read_count, 3);
    metric_set(&metrics.latencies_us.pause_vm, 7);
    metrics_write();
    metric_add(&metrics.uart.read_count, 2);
    metrics_write();
    metrics_write();
    cr_expect_eq(number(line(0), "uart", "read_count"), 3);
    cr_expect_eq(number(line(1), "uart", "read_count"), 2);
    cr_expect_eq(number(line(2), "uart", "read_count"), 0);
    cr_expect_eq(number(line(0), "latencies_us", "pause_vm"), 7);
    cr_expect_eq(number(line(2), "latencies_us", "pause_vm"), 7);
}

Test(metrics, of_a_kind_are_the_sum_of_its_devices)
{
    struct block_metrics a = { 0 }, b = { 0 };
    struct json_object *o;

    metrics_add_source(METRICS_OF_BLOCK, "r", &a);
    metrics_add_source(METRICS_OF_BLOCK, "d\"1", &b);
    open_at(path, false, NULL);
    metric_add(&a.read_bytes, 10);
    metric_add(&b.read_bytes, 5);
    metric_set(&a.read_agg.min_us, 9);
    metric_set(&a.read_agg.max_us, 20);
    metric_set(&b.read_agg.min_us, 4);
    metric_set(&b.read_agg.max_us, 6);
    metric_set(&b.read_agg.sum_us, 10);
    metrics_write();
    o = line(0);
    cr_expect_eq(number(o, "block_r", "read_bytes"), 10);
    cr_expect_eq(number(o, "block_d\"1", "read_bytes"), 5);
    cr_expect_eq(number(o, "block", "read_bytes"), 15);
    o = member(member(o, "block"), "read_agg");
    cr_expect_eq(json_object_get_uint64(member(o, "min_us")), 4);
    cr_expect_eq(json_object_get_uint64(member(o, "max_us")), 20);
    cr_expect_eq(json_object_get_uint64(member(o, "sum_us")), 10);
}

Test(metrics, of_devices_go_with_them)
{
    struct block_metrics a = { .read_bytes = 1 };
    struct json_object *o;

    open_at(path, false, NULL);
    metrics_add_source(METRICS_OF_BLOCK, "r", &a);
    metrics_forget_sources();
    metrics_write();
    o = line(0);
    cr_expect_null(json_object_object_get(o, "block_r"));
    cr_expect_eq(number(o, "block", "read_bytes"), 0);
    metrics_add_source(METRICS_OF_BLOCK, "s", &a); /* in its place: nothing leaks */
    metrics_forget_sources();
}

Test(metrics, can_not_be_opened_twice)
{
    const struct metrics_config again = { .metrics_path = path };

    open_at(path, false, NULL);
    cr_expect_eq(metrics_open(&again, "vm-1", &e), -1);
    cr_expect_str_eq(e.msg, "Cannot initialize the metrics system due to bad user input: "
                            "Reinitialization of metrics not allowed.");
}

Test(metrics, may_be_opened_after_a_path_that_was_refused)
{
    const struct metrics_config bad = { .metrics_path = (char *)"/nowhere/m" };

    cr_expect_eq(metrics_open(&bad, "vm-1", &e), -1);
    cr_expect_str_eq(e.msg, "Cannot initialize the metrics system due to bad user input: No such "
                            "file or directory (os error 2) /nowhere/m");
    open_at(path, false, NULL);
}

/* A pipe that nobody reads fills up, in the middle of a line. */
Test(metrics, of_a_full_fifo_come_as_whole_lines_and_nothing_is_forgotten)
{
    uint64_t refused = 0, missed, sum = 0, lines = 0;
    char *state = NULL, *at;
    ssize_t got;
    int fd;

    unlink(path);
    cr_assert_eq(mkfifo(path, 0600), 0);
    open_at(path, false, "\"odd, so that no line ends where a page does\"");
    fd = open(path, O_RDONLY | O_NONBLOCK);
    for (unsigned i = 0; i < 100; i++) {
        int ret;

        metric_inc(&metrics.uart.write_count);
        ret = metrics_write();
        cr_assert(ret == 0 || ret == -EAGAIN);
        refused += ret < 0;
    }
    got = read(fd, text, sizeof(text) - 1);
    cr_assert_neq(text[got - 1], '\n', "a line is cut");
    missed = metric_get(&metrics.logger.missed_metrics_count);
    cr_expect_eq(missed, refused - 1, "which is not lost");
    cr_expect_eq(metrics_write(), 0);
    got += read(fd, text + got, sizeof(text) - 1 - (size_t)got);
    text[got] = '\0';
    for (at = strtok_r(text, "\n", &state); at; at = strtok_r(NULL, "\n", &state), lines++) {
        struct json_object *o = parse(at);

        cr_assert(o, "%s", at);
        sum += number(o, "uart", "write_count");
    }
    cr_expect_eq(lines, 101 - missed);
    cr_expect_eq(sum, 100);
}

Test(metrics, of_more_devices_than_a_line_has_room_for_are_told_later)
{
    static struct net_metrics nets[100];
    static char id[1500];

    open_at(path, false, NULL);
    memset(id, 'x', sizeof(id) - 1);
    for (unsigned i = 0; i < 100; i++)
        metrics_add_source(METRICS_OF_NET, id, &nets[i]);
    metric_inc(&metrics.uart.write_count);
    cr_expect_eq(metrics_write(), -EMSGSIZE);
    cr_expect_eq(metric_get(&metrics.logger.metrics_fails), 1);
    metrics_forget_sources();
    cr_expect_eq(metrics_write(), 0);
    cr_expect_eq(number(line(0), "uart", "write_count"), 1);
    cr_expect_eq(number(line(0), "logger", "metrics_fails"), 1);
}

/* The descriptor of the only timer in this process. */
static int timer_fd(void)
{
    for (int fd = 3; fd < 64; fd++) {
        char link[64], target[64] = "";

        snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
        if (readlink(link, target, sizeof(target) - 1) > 0 && strstr(target, "[timerfd]"))
            return fd;
    }
    return -1;
}

static unsigned line_count(void)
{
    unsigned n = 0;

    for (const char *at = read_text(path, text, sizeof(text)); *at; at++)
        n += *at == '\n';
    return n;
}

static unsigned missed;

static void count_missed(int os_errno)
{
    cr_expect_eq(os_errno, EBADF);
    missed++;
}

Test(metrics, are_written_at_the_start_and_each_minute)
{
    const struct itimerspec at_once = { { 60, 0 }, { 0, 1 } };
    struct itimerspec set;
    struct epoll_event ready;
    struct loop_source *src;
    struct loop loop;
    int metrics_fd;

    metrics_fd = open("/", O_PATH);
    close(metrics_fd);
    open_at(path, false, NULL); /* as the next descriptor */
    cr_assert_eq(loop_init(&loop, &e), 0);
    cr_assert_eq(metrics_start(&loop, count_missed, &e), 0);
    cr_expect_eq(line_count(), 1);
    cr_assert_eq(timerfd_gettime(timer_fd(), &set), 0);
    cr_expect_eq(set.it_interval.tv_sec, 60);
    cr_expect_eq(set.it_interval.tv_nsec, 0);
    cr_expect(set.it_value.tv_sec >= 59 || set.it_value.tv_nsec > 0, "it runs");
    cr_assert_eq(timerfd_settime(timer_fd(), 0, &at_once, NULL), 0); /* the minute is over */
    cr_assert_eq(epoll_wait(loop.epoll_fd, &ready, 1, -1), 1);
    src = ready.data.ptr;
    src->on_ready(src, ready.events);
    cr_expect_eq(line_count(), 2);
    cr_expect_eq(epoll_wait(loop.epoll_fd, &ready, 1, 0), 0, "and waits for the next");
    cr_expect_eq(missed, 0);
    close(metrics_fd);
    src->on_ready(src, EPOLLIN);
    cr_expect_eq(missed, 1, "and somebody hears of one that is lost");
    loop_fini(&loop);
}

Test(metrics, without_a_place_are_not_written)
{
    metrics_write();
    cr_expect_eq(metrics.logger.missed_metrics_count, 0);
}

static void *count_up(void *arg)
{
    for (unsigned i = 0; i < 100000; i++)
        metric_inc(&metrics.vsock.rx_bytes_count);
    return arg;
}

Test(metrics, lose_nothing_between_threads)
{
    pthread_t threads[4];
    uint64_t sum = 0;

    open_at(path, false, NULL);
    for (unsigned i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, count_up, NULL);
    for (unsigned i = 0; i < 20; i++)
        metrics_write();
    for (unsigned i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    metrics_write();
    for (unsigned i = 0; i < 21; i++)
        sum += number(line(i), "vsock", "rx_bytes_count");
    cr_expect_eq(sum, 400000);
}

static unsigned shown;

static void check_sample(void *context, const struct metrics_sample *s)
{
    const char *wanted = context;

    if (strcmp(s->group, "block") == 0 && strcmp(s->name, "read_bytes") == 0) {
        cr_expect_str_eq(s->id, wanted);
        cr_expect_eq(s->type, METRIC_COUNTER);
        cr_expect_eq(s->value, 5);
        shown++;
    }
}

Test(metrics, are_shown_by_device_and_since_the_beginning)
{
    struct block_metrics a = { .read_bytes = 5 };

    metrics_add_source(METRICS_OF_BLOCK, "r", &a);
    open_at(path, false, NULL);
    metrics_write();
    metrics_each(check_sample, (void *)(uintptr_t) "r");
    cr_expect_eq(shown, 1);
}

/* For whom the difference between two times is of use, and for whom the last value. */
static void check_types(void *context, const struct metrics_sample *s)
{
    enum metric_type type = strcmp(s->group, "latencies_us") == 0 ? METRIC_VALUE : METRIC_COUNTER;

    (void)context;
    cr_expect(s->help && s->help[0], "%s.%s", s->group, s->name);
    cr_expect_str_neq(s->group, "pmem");
    if (strstr(s->name, "_agg"))
        type = METRIC_LATENCY;
    else if (strcmp(s->group, "block") != 0 && type != METRIC_VALUE)
        return;
    cr_expect_eq(s->type, type, "%s.%s", s->group, s->name);
    shown++;
}

Test(metrics, are_shown_as_counters_only_where_they_rise_for_ever)
{
    metrics_each(check_types, NULL);
    cr_expect_gt(shown, 20);
}

Test(latency_record, keeps_the_least_the_most_and_the_sum)
{
    struct latency l = { 0 };
    uint64_t now = monotonic_us();

    latency_record(&l, now - 1000000);
    latency_record(&l, now - 5000000);
    cr_expect(l.min_us >= 1000000 && l.min_us < 5000000);
    cr_expect_geq(l.max_us, 5000000);
    cr_expect_geq(l.sum_us, 6000000);
}

/* Those of a minute and more have the last place, which has no end. */
Test(latency_record, counts_by_how_long_it_was)
{
    struct latency l = { 0 };
    uint64_t now = monotonic_us();

    latency_record(&l, now - LATENCY_BELOW_US(5));
    latency_record(&l, now - LATENCY_BELOW_US(7) + 100000);
    latency_record(&l, now - 60000000);
    latency_record(&l, now + 1000000); /* a clock that went back */
    cr_expect_eq(l.buckets[6], 1);
    cr_expect_eq(l.buckets[7], 1);
    cr_expect_eq(l.buckets[LATENCY_BUCKETS - 1], 2);
}
