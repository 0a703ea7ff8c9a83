#include "vmm/base/log.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <regex.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>

#include "tests/unit/support/files.h"
#include "vmm/base/clock.h"
#include "vmm/base/metrics.h"

static char path[] = NEW_FILE;
static char text[8192];
static struct error e;

static void set_up(void)
{
    close(new_file(path));
    cr_assert_eq(log_open(path, &e), 0, "%s", e.msg);
}

static void tear_down(void)
{
    unlink(path);
}

TestSuite(log, .init = set_up, .fini = tear_down);
TestSuite(log_limited, .init = set_up, .fini = tear_down);

static const char *logged(void)
{
    return read_text(path, text, sizeof(text));
}

static bool matches(const char *line, const char *pattern)
{
    regex_t re;
    bool ok;

    cr_assert_eq(regcomp(&re, pattern, REG_EXTENDED | REG_NOSUB), 0);
    ok = regexec(&re, line, 0, NULL, 0) == 0;
    regfree(&re);
    return ok;
}

#define TIME "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{9} "

Test(log, has_the_documented_form)
{
    log_set_instance("vm-1");
    log_info("a %d", 5);
    cr_expect(matches(logged(), TIME "\\[vm-1:main\\] a 5\n$"), "%s", text);
}

Test(log, shows_level_and_origin_on_request)
{
    log_set_options((struct log_options){ LOG_DEBUG, true, true, NULL });
    log_warn("x");
    log_debug("y");
    cr_expect(matches(logged(), "\\[[^]]*:main:WARN:[^]]*log_test.c:[0-9]+\\] x\n"), "%s", text);
    cr_expect(strstr(text, ":DEBUG:"), "%s", text);
}

Test(log, is_one_object_a_line_as_json_whatever_is_in_it)
{
    log_set_instance("vm-1");
    log_set_json();
    log_error("a \"b\\\n\x1b\x7f \xc3\xa4 \xff\xc3");
    cr_expect(matches(logged(),
                      "^\\{\"time\":\"[-0-9]{10}T[0-9:]{8}\\.[0-9]{9}[+-][0-9]{2}:[0-9]{2}\","
                      "\"id\":\"vm-1\",\"thread\":\"main\",\"message\":\""
                      "a \\\\\"b\\\\\\\\\\\\u000a\\\\u001b\\\\u007f \xc3\xa4 "
                      "\\\\ufffd\\\\ufffd\"\\}\n$"),
              "%s", text);
    log_set_options((struct log_options){ LOG_DEBUG, true, true, NULL });
    log_signal(&(siginfo_t){ .si_signo = SIGPIPE, .si_code = 0 }, false);
    cr_expect(matches(logged(), "\"level\":\"ERROR\",\"origin\":\"[^\"]*log.c:[0-9]+\",\"message\":"
                                "\"Received signal 13, code 0\\.\"\\}\n$"),
              "%s", text);
}

/* At each place where an escape can meet the end. */
Test(log, is_whole_json_where_it_is_cut)
{
    char huge[2100];

    log_set_json();
    for (unsigned before = 0; before < 6; before++) {
        memset(huge, '\n', sizeof(huge) - 1);
        memset(huge, 'x', before);
        huge[sizeof(huge) - 1] = 0;
        cr_assert_eq(truncate(path, 0), 0);
        log_info("%s", huge);
        cr_expect_gt(strlen(logged()), 2030);
        cr_expect_leq(strlen(text), 2048);
        cr_expect(matches(text, "[^\\\\](\\\\u000a)+\"\\}\n$"), "%s", text);
    }
}

Test(log, leaves_out_what_is_below_its_level)
{
    log_set_options((struct log_options){ .level = LOG_WARN });
    log_info("quiet");
    log_debug("quiet");
    log_error("loud");
    cr_expect_null(strstr(logged(), "quiet"));
    cr_expect(strstr(text, "loud"));
    log_set_options((struct log_options){ .level = LOG_OFF });
    log_error("never");
    cr_expect_null(strstr(logged(), "never"));
}

static void *log_from_thread(void *arg)
{
    prctl(PR_SET_NAME, "fc_vcpu 3");
    log_info("from a vCPU");
    return arg;
}

Test(log, names_the_thread)
{
    pthread_t thread;

    pthread_create(&thread, NULL, log_from_thread, NULL);
    pthread_join(thread, NULL);
    cr_expect(strstr(logged(), ":fc_vcpu 3] from a vCPU\n"), "%s", text);
}

Test(log, cuts_a_line_that_is_too_long)
{
    char *huge = malloc(100000);

    memset(huge, 'x', 99999);
    huge[99999] = 0;
    log_info("%s", huge);
    log_info("next");
    free(huge);
    cr_expect_lt(strlen(logged()), 4096);
    cr_expect(matches(text, "x\n[0-9T:.-]+ \\[[^]]*\\] next\n$"));
}

Test(log, waits_for_no_reader_of_a_fifo_and_counts_what_is_lost)
{
    char fifo[64];
    uint64_t before = metric_get(&metrics.logger.missed_log_count);

    snprintf(fifo, sizeof(fifo), "%s.fifo", path);
    cr_assert_eq(mkfifo(fifo, 0600), 0);
    cr_assert_eq(log_open(fifo, &e), 0, "%s", e.msg);
    for (unsigned i = 0; i < 3000; i++)
        log_info("a line of some length, so that the pipe is full at some time");
    cr_expect_gt(metric_get(&metrics.logger.missed_log_count), before);
    unlink(fifo);
}

Test(log, keeps_its_sink_when_another_cannot_be_opened)
{
    cr_expect_eq(log_open("/nowhere/log", &e), -1);
    cr_expect_str_eq(e.msg, "Failed to open target file: No such file or directory (os error 2) "
                            "/nowhere/log");
    log_info("still here");
    cr_expect(strstr(logged(), "still here"));
}

Test(log_level_parse, knows_each_name_in_any_case)
{
    cr_expect_eq(log_level_parse("Off"), LOG_OFF);
    cr_expect_eq(log_level_parse("ERROR"), LOG_ERROR);
    cr_expect_eq(log_level_parse("warn"), LOG_WARN);
    cr_expect_eq(log_level_parse("Warning"), LOG_WARN);
    cr_expect_eq(log_level_parse("info"), LOG_INFO);
    cr_expect_eq(log_level_parse("Debug"), LOG_DEBUG);
    cr_expect_eq(log_level_parse("trace"), LOG_TRACE);
    cr_expect_eq(log_level_parse(""), -1);
    cr_expect_eq(log_level_parse("infos"), -1);
}

Test(log, leaves_out_what_is_of_another_module)
{
    log_set_options((struct log_options){ .level = LOG_INFO, .module = "nowhere/" });
    log_info("quiet");
    cr_expect_str_eq(logged(), "");
    log_set_options((struct log_options){ .level = LOG_INFO, .module = "" });
    log_info("loud");
    cr_expect(strstr(logged(), "loud"));
}

/* The time that it is, when it isn't the host's. */
static time_t pretended;

int clock_gettime(clockid_t id, struct timespec *t)
{
    if (!pretended || id != CLOCK_REALTIME)
        return (int)syscall(SYS_clock_gettime, id, t);
    *t = (struct timespec){ .tv_sec = pretended };
    return 0;
}

static void set_zone(const char *zone)
{
    setenv("TZ", zone, 1);
    tzset();
}

static void expect_date(time_t t)
{
    char wanted[32];
    struct tm tm;

    strftime(wanted, sizeof(wanted), "%Y-%m-%dT%H:%M:%S.000000000 [", localtime_r(&t, &tm));
    cr_expect_eq(strncmp(text, wanted, strlen(wanted)), 0, "%s is not %s", text, wanted);
}

Test(log, has_the_dates_of_the_calendar)
{
    static const time_t times[] = {
        1,                       /* of 1970 */
        68169599,    68169600,   /* the last of February 1972, the first of March */
        951782400,   951868800,  /* 2000-02-29, 2000-03-01 */
        1735689599,  1735689600, /* the last second of 2024, the first of 2025 */
        1772323199,  1772323200, /* 2026 has no 29th of February */
        4107542399,  4107542400, /* nor has 2100 */
        13574563200,             /* 2400-02-29 */
    };

    set_zone("UTC");
    for (unsigned i = 0; i < sizeof(times) / sizeof(*times); i++) {
        cr_assert_eq(truncate(path, 0), 0);
        pretended = times[i];
        log_info("x");
        logged();
        expect_date(pretended);
    }
}

static void *log_one(void *arg)
{
    log_warn("x");
    return arg;
}

/* libc does for a zone what a filter does not let such a thread do. */
Test(log, has_the_zone_of_the_main_thread_on_others)
{
    pthread_t thread;

    pretended = 1735689599;
    set_zone("ABC-5:45");
    log_prepare();
    pthread_create(&thread, NULL, log_one, NULL);
    pthread_join(thread, NULL);
    logged();
    expect_date(pretended);
    cr_assert_eq(truncate(path, 0), 0);
    set_zone("DEF8");
    log_info("y");
    cr_assert_eq(truncate(path, 0), 0);
    pthread_create(&thread, NULL, log_one, NULL);
    pthread_join(thread, NULL);
    logged();
    expect_date(pretended);
}

Test(log_signal, has_the_form_of_the_other_lines, .init = set_up, .fini = tear_down)
{
    log_signal(&(siginfo_t){ .si_signo = 11, .si_code = -6 }, true);
    cr_expect(matches(logged(),
                      TIME "\\[anonymous-instance:main\\] Shutting down VM after intercepting "
                           "signal 11, code -6\\.\n$"),
              "%s", text);
    cr_assert_eq(truncate(path, 0), 0);
    log_set_options((struct log_options){ LOG_ERROR, true, true, NULL });
    log_signal(&(siginfo_t){ .si_signo = 7, .si_code = 2 }, true);
    cr_expect(matches(logged(), ":main:ERROR:[^]]*vmm/base/log.c:[0-9]+\\] Shutting down"), "%s",
              text);
}

static unsigned lines_with(const char *what)
{
    unsigned n = 0;

    for (const char *at = logged(); (at = strstr(at, what)); at++)
        n++;
    return n;
}

Test(log_limited, writes_the_first_at_once_and_tells_how_many_it_left_out)
{
    struct log_limit limit = { 0 };

    log_limited(&limit, LOG_WARN, "trouble %d", 1);
    cr_expect(matches(logged(), "\\] trouble 1\n$"), "%s", text);
    limit.next_ns = UINT64_MAX; /* the second is not over */
    for (int i = 2; i <= 42; i++)
        log_limited(&limit, LOG_WARN, "trouble %d", i);
    cr_expect_eq(lines_with("trouble"), 1, "%s", text);
    limit.next_ns = 0; /* it is */
    log_limited(&limit, LOG_WARN, "trouble %d", 43);
    cr_expect(matches(logged(), "\\] trouble 43 \\(41 more were left out\\)\n$"), "%s", text);
    limit.next_ns = 0;
    log_limited(&limit, LOG_WARN, "trouble %d", 44);
    cr_expect(matches(logged(), "\\] trouble 44\n$"), "%s", text);
}

/* Whoever complains of a call often looks at its errno after that. */
Test(log_limited, keeps_errno)
{
    static struct log_limit limit;

    cr_assert_eq(log_open("/dev/full", &e), 0, "%s", e.msg);
    errno = EXDEV;
    log_limited(&limit, LOG_WARN, "trouble");
    cr_expect_eq(errno, EXDEV);
    log_warn("trouble");
    cr_expect_eq(errno, EXDEV);
}

Test(log_limited, waits_for_a_second_after_each_line)
{
    struct log_limit limit = { 0 };
    uint64_t before = monotonic_ns(), after;

    log_limited(&limit, LOG_WARN, "trouble");
    after = monotonic_ns();
    cr_expect_geq(limit.next_ns, before + NS_PER_S);
    cr_expect_leq(limit.next_ns, after + NS_PER_S);
}

Test(log_limited, counts_nothing_for_a_level_that_is_not_shown)
{
    struct log_limit limit = { 0 };

    log_set_options((struct log_options){ .level = LOG_ERROR });
    log_limited(&limit, LOG_WARN, "quiet");
    cr_expect_eq(limit.next_ns, 0);
    log_limited(&limit, LOG_ERROR, "loud");
    cr_expect(matches(logged(), "\\] loud\n$"), "%s", text);
}

static struct log_limit shared_limit;

static void *log_trouble(void *arg)
{
    for (unsigned i = 0; i < 10000; i++)
        log_limited(&shared_limit, LOG_WARN, "trouble");
    return arg;
}

/* However long the host takes: each line is there, or counted, once. */
Test(log_limited, loses_no_count_between_threads)
{
    pthread_t threads[4];
    uint64_t total = 0;
    const char *at;

    for (unsigned i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, log_trouble, NULL);
    for (unsigned i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    for (at = logged(); (at = strstr(at, "] trouble")); at += strlen("] trouble")) {
        const char *count = strchr(at, '(');

        total++;
        if (count && count < strchr(at, '\n'))
            total += strtoull(count + 1, NULL, 10);
    }
    cr_expect_eq(total + shared_limit.left_out, 40000);
    cr_expect_lt(total, 40000, "nothing was left out");
}

Test(log_signal, tells_of_one_that_is_survived, .init = set_up, .fini = tear_down)
{
    log_signal(&(siginfo_t){ .si_signo = SIGPIPE, .si_code = 0 }, false);
    cr_expect(
        matches(logged(), TIME "\\[anonymous-instance:main\\] Received signal 13, code 0\\.\n$"),
        "%s", text);
}

Test(log_signal, names_a_forbidden_call, .init = set_up, .fini = tear_down)
{
    siginfo_t info = { .si_signo = SIGSYS, .si_code = 1 };

    info.si_syscall = 16;
    log_signal(&info, true);
    cr_expect(matches(logged(), "signal 31, code 1\\.\n" /* and in a line of its own: */
                                "[^[]*\\[anonymous-instance:main\\] Shutting down VM after "
                                "intercepting a bad syscall \\(16\\)\\.\n$"),
              "%s", text);
    info.si_code = SI_USER; /* a signal of that number from elsewhere */
    cr_assert_eq(truncate(path, 0), 0);
    log_signal(&info, true);
    cr_expect_null(strstr(logged(), "bad syscall"), "%s", text);
}
