#include "vmm/base/metrics.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "vmm/base/clock.h"
#include "vmm/base/console.h"

#define PERIOD_S    60
#define SOURCES_MAX 128
/* Of a line without properties; a line that needs more is lost. It is touched as far as needed. */
#define LINE_BYTES (128u << 10)
/* How often a dying thread looks whether the line of another one is complete. */
#define PATIENCE 10000

struct metrics metrics;

/* A member of a group's struct. Their places follow from their order: a struct is all words. */
struct row {
    const char *name, *help;
    enum metric_type type;
};

#define COUNTER(m, help) { #m, (help), METRIC_COUNTER },
#define VALUE(m, help)   { #m, (help), METRIC_VALUE },
#define LATENCY(m, help) { #m, (help), METRIC_LATENCY },
#define ROWS(name, LIST)                                                                           \
    static const struct row name##_rows[] = { METRICS_##LIST(COUNTER, VALUE, LATENCY) };
METRICS_GROUPS(ROWS)

#define WORDS(T) (sizeof(T) / sizeof(metric))
#define GROUP(name, LIST)                                                                          \
    { #name, name##_rows, sizeof(name##_rows) / sizeof(struct row), WORDS(struct name##_metrics),  \
      offsetof(struct metrics, name) },
static const struct group {
    const char *name;
    const struct row *rows;
    unsigned count, words;
    size_t at; /* in struct metrics */
} groups[] = { METRICS_GROUPS(GROUP) };

/* Counters that are read for a line: the groups of `metrics`, then what was announced. */
struct source {
    enum metrics_kind kind;
    const char *id;  /* owned; NULL: none */
    const char *key; /* owned: the id as a part of a JSON string */
    const metric *counters;
    uint64_t *now, *written; /* owned: as read for this line, as of the last line */
};

static struct {
    struct source sources[METRICS_KINDS + SOURCES_MAX];
    unsigned count;
    int fd;
    char *line, *instance, *properties; /* owned */
    size_t line_size;
    bool emits_id;
    const char *rest; /* of a line that was taken in part: in `line` */
    size_t rest_bytes;
    atomic_flag is_writing;
    void (*on_missed)(int os_errno); /* NULL: nobody cares */
    struct loop_source timer;
    struct itimerspec left; /* of the minute, while it stands still */
} state = { .fd = -1, .is_writing = ATOMIC_FLAG_INIT, .timer = { .fd = -1 } };

void latency_record(struct latency *l, uint64_t start_us)
{
    uint64_t us = monotonic_us() - start_us;
    uint64_t min = metric_get(&l->min_us);
    unsigned bucket = us < LATENCY_BELOW_US(0) ? 0 : (unsigned)(61 - __builtin_clzll(us)) / 2;

    if (min == 0 || us < min)
        metric_set(&l->min_us, us);
    if (us > metric_get(&l->max_us))
        metric_set(&l->max_us, us);
    metric_add(&l->sum_us, us);
    metric_inc(&l->buckets[bucket < LATENCY_BUCKETS ? bucket : LATENCY_BUCKETS - 1]);
}

/* The id as it stands in a JSON string; it came through a parser that refuses what is no UTF-8. */
static char *escaped(const char *id)
{
    char *out = malloc(6 * strlen(id) + 1), *at = out;

    BUG_ON(!out);
    for (; *id; id++) {
        if (*id == '"' || *id == '\\' || (unsigned char)*id < 0x20)
            at += sprintf(at, "\\u%04x", (unsigned)*id);
        else
            *at++ = *id;
    }
    *at = '\0';
    return out;
}

static void add_source(enum metrics_kind kind, const char *id, const void *counters)
{
    struct source *s = &state.sources[state.count];
    unsigned words = groups[kind].words;

    BUG_ON(state.count == sizeof(state.sources) / sizeof(*state.sources));
    *s = (struct source){ .kind = kind, .counters = counters };
    s->now = calloc(2 * words, sizeof(*s->now));
    BUG_ON(!s->now);
    s->written = s->now + words;
    if (id) {
        s->id = strdup(id);
        BUG_ON(!s->id);
        s->key = escaped(id);
    }
    state.count++;
}

/* Made when first needed: a process that writes no metrics keeps no account of them. */
static void prepare(void)
{
    for (unsigned kind = state.count; kind < METRICS_KINDS; kind++)
        add_source(kind, NULL, (const char *)&metrics + groups[kind].at);
}

void metrics_add_source(enum metrics_kind kind, const char *id, const void *counters)
{
    prepare();
    add_source(kind, id, counters);
}

void metrics_forget_sources(void)
{
    while (state.count > METRICS_KINDS) {
        struct source *s = &state.sources[--state.count];

        free(s->now);
        free((char *)s->id);
        free((char *)s->key);
    }
}

int metrics_open(const struct metrics_config *config, const char *instance_id, struct error *e)
{
    size_t properties = config->properties ? strlen(config->properties) : 0;
    int fd;

    if (state.fd >= 0)
        return fail(e, ERR_INVALID,
                    "Cannot initialize the metrics system due to bad user input: Reinitialization "
                    "of metrics not allowed.");
    fd = console_open_lines(config->metrics_path);
    if (fd < 0)
        return fail_path(e, errno, config->metrics_path,
                         "Cannot initialize the metrics system due to bad user input");
    prepare();
    state.line_size = LINE_BYTES + properties;
    state.line = malloc(state.line_size);
    state.instance = escaped(instance_id);
    state.properties = properties ? strdup(config->properties) : NULL;
    BUG_ON(!state.line || (properties && !state.properties));
    state.emits_id = config->emit_id;
    state.fd = fd;
    return 0;
}

/* A line in the making: what comes after its end is left out. */
struct text {
    char *at;
    size_t used, size;
};

static void put_text(struct text *t, const char *s)
{
    size_t n = strlen(s);

    if (n > t->size - t->used) {
        t->size = t->used = 0; /* the line is lost: nothing fits any more */
        return;
    }
    memcpy(t->at + t->used, s, n);
    t->used += n;
}

static void put_number(struct text *t, uint64_t value)
{
    char digits[24];
    char *at = digits + sizeof(digits) - 1;

    *at = '\0';
    do
        *--at = (char)('0' + value % 10);
    while (value /= 10);
    put_text(t, at);
}

static void put_key(struct text *t, const char *name)
{
    put_text(t, "\"");
    put_text(t, name);
    put_text(t, "\":");
}

static void put_member(struct text *t, const char *name, uint64_t value)
{
    put_key(t, name);
    put_number(t, value);
}

/* What to add up: one source, or (NULL) all of a kind. */
struct scope {
    enum metrics_kind kind;
    const struct source *only;
};

static bool is_in(const struct scope *scope, const struct source *s)
{
    return scope->only ? s == scope->only : s->kind == scope->kind;
}

static uint64_t total(const struct scope *scope, unsigned at, bool is_difference)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < state.count; i++) {
        const struct source *s = &state.sources[i];

        if (is_in(scope, s))
            sum += s->now[at] - (is_difference ? s->written[at] : 0);
    }
    return sum;
}

static uint64_t smallest(const struct scope *scope, unsigned at)
{
    uint64_t min = 0;

    for (unsigned i = 0; i < state.count; i++) {
        const struct source *s = &state.sources[i];

        if (is_in(scope, s) && s->now[at] && (min == 0 || s->now[at] < min))
            min = s->now[at];
    }
    return min;
}

static uint64_t largest(const struct scope *scope, unsigned at)
{
    uint64_t max = 0;

    for (unsigned i = 0; i < state.count; i++) {
        const struct source *s = &state.sources[i];

        if (is_in(scope, s) && s->now[at] > max)
            max = s->now[at];
    }
    return max;
}

static void put_row(struct text *t, const struct row *row, const struct scope *scope, unsigned at)
{
    if (row->type != METRIC_LATENCY) {
        put_member(t, row->name, total(scope, at, row->type == METRIC_COUNTER));
        return;
    }
    put_key(t, row->name);
    put_text(t, "{");
    put_member(t, "min_us", smallest(scope, at));
    put_text(t, ",");
    put_member(t, "max_us", largest(scope, at + 1));
    put_text(t, ",");
    put_member(t, "sum_us", total(scope, at + 2, true));
    put_text(t, "}");
}

static unsigned words_of(const struct row *row)
{
    return row->type == METRIC_LATENCY ? WORDS(struct latency) : 1;
}

static void put_group(struct text *t, const struct group *g, const struct scope *scope)
{
    unsigned at = 0;

    put_text(t, ",\"");
    put_text(t, g->name);
    if (scope->only) {
        put_text(t, "_");
        put_text(t, scope->only->key);
    }
    put_text(t, "\":{");
    for (unsigned i = 0; i < g->count; i++) {
        if (i > 0)
            put_text(t, ",");
        put_row(t, &g->rows[i], scope, at);
        at += words_of(&g->rows[i]);
    }
    put_text(t, "}");
}

/* Each word is read once, so that sums are those of what is shown. */
static void read_sources(void)
{
    for (unsigned i = 0; i < state.count; i++) {
        const struct source *s = &state.sources[i];

        for (unsigned at = 0; at < groups[s->kind].words; at++)
            s->now[at] = metric_get(&s->counters[at]);
    }
}

static void put_line(struct text *t)
{
    put_text(t, "{");
    put_member(t, "utc_timestamp_ms", clock_us(CLOCK_REALTIME) / 1000);
    if (state.emits_id) {
        put_text(t, ",\"id\":\"");
        put_text(t, state.instance);
        put_text(t, "\"");
    }
    if (state.properties) {
        put_text(t, ",\"properties\":");
        put_text(t, state.properties);
    }
    for (unsigned kind = 0; kind < METRICS_KINDS; kind++) {
        put_group(t, &groups[kind], &(struct scope){ kind, NULL });
        for (unsigned i = METRICS_KINDS; i < state.count; i++)
            if (state.sources[i].kind == kind && state.sources[i].id)
                put_group(t, &groups[kind], &(struct scope){ kind, &state.sources[i] });
    }
    put_text(t, "}\n");
}

/* 0, or -errno where some of it has to wait. */
static int write_rest(void)
{
    while (state.rest_bytes > 0) {
        ssize_t n = write(state.fd, state.rest, state.rest_bytes);

        if (n < 0)
            return -errno;
        state.rest += n;
        state.rest_bytes -= (size_t)n;
    }
    return 0;
}

/* What the line has told is not told again. */
static void note_written(void)
{
    for (unsigned i = 0; i < state.count; i++)
        memcpy(state.sources[i].written, state.sources[i].now,
               groups[state.sources[i].kind].words * sizeof(uint64_t));
}

/* A reader gets whole lines: the rest of the one before comes first. */
static int write_line(void)
{
    struct text t = { .at = state.line, .size = state.line_size };
    int ret = write_rest();

    if (ret == 0) {
        read_sources();
        put_line(&t);
        if (t.size == 0) {
            metric_inc(&metrics.logger.metrics_fails);
            return -EMSGSIZE;
        }
        state.rest = t.at;
        state.rest_bytes = t.used;
        ret = write_rest();
    }
    if (state.rest_bytes < t.used) {
        note_written();
    } else {
        metric_inc(&metrics.logger.missed_metrics_count);
        if (t.used > 0)
            state.rest_bytes = 0; /* a line of which nothing was taken is made anew */
    }
    return ret;
}

/* The signals that end the process wait until a line is complete, so that their handlers find the
 * place free; but a thread that dies of what it does here must not wait for itself. */
int metrics_write(void)
{
    sigset_t all, before;
    int saved = errno;
    int ret;

    if (state.fd < 0)
        return 0;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    for (unsigned i = 0; atomic_flag_test_and_set(&state.is_writing); i++) {
        if (i == PATIENCE) {
            pthread_sigmask(SIG_SETMASK, &before, NULL);
            return -EBUSY;
        }
        sched_yield();
    }
    ret = write_line();
    atomic_flag_clear(&state.is_writing);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = saved;
    return ret;
}

void metrics_write_unasked(void)
{
    int ret = metrics_write();

    if (ret < 0 && state.on_missed)
        state.on_missed(-ret);
}

static void on_minute(struct loop_source *src, uint32_t ready)
{
    (void)ready;
    loop_drain(src->fd);
    metrics_write_unasked();
}

int metrics_start(struct loop *loop, void (*on_missed)(int os_errno), struct error *e)
{
    const struct itimerspec minute = { { PERIOD_S, 0 }, { PERIOD_S, 0 } };
    int ret;

    if (state.fd < 0)
        return 0;
    state.on_missed = on_missed;
    metrics_write_unasked();
    ret = loop_add_timer(loop, &state.timer, on_minute);
    if (ret < 0)
        return fail_os(e, -ret, "Metrics are written on request only: timer");
    loop_set_timer(&state.timer, 0, &minute, NULL);
    return 0;
}

void metrics_pause(void)
{
    const struct itimerspec never = { 0 };

    if (state.timer.fd >= 0)
        loop_set_timer(&state.timer, 0, &never, &state.left);
}

void metrics_resume(void)
{
    if (state.timer.fd >= 0)
        loop_set_timer(&state.timer, 0, &state.left, NULL);
}

/* A kind whose devices have ids is shown by device; else all of it is one. */
static bool has_devices(enum metrics_kind kind)
{
    for (unsigned i = METRICS_KINDS; i < state.count; i++)
        if (state.sources[i].kind == kind && state.sources[i].id)
            return true;
    return false;
}

struct showing {
    void (*show)(void *context, const struct metrics_sample *s);
    void *context;
};

static void show_value(const struct showing *to, const struct row *row, const struct scope *scope,
                       unsigned at)
{
    bool is_latency = row->type == METRIC_LATENCY;
    uint64_t buckets[LATENCY_BUCKETS] = { 0 };
    const struct metrics_sample sample = {
        .group = groups[scope->kind].name,
        .name = row->name,
        .help = row->help,
        .id = scope->only ? scope->only->id : NULL,
        .type = row->type,
        .value = total(scope, is_latency ? at + 2 : at, false),
        .buckets = buckets,
    };

    for (unsigned i = 0; is_latency && i < LATENCY_BUCKETS; i++)
        buckets[i] = total(scope, at + 3 + i, false);
    to->show(to->context, &sample);
}

static void show_row(const struct showing *to, enum metrics_kind kind, const struct row *row,
                     unsigned at)
{
    if (!has_devices(kind))
        show_value(to, row, &(struct scope){ kind, NULL }, at);
    for (unsigned i = METRICS_KINDS; i < state.count; i++) {
        const struct source *s = &state.sources[i];

        if (s->kind == kind && s->id)
            show_value(to, row, &(struct scope){ kind, s }, at);
    }
}

void metrics_each(void (*show)(void *context, const struct metrics_sample *s), void *context)
{
    const struct showing to = { show, context };

    prepare();
    read_sources();
    for (unsigned kind = 0; kind < METRICS_KINDS; kind++) {
        unsigned at = 0;

        for (unsigned i = 0; i < groups[kind].count; i++) {
            if (groups[kind].rows[i].help)
                show_row(&to, kind, &groups[kind].rows[i], at);
            at += words_of(&groups[kind].rows[i]);
        }
    }
}
