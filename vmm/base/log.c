#include "vmm/base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/prctl.h>
#include <time.h>

#include "vmm/base/clock.h"
#include "vmm/base/console.h"
#include "vmm/base/metrics.h"
#include "vmm/base/utf8.h"

static struct {
    struct log_options options;
    const char *instance;
    bool is_json;
    int fd;             /* -1: the console */
    atomic_long offset; /* of local time from UTC, in seconds, as last seen */
} sink = { .options.level = LOG_INFO, .instance = "anonymous-instance", .fd = -1 };

void log_set_instance(const char *id)
{
    sink.instance = id;
}

const char *log_get_instance(void)
{
    return sink.instance;
}

void log_set_json(void)
{
    sink.is_json = true;
}

void log_set_options(struct log_options options)
{
    sink.options = options;
}

struct log_options log_get_options(void)
{
    return sink.options;
}

int log_level_parse(const char *name)
{
    static const struct {
        const char *name;
        enum log_level level;
    } names[] = {
        { "off", LOG_OFF },      { "error", LOG_ERROR }, { "warn", LOG_WARN },
        { "warning", LOG_WARN }, { "info", LOG_INFO },   { "debug", LOG_DEBUG },
        { "trace", LOG_TRACE },
    };

    for (unsigned i = 0; i < sizeof(names) / sizeof(*names); i++)
        if (strcasecmp(name, names[i].name) == 0)
            return (int)names[i].level;
    return -1;
}

int log_open(const char *path, struct error *e)
{
    int fd = console_open_lines(path);

    if (fd < 0)
        return fail_path(e, errno, path, "Failed to open target file");
    close_fdp(&sink.fd);
    sink.fd = fd;
    return 0;
}

/* How a line ends in JSON; there is always room for it. */
#define JSON_END   "\"}\n"
#define LINE_BYTES 2048

/* Put together by what a signal handler and a thread behind a filter may use: libc's own ways to
 * tell the time take locks and memory, and read files. */
struct plain_line {
    char text[LINE_BYTES];
    size_t used;
};

static size_t room(const struct plain_line *l)
{
    return sizeof(l->text) - sizeof(JSON_END) - l->used;
}

static void add_text(struct plain_line *l, const char *s)
{
    while (*s && room(l) > 0)
        l->text[l->used++] = *s++;
}

/* As what is between the quotes of a JSON string: characters that fit whole. What is no UTF-8 is
 * shown as such. */
static void add_json(struct plain_line *l, const char *s)
{
    static const char digits[] = "0123456789abcdef";
    size_t length;

    for (size_t n = strlen(s); n > 0; s += length, n -= length) {
        const char control[] = { '\\', 'u', '0', '0', digits[(*s >> 4) & 15], digits[*s & 15], 0 };
        const char quoted[] = { '\\', *s, 0 };
        char plain[5] = { 0 };
        const char *out = plain;

        length = utf8_length(s, n);
        if (length == 0)
            out = "\\ufffd";
        else if ((unsigned char)*s < 0x20 || *s == 0x7f)
            out = control;
        else if (*s == '"' || *s == '\\')
            out = quoted;
        else
            memcpy(plain, s, length);
        if (strlen(out) > room(l))
            return;
        add_text(l, out);
        length += length == 0;
    }
}

static void add_number(struct plain_line *l, long value, unsigned digits)
{
    char text[24] = { 0 };
    unsigned at = sizeof(text) - 1;
    unsigned long rest = value < 0 ? -(unsigned long)value : (unsigned long)value;

    do
        text[--at] = (char)('0' + rest % 10);
    while ((rest /= 10) || sizeof(text) - 1 - at < digits);
    if (value < 0)
        text[--at] = '-';
    add_text(l, text + at);
}

/* Proleptic Gregorian date of a day counted from 1970-01-01: years begin in March, so that the leap
 * day is a year's last, and 400 of them have 146097 days. */
static void add_date(struct plain_line *l, long day)
{
    long of_era = (day + 719468) % 146097, era = (day + 719468) / 146097;
    long year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    long of_year = of_era - (365 * year + year / 4 - year / 100);
    long month = (5 * of_year + 2) / 153; /* 0: March */

    add_number(l, era * 400 + year + (month >= 10), 4);
    add_text(l, "-");
    add_number(l, month < 10 ? month + 3 : month - 9, 2);
    add_text(l, "-");
    add_number(l, of_year - (153 * month + 2) / 5 + 1, 2);
}

static void add_time(struct plain_line *l, const struct timespec *t)
{
    long seconds = t->tv_sec + sink.offset;

    add_date(l, seconds / 86400);
    add_text(l, "T");
    add_number(l, seconds / 3600 % 24, 2);
    add_text(l, ":");
    add_number(l, seconds / 60 % 60, 2);
    add_text(l, ":");
    add_number(l, seconds % 60, 2);
    add_text(l, ".");
    add_number(l, t->tv_nsec, 9);
}

/* Local time's, as RFC 3339 has it. */
static void add_offset(struct plain_line *l)
{
    long minutes = sink.offset / 60;

    add_text(l, minutes < 0 ? "-" : "+");
    minutes = minutes < 0 ? -minutes : minutes;
    add_number(l, minutes / 60, 2);
    add_text(l, ":");
    add_number(l, minutes % 60, 2);
}

/* A part of the line's beginning, as text or as a member of the object. */
static void add_part(struct plain_line *l, const char *separator, const char *key,
                     const char *value)
{
    if (!sink.is_json) {
        add_text(l, separator);
        add_text(l, value);
        return;
    }
    add_text(l, "\",\"");
    add_text(l, key);
    add_text(l, "\":\"");
    add_json(l, value);
}

static void add_beginning(struct plain_line *l, enum log_level level, const char *file, int at)
{
    static const char *const names[] = { "", "ERROR", "WARN", "INFO", "DEBUG", "TRACE" };
    char thread[16] = "main";
    struct timespec now;

    if (gettid() != getpid())
        prctl(PR_GET_NAME, thread);
    clock_gettime(CLOCK_REALTIME, &now);
    if (sink.is_json)
        add_text(l, "{\"time\":\"");
    add_time(l, &now);
    if (sink.is_json)
        add_offset(l);
    add_part(l, " [", "id", sink.instance);
    add_part(l, ":", "thread", thread);
    if (sink.options.show_level)
        add_part(l, ":", "level", names[level]);
    if (sink.options.show_origin) {
        add_part(l, ":", "origin", file);
        add_text(l, ":");
        add_number(l, at, 1);
    }
}

static void emit(const char *line, size_t n)
{
    int fd = sink.fd >= 0 ? sink.fd : console_out();

    if (write(fd, line, n) != (ssize_t)n)
        metric_inc(&metrics.logger.missed_log_count);
}

static void emit_line(enum log_level level, const char *file, int at, const char *message)
{
    struct plain_line l = { .used = 0 };

    add_beginning(&l, level, file, at);
    add_part(&l, "] ", "message", message);
    for (const char *end = sink.is_json ? JSON_END : "\n"; *end; end++)
        l.text[l.used++] = *end;
    emit(l.text, l.used);
}

static bool is_of_module(const char *file)
{
    const char *module = sink.options.module;

    return !module || strncmp(file, module, strlen(module)) == 0;
}

static bool is_shown(enum log_level level, const char *file)
{
    return level <= sink.options.level && is_of_module(file);
}

/* Main thread: libc may read the zone's file for it, and take memory. */
static void look_at_zone(void)
{
    time_t now = time(NULL);
    struct tm tm;

    localtime_r(&now, &tm);
    sink.offset = tm.tm_gmtoff;
}

void log_prepare(void)
{
    look_at_zone();
    console_out();
}

static void emit_message(enum log_level level, const char *file, int at, uint64_t left_out,
                         const char *fmt, va_list ap) __attribute__((format(printf, 5, 0)));

static void emit_message(enum log_level level, const char *file, int at, uint64_t left_out,
                         const char *fmt, va_list ap)
{
    char message[LINE_BYTES];
    int n = vsnprintf(message, sizeof(message), fmt, ap);

    if (left_out && n >= 0 && (size_t)n < sizeof(message))
        snprintf(message + n, sizeof(message) - (size_t)n, " (%llu more were left out)",
                 (unsigned long long)left_out);
    if (gettid() == getpid())
        look_at_zone();
    emit_line(level, file, at, message);
}

void log_line(enum log_level level, const char *file, int at, const char *fmt, ...)
{
    int saved = errno;
    va_list ap;

    if (!is_shown(level, file))
        return;
    va_start(ap, fmt);
    emit_message(level, file, at, 0, fmt, ap);
    va_end(ap);
    errno = saved;
}

/* Of several threads that find a second over, one writes. */
static bool log_limit_pass(struct log_limit *l, uint64_t *left_out)
{
    uint64_t next = __atomic_load_n(&l->next_ns, __ATOMIC_RELAXED);
    uint64_t now = monotonic_ns();

    if (now < next || !__atomic_compare_exchange_n(&l->next_ns, &next, now + NS_PER_S, false,
                                                   __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
        __atomic_fetch_add(&l->left_out, 1, __ATOMIC_RELAXED);
        return false;
    }
    *left_out = __atomic_exchange_n(&l->left_out, 0, __ATOMIC_RELAXED);
    return true;
}

void log_line_limited(struct log_limit *limit, enum log_level level, const char *file, int at,
                      const char *fmt, ...)
{
    int saved = errno;
    uint64_t left_out;
    va_list ap;

    if (!is_shown(level, file) || !log_limit_pass(limit, &left_out))
        return;
    va_start(ap, fmt);
    emit_message(level, file, at, left_out, fmt, ap);
    va_end(ap);
    errno = saved;
}

void log_signal(const siginfo_t *info, bool is_fatal)
{
    struct plain_line l = { .used = 0 };

    if (!is_shown(LOG_ERROR, __FILE__))
        return;
    add_text(&l, is_fatal ? "Shutting down VM after intercepting signal " : "Received signal ");
    add_number(&l, info->si_signo, 1);
    add_text(&l, ", code ");
    add_number(&l, info->si_code, 1);
    add_text(&l, ".");
    emit_line(LOG_ERROR, __FILE__, __LINE__, l.text);
    if (info->si_signo != SIGSYS || info->si_code <= 0) /* somebody's kill() */
        return;
    l = (struct plain_line){ .used = 0 };
    add_text(&l, "Shutting down VM after intercepting a bad syscall (");
    add_number(&l, info->si_syscall, 1);
    add_text(&l, ").");
    emit_line(LOG_ERROR, __FILE__, __LINE__, l.text);
}
