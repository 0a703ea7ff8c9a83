#include "api/answers.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "vmm/base/clock.h"
#include "vmm/base/metrics.h"
#include "vmm/base/timeline.h"
#include "vmm/base/version.h"

#define US_PER_S 1000000u

struct exposition {
    const struct vm *vm;
    struct json_writer *w;
    const char *group, *name; /* of the family that has been told of */
    char family[96];
};

static void put_seconds(struct json_writer *w, uint64_t us)
{
    char text[32];

    snprintf(text, sizeof(text), "%" PRIu64 ".%06" PRIu64, us / US_PER_S, us % US_PER_S);
    json_put(w, text);
}

static void put_family_header(struct json_writer *w, const char *family, const char *type,
                              const char *help)
{
    json_put(w, "# HELP ");
    json_put(w, family);
    json_put(w, " ");
    json_put(w, help);
    json_put(w, "\n# TYPE ");
    json_put(w, family);
    json_put(w, " ");
    json_put(w, type);
    json_put(w, "\n");
}

static bool is_in_us(const struct metrics_sample *s)
{
    return s->type == METRIC_VALUE &&
           (strcmp(s->group, "latencies_us") == 0 || strstr(s->name, "_us"));
}

/* Times are in seconds, counters end in _total: the rules of Prometheus. Otherwise a family is
 * called as in the lines of JSON. */
static void name_family(struct exposition *x, const struct metrics_sample *s)
{
    bool is_time = s->type == METRIC_LATENCY || is_in_us(s);
    const char *end = is_time ? strstr(s->name, s->type == METRIC_LATENCY ? "_agg" : "_us") : NULL;
    int n = (int)(end ? end - s->name : (ptrdiff_t)strlen(s->name));

    snprintf(x->family, sizeof(x->family), "mayfly_%s_%.*s%s",
             strcmp(s->group, "latencies_us") == 0 ? "latency" : s->group, n, s->name,
             is_time                     ? "_seconds"
             : s->type == METRIC_COUNTER ? "_total"
                                         : "");
}

static void put_series(const struct exposition *x, const struct metrics_sample *s, const char *part,
                       const char *below)
{
    struct json_writer *w = x->w;

    json_put(w, x->family);
    json_put(w, part);
    if (s->id || below)
        json_put(w, "{");
    if (s->id) {
        json_put(w, "id=");
        json_put_string(w, s->id); /* its escapes are Prometheus' for all that an id can hold */
    }
    if (below) {
        json_put(w, s->id ? ",le=\"" : "le=\"");
        json_put(w, below);
        json_put(w, "\"");
    }
    json_put(w, s->id || below ? "} " : " ");
}

static void put_histogram(const struct exposition *x, const struct metrics_sample *s)
{
    uint64_t count = 0;
    char below[32];

    for (unsigned i = 0; i < LATENCY_BUCKETS; i++) {
        count += s->buckets[i];
        snprintf(below, sizeof(below), "%.6f", (double)LATENCY_BELOW_US(i) / US_PER_S);
        put_series(x, s, "_bucket", i < LATENCY_BUCKETS - 1 ? below : "+Inf");
        json_put_unsigned(x->w, count);
        json_put(x->w, "\n");
    }
    put_series(x, s, "_sum", NULL);
    put_seconds(x->w, s->value);
    json_put(x->w, "\n");
    put_series(x, s, "_count", NULL);
    json_put_unsigned(x->w, count);
    json_put(x->w, "\n");
}

static bool is_of_this_vm(const struct vm *vm, const struct metrics_sample *s)
{
    const struct vm_config *c = vm_config(vm);

    if (strcmp(s->group, "block") == 0 || strcmp(s->group, "net") == 0)
        return s->id;
    if (strcmp(s->group, "vsock") == 0)
        return c->vsock.uds_path;
    return strcmp(s->group, "mmds") != 0 || c->mmds.interfaces.count > 0;
}

/* Names are constants, so that their addresses tell them apart. */
static void show_sample(void *context, const struct metrics_sample *s)
{
    static const char *const types[] = {
        [METRIC_COUNTER] = "counter", [METRIC_VALUE] = "gauge", [METRIC_LATENCY] = "histogram"
    };
    struct exposition *x = context;

    if (!is_of_this_vm(x->vm, s))
        return;
    if (s->group != x->group || s->name != x->name) {
        name_family(x, s);
        put_family_header(x->w, x->family, types[s->type], s->help);
        x->group = s->group;
        x->name = s->name;
    }
    if (s->type == METRIC_LATENCY) {
        put_histogram(x, s);
        return;
    }
    put_series(x, s, "", NULL);
    if (is_in_us(s))
        put_seconds(x->w, s->value);
    else
        json_put_unsigned(x->w, s->value);
    json_put(x->w, "\n");
}

static void put_gauge(struct json_writer *w, const char *family, const char *help, uint64_t value)
{
    put_family_header(w, family, "gauge", help);
    json_put(w, family);
    json_put(w, " ");
    json_put_unsigned(w, value);
    json_put(w, "\n");
}

/* Of the VM as a whole. */
static void put_vm(struct json_writer *w, const struct vm *vm)
{
    const struct machine_config *m = &vm_config(vm)->machine;

    put_family_header(w, "mayfly_info", "gauge",
                      "The microVM's id, and the version of mayfly; always 1.");
    json_put(w, "mayfly_info{id=");
    json_put_string(w, vm_id(vm));
    json_put(w, ",version=\"" MAYFLY_VERSION "\"} 1\n");
    put_gauge(w, "mayfly_running", "Whether the guest runs: not before its start, nor paused.",
              vm_state(vm) == VM_RUNNING);
    put_gauge(w, "mayfly_vcpus", "The guest's processors.", m->vcpu_count);
    put_gauge(w, "mayfly_memory_bytes", "The guest's memory, touched or not.",
              (uint64_t)m->mem_size_mib << 20);
}

/* What can be told from a cell without /proc: no memory, no count of descriptors. */
static void put_process(struct json_writer *w)
{
    uint64_t age_us = monotonic_us() - timeline_start_us();

    put_family_header(w, "process_cpu_seconds_total", "counter", "CPU time of the process.");
    json_put(w, "process_cpu_seconds_total ");
    put_seconds(w, clock_us(CLOCK_PROCESS_CPUTIME_ID));
    json_put(w, "\n");
    put_family_header(w, "process_start_time_seconds", "gauge", "When the process began.");
    json_put(w, "process_start_time_seconds ");
    put_seconds(w, clock_us(CLOCK_REALTIME) - age_us);
    json_put(w, "\n");
}

static void put_boot(struct json_writer *w)
{
    put_family_header(w, "mayfly_boot_phase_seconds", "gauge",
                      "Time from exec to each phase of the start, of those that were reached.");
    for (enum phase p = 0; p < PHASES; p++) {
        const char *name = timeline_name(p);
        char text[64];

        if (timeline_us(p) < 0)
            continue;
        snprintf(text, sizeof(text), "mayfly_boot_phase_seconds{phase=\"%.*s\"} ",
                 (int)(strlen(name) - strlen("_us")), name);
        json_put(w, text);
        put_seconds(w, (uint64_t)timeline_us(p));
        json_put(w, "\n");
    }
}

int answer_metrics(const struct vm *vm, struct api_answer *a, struct error *e)
{
    struct exposition x = { .vm = vm, .w = &a->body };

    (void)e;
    a->type = "text/plain; version=0.0.4; charset=utf-8";
    put_vm(&a->body, vm);
    put_process(&a->body);
    put_boot(&a->body);
    metrics_each(show_sample, &x);
    json_put(&a->body, "# EOF\n");
    return 0;
}
