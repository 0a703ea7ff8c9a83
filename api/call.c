#include "api/call.h"

#include <string.h>

#include "api/canonical.h"
#include "api/routes.h"
#include "api/snapshot_schema.h"
#include "api/wire/quote.h"
#include "api/wire/schema.h"
#include "vmm/base/utf8.h"
#include "vmm/base/clock.h"
#include "vmm/base/log.h"
#include "vmm/base/metrics.h"
#include "vmm/base/probe.h"

/* How much of a body a log line repeats. */
#define BODY_LOGGED_MAX 1536

struct api_call {
    struct vm *vm;
    const struct api_request *request;
    char id[HTTP_LINE_MAX]; /* of routes that take one */
    struct api_answer *answer;
    struct api_later *later;
};

/* Puts the text of a filled *e into that of a body that can't be decoded. */
static int fail_body(struct error *e)
{
    char what[sizeof(e->msg)];

    memcpy(what, e->msg, sizeof(what));
    return fail(e, ERR_INVALID,
                "An error occurred when deserializing the json body of a request: %.900s.", what);
}

/* Interfaces name both ids, drives do not. */
static int check_id(const struct api_call *c, const struct route *r, const char *id,
                    struct error *e)
{
    if (strcmp(id, c->id) == 0)
        return 0;
    if (r->id == ID_OF_DRIVE)
        return fail(e, ERR_INVALID, "The id from the path does not match the id from the body!");
    return fail(e, ERR_INVALID,
                "The id from the path [%.400s] does not match the id from the body "
                "[%.400s]!",
                c->id, id);
}

static void note_deprecated(struct api_call *c, const struct route *r, const void *object,
                            uint32_t given)
{
    const char *verb = http_verb_names[r->verb];
    const char *slash = r->second ? "/" : "", *second = r->second ? r->second : "";
    const char *field = schema_deprecated(r->body, object, given);
    const struct schema_field *old = schema_outdated(r->body, object);

    c->answer->deprecated = field || old;
    if (field)
        log_warn("%s /%s%s%s: %s field is deprecated.", verb, r->first, slash, second, field);
    if (old)
        log_warn("%s /%s%s%s: %s is deprecated. Use %s instead.", verb, r->first, slash, second,
                 old->outdated, old->instead);
}

static void on_later_end(struct vm_waiter *w, const struct snapshot_created *result,
                         struct error *e);

static int take_metadata(struct api_call *c, struct action *a, struct error *e)
{
    a->metadata = canonical_json(c->request->body, c->request->body_length, e);
    return a->metadata ? 0 : fail_body(e);
}

/* The body of a request for an action. */
static int take_body(struct api_call *c, const struct route *r, struct action *a, struct error *e)
{
    void *object = (char *)a + r->at;
    uint32_t given;

    if (r->takes_metadata)
        return take_metadata(c, a, e);
    if (!r->body)
        return 0;
    if (r->is_item) {
        struct schema_list *list = object;

        list->items = object = calloc(1, r->body->size);
        BUG_ON(!object);
        list->count = 1;
    }
    if (schema_decode(r->body, object, c->request->body, c->request->body_length, &given, e) < 0)
        return fail_body(e);
    if (r->verb == HTTP_VERB_PATCH && !given)
        return fail(e, ERR_INVALID, "Empty PATCH request.");
    note_deprecated(c, r, object, given);
    return r->id == ID_NONE ? 0 : check_id(c, r, *(char **)object, e);
}

static void record_latency(enum action_kind kind, bool is_diff, uint64_t start_us)
{
    uint64_t us = monotonic_us() - start_us;
    const char *name;
    metric *latency;

    switch (kind) {
    case ACT_PAUSE:
        name = "pause vm";
        latency = &metrics.latencies_us.pause_vm;
        break;
    case ACT_RESUME:
        name = "resume vm";
        latency = &metrics.latencies_us.resume_vm;
        break;
    case ACT_SNAPSHOT_CREATE:
        name = is_diff ? "create diff snapshot" : "create full snapshot";
        latency = is_diff ? &metrics.latencies_us.diff_create_snapshot
                          : &metrics.latencies_us.full_create_snapshot;
        break;
    case ACT_SNAPSHOT_LOAD:
        name = "load snapshot";
        latency = &metrics.latencies_us.load_snapshot;
        break;
    default: return;
    }
    metric_set(latency, us);
    log_info("'%s' API request took %llu us.", name, (unsigned long long)us);
}

/* Errors name their subsystem, but for those about the VM's state. */
static void name_subsystem(struct api_call *c, const struct route *r, enum action_kind kind,
                           struct error *e)
{
    if (e->kind == ERR_STATE)
        return;
    if (r->takes_metadata && e->kind == ERR_TOO_LARGE) {
        c->answer->status = 413;
        fail_within(e, "MMDS limit exceeded error");
    } else {
        fail_within(e, kind == ACT_START ? "Start microvm error" : r->subsystem);
    }
}

static int act(struct api_call *c, const struct route *r, struct error *e)
{
    uint64_t start_us = monotonic_us();
    struct action a;
    bool is_diff;
    int ret;

    action_init(&a, r->kind, c->vm);
    a.waiter = &c->later->waiter;
    a.waiter->on_end = on_later_end;
    ret = take_body(c, r, &a, e);
    is_diff = a.snapshot_create.type == SNAPSHOT_TYPE_DIFF;
    if (ret == 0) {
        ret = vm_apply(c->vm, &a, e);
        if (ret == 0)
            record_latency(a.kind, is_diff, start_us);
        else if (ret < 0)
            name_subsystem(c, r, a.kind, e);
    }
    if (ret > 0) {
        c->later->is_diff = is_diff;
        c->later->start_us = start_us;
    }
    action_fini(&a);
    return ret;
}

static int fail_unknown(struct token second, struct error *e)
{
    char name[HTTP_LINE_MAX];

    plain(name, sizeof(name) - 128, second.at, second.length);
    return fail(e, ERR_INVALID, "Unrecognized PUT request path `%s`.", name);
}

/* Serves what the table has, counting it. */
static int serve_route(struct api_call *c, const struct route *r, struct token second,
                       struct error *e)
{
    int ret;

    if (r->count)
        metric_inc(r->count);
    if (r->answer)
        return r->answer(c->vm, c->answer, e) < 0 ? fail_within(e, r->subsystem) : 0;
    if (r->verb == HTTP_VERB_GET) {
        schema_encode(r->body, (const char *)vm_config(c->vm) + r->at, &c->answer->body);
        return 0;
    }
    ret = r->is_unknown ? fail_unknown(second, e) : act(c, r, e);
    if (ret < 0 && r->fails)
        metric_inc(r->fails);
    return ret;
}

/*
 * Ids are letters, digits and underscores of any script. Without the tables of Unicode at hand, a
 * character beyond ASCII counts as a letter unless it is in the blocks of punctuation and symbols:
 * U+0080..U+00BF but for the ordinals and the micro sign, and U+2000..U+2BFF.
 */
static bool is_id_character(const char *s, size_t length)
{
    const unsigned char *p = (const unsigned char *)s;

    if (length == 1)
        return (*s >= '0' && *s <= '9') || (*s >= 'A' && *s <= 'Z') || (*s >= 'a' && *s <= 'z') ||
               *s == '_';
    if (length == 2 && p[0] == 0xc2)
        return p[1] == 0xaa || p[1] == 0xb5 || p[1] == 0xba;
    return !(length == 3 && p[0] == 0xe2 && p[1] < 0xb0);
}

static int take_id(char out[HTTP_LINE_MAX], struct token t, struct error *e)
{
    if (t.length == 0)
        return fail(e, ERR_INVALID, "The ID cannot be empty.");
    for (size_t i = 0, n; i < t.length; i += n) {
        n = utf8_length(t.at + i, t.length - i);
        if (n == 0 || !is_id_character(t.at + i, n))
            return fail(e, ERR_INVALID,
                        "API Resource IDs can only contain alphanumeric characters and "
                        "underscores.");
    }
    memcpy(out, t.at, t.length);
    out[t.length] = '\0';
    return 0;
}

static struct token next_token(const char **path)
{
    struct token t = { *path, strcspn(*path, "/") };

    *path += t.length + (t.at[t.length] == '/');
    return t;
}

static int check_body(const struct api_request *r, struct error *e)
{
    switch (r->verb) {
    case HTTP_VERB_GET:
        return r->body ? fail(e, ERR_INVALID, "GET request cannot have a body.") : 0;
    case HTTP_VERB_PUT: return r->body ? 0 : fail(e, ERR_INVALID, "Empty PUT request.");
    case HTTP_VERB_PATCH: return r->body ? 0 : fail(e, ERR_INVALID, "Empty PATCH request.");
    case HTTP_VERB_DELETE: return r->body ? fail(e, ERR_INVALID, "Empty Delete request.") : 0;
    case HTTP_VERBS: break;
    }
    BUG_ON(true);
    return -1;
}

/* What Firecracker has under a name of its own and this version does not. */
static bool is_absent(struct token first)
{
    static const char *const names[] = { "balloon", "entropy", "pmem", "hotplug" };

    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
        if (token_is(first, names[i]))
            return true;
    return false;
}

static void log_request(const struct api_request *r, const struct route *route)
{
    static const char *const names[HTTP_VERBS] = { "Get", "Put", "Patch", "Delete" };
    bool is_secret = route && (route->takes_metadata || route->is_unknown);
    char path[256], body[BODY_LOGGED_MAX];

    quote(path, sizeof(path), r->path, strlen(r->path));
    if (r->body && !is_secret)
        log_info("The API server received a %s request on %s with body %s.", names[r->verb], path,
                 quote(body, sizeof(body), r->body, r->body_length));
    else
        log_info("The API server received a %s request on %s.", names[r->verb], path);
}

static int dispatch(struct api_call *c, struct error *e)
{
    const char *path = c->request->path + strspn(c->request->path, "/");
    struct token first = next_token(&path);
    struct token second = next_token(&path);
    const struct route *r = route_find(c->request->verb, first, second);

    log_request(c->request, r);
    if (check_body(c->request, e) < 0)
        return -1;
    if (!r) {
        char name[HTTP_LINE_MAX];

        plain(name, sizeof(name) - 128, first.at, first.length);
        return fail(e, ERR_INVALID, "Invalid request method and/or path: %s %s.%s",
                    http_verb_names[c->request->verb], name,
                    is_absent(first) ? " This version does not have it." : "");
    }
    if (r->id != ID_NONE && take_id(c->id, second, e) < 0)
        return -1;
    return serve_route(c, r, second, e);
}

/* A message may repeat what a client sent; in the log it is one line all the same. */
static void log_failure(const char *status, const char *message)
{
    char line[sizeof(((struct error *)0)->msg)];
    size_t i = 0;

    for (; i < sizeof(line) - 1 && message[i]; i++)
        line[i] = (char)((unsigned char)message[i] < 0x20 ? ' ' : message[i]);
    line[i] = '\0';
    log_error("Received Error. Status code: %s. Message: %s", status, line);
}

/* The status is 400 where nothing said otherwise. */
static void fail_answer(struct api_answer *a, const struct error *e)
{
    if (!a->status)
        a->status = 400;
    log_failure(a->status == 400 ? "400 Bad Request" : "413 Payload too large", e->msg);
    a->type = NULL;
    json_writer_fini(&a->body);
    json_put(&a->body, "{\"fault_message\":");
    json_put_string(&a->body, e->msg);
    json_put(&a->body, "}");
}

static void conclude(struct api_answer *answer, int ret, const struct error *e)
{
    if (ret < 0) {
        fail_answer(answer, e);
        return;
    }
    answer->status = answer->body.length > 0 ? 200 : 204;
    log_info("The request was executed successfully. Status code: %s.",
             answer->status == 200 ? "200 OK" : "204 No Content");
}

static void on_later_end(struct vm_waiter *w, const struct snapshot_created *result,
                         struct error *e)
{
    struct api_later *l = owner_of(w, struct api_later, waiter);
    struct api_answer answer = { 0 };
    struct api_call call = { .answer = &answer };

    if (result) {
        schema_encode(&snapshot_created_schema, (const char *)result, &answer.body);
        record_latency(ACT_SNAPSHOT_CREATE, l->is_diff, l->start_us);
    } else {
        name_subsystem(&call, route_of(ACT_SNAPSHOT_CREATE), ACT_SNAPSHOT_CREATE, e);
    }
    conclude(&answer, result ? 0 : -1, e);
    l->on_answer(l, &answer);
}

void api_serve(struct vm *vm, const struct api_request *request, struct api_later *later,
               struct api_answer *answer)
{
    struct api_call call = { .vm = vm, .request = request, .answer = answer, .later = later };
    uint64_t start_us = monotonic_us();
    struct error e;
    int ret;

    PROBE2(api_begin, request->verb, request->path);
    *answer = (struct api_answer){ 0 };
    ret = dispatch(&call, &e);
    if (ret <= 0)
        conclude(answer, ret, &e);
    PROBE2(api_end, request->path, answer->status);
    if (answer->deprecated)
        metric_inc(&metrics.deprecated_api.deprecated_http_api_calls);
    log_debug("Total previous API call duration: %llu us.",
              (unsigned long long)(monotonic_us() - start_us));
}
