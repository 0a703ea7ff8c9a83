#include "api/routes.h"

#include <string.h>

#include "api/config_schema.h"
#include "api/openmetrics.h"
#include "api/wire/quote.h"
#include "api/wire/schema.h"
#include "api/wire/utf8.h"
#include "vmm/base/clock.h"
#include "vmm/base/log.h"
#include "vmm/base/metrics.h"
#include "vmm/base/version.h"

/* How much of a body a log line repeats. */
#define BODY_LOGGED_MAX 1536

/* Firecracker's released versions have no suffix; the one we answer as is in version.h. */
#define APP_NAME "Firecracker"

struct token {
    const char *at;
    size_t length;
};

struct api_call {
    struct vm *vm;
    const struct api_request *request;
    char id[HTTP_LINE_MAX]; /* of routes that take one */
    struct api_answer *answer;
};

typedef int route_fn(struct api_call *c, struct error *e);

static int decode_body(struct api_call *c, const struct schema *s, void *object, struct error *e)
{
    char what[sizeof(e->msg)];

    if (schema_decode(s, object, c->request->body, c->request->body_length, e) == 0)
        return 0;
    memcpy(what, e->msg, sizeof(what));
    return fail(e, ERR_INVALID,
                "An error occurred when deserializing the json body of a request: %.900s.", what);
}

/* Carries out an action. Its errors name their subsystem, but for those about the VM's state. */
static int apply(struct api_call *c, struct action *a, struct error *e)
{
    static const char *const subsystems[ACTIONS] = {
        [ACT_PUT_MACHINE] = "Machine config error",  [ACT_PATCH_MACHINE] = "Machine config error",
        [ACT_PUT_BOOT_SOURCE] = "Boot source error", [ACT_PUT_DRIVE] = "Drive config error",
        [ACT_PATCH_DRIVE] = "Drive config error",    [ACT_START] = "Start microvm error",
        [ACT_CTRL_ALT_DEL] = "Internal VMM error",   [ACT_PAUSE] = "Internal VMM error",
        [ACT_RESUME] = "Internal VMM error",         [ACT_FLUSH_METRICS] = "Internal VMM error",
        [ACT_PUT_LOGGER] = "Logger error",           [ACT_PUT_METRICS] = "Metrics error",
        [ACT_PUT_SERIAL] = "Serial error",           [ACT_PUT_CPU_CONFIG] = "Configure CPU error",
        [ACT_PUT_NET] = "Network config error",      [ACT_PATCH_NET] = "Network config error",
        [ACT_PUT_VSOCK] = "Vsock config error",
    };

    if (vm_apply(c->vm, a, e) == 0)
        return 0;
    return e->kind == ERR_STATE ? -1 : fail_within(e, subsystems[a->kind]);
}

static int get_instance(struct api_call *c, struct error *e)
{
    static const char *const states[VM_STATES] = {
        [VM_NOT_STARTED] = "Not started",
        [VM_RUNNING] = "Running",
        [VM_PAUSED] = "Paused",
    };
    struct json_writer *w = &c->answer->body;

    (void)e;
    json_put(w, "{\"id\":");
    json_put_string(w, vm_id(c->vm));
    json_put(w, ",\"state\":");
    json_put_string(w, states[vm_state(c->vm)]);
    json_put(w, ",\"vmm_version\":\"" FIRECRACKER_VERSION "\",\"app_name\":\"" APP_NAME "\"}");
    return 0;
}

static int get_version(struct api_call *c, struct error *e)
{
    (void)e;
    json_put(&c->answer->body, "{\"firecracker_version\":\"" FIRECRACKER_VERSION "\"}");
    return 0;
}

static void put_machine_config(struct json_writer *w, const struct vm *vm)
{
    const struct machine_request shown = { .config = *vm_machine_config(vm) };

    schema_encode(&machine_schema, &shown, w);
}

static int get_machine_config(struct api_call *c, struct error *e)
{
    (void)e;
    put_machine_config(&c->answer->body, c->vm);
    return 0;
}

/* Every member is there, null or empty where this version has nothing to show, so that the answer
 * can be used as a configuration file (contract 1.5). */
static int get_vm_config(struct api_call *c, struct error *e)
{
    struct json_writer *w = &c->answer->body;

    (void)e;
    json_put(w, "{\"balloon\":null,\"drives\":[");
    for (unsigned i = 0; i < vm_drive_count(c->vm); i++) {
        if (i > 0)
            json_put(w, ",");
        schema_encode(&drive_schema, vm_drive(c->vm, i), w);
    }
    json_put(w, "],\"boot-source\":");
    schema_encode(&boot_source_schema, vm_boot_source(c->vm), w);
    json_put(w, ",\"cpu-config\":null,\"logger\":null,\"machine-config\":");
    put_machine_config(w, c->vm);
    json_put(w, ",\"metrics\":null,\"mmds-config\":null,\"network-interfaces\":[");
    for (unsigned i = 0; i < vm_net_count(c->vm); i++) {
        if (i > 0)
            json_put(w, ",");
        schema_encode(&net_schema, vm_net(c->vm, i), w);
    }
    json_put(w, "],\"vsock\":");
    if (vm_vsock(c->vm))
        schema_encode(&vsock_shown_schema, vm_vsock(c->vm), w);
    else
        json_put(w, "null");
    json_put(w, ",\"entropy\":null,\"pmem\":[],\"memory-hotplug\":null}");
    return 0;
}

static int apply_machine(struct api_call *c, enum action_kind kind, const struct schema *s,
                         struct error *e)
{
    struct action a = { .kind = kind };

    if (decode_body(c, s, &a.machine, e) < 0)
        return -1;
    if (a.machine.given == 0)
        return fail(e, ERR_INVALID, "Empty PATCH request.");
    c->answer->deprecated = a.machine.given & MACHINE_CPU_TEMPLATE;
    return apply(c, &a, e);
}

static int put_machine(struct api_call *c, struct error *e)
{
    return apply_machine(c, ACT_PUT_MACHINE, &machine_schema, e);
}

static int patch_machine(struct api_call *c, struct error *e)
{
    return apply_machine(c, ACT_PATCH_MACHINE, &machine_patch_schema, e);
}

static int get_metrics(struct api_call *c, struct error *e)
{
    (void)e;
    c->answer->type = OPENMETRICS_TYPE;
    observe_metrics(&c->answer->body);
    return 0;
}

static int get_boot_timeline(struct api_call *c, struct error *e)
{
    (void)e;
    observe_boot_timeline(&c->answer->body);
    return 0;
}

/* A body that is decoded and applied as it is. */
static int put_plain(struct api_call *c, enum action_kind kind, const struct schema *s,
                     struct error *e)
{
    struct action a = { .kind = kind };
    int ret = decode_body(c, s, &a.logger, e); /* all members of the union begin there */

    if (ret == 0)
        ret = apply(c, &a, e);
    action_fini(&a);
    return ret;
}

static int put_logger(struct api_call *c, struct error *e)
{
    return put_plain(c, ACT_PUT_LOGGER, &logger_schema, e);
}

static int put_metrics(struct api_call *c, struct error *e)
{
    return put_plain(c, ACT_PUT_METRICS, &metrics_schema, e);
}

static int put_serial(struct api_call *c, struct error *e)
{
    return put_plain(c, ACT_PUT_SERIAL, &serial_schema, e);
}

static int put_cpu_config(struct api_call *c, struct error *e)
{
    return put_plain(c, ACT_PUT_CPU_CONFIG, &cpu_config_schema, e);
}

static int put_vsock(struct api_call *c, struct error *e)
{
    struct action a = { .kind = ACT_PUT_VSOCK };
    int ret = decode_body(c, &vsock_schema, &a.vsock, e);

    c->answer->deprecated = ret == 0 && a.vsock.vsock_id;
    if (ret == 0)
        ret = apply(c, &a, e);
    action_fini(&a);
    return ret;
}

static int put_boot_source(struct api_call *c, struct error *e)
{
    return put_plain(c, ACT_PUT_BOOT_SOURCE, &boot_source_schema, e);
}

/* Devices come and go on a bus that can tell the guest so, which virtio-mmio is not. */
static int fail_hotplug(struct error *e)
{
    return fail(e, ERR_STATE, "PCI is not enabled");
}

static int fail_id_mismatch(struct error *e)
{
    return fail(e, ERR_INVALID, "The id from the path does not match the id from the body!");
}

static int apply_drive(struct api_call *c, struct action *a, struct error *e)
{
    if (decode_body(c, &drive_schema, &a->drive, e) < 0)
        return -1;
    if (strcmp(a->drive.drive_id, c->id) != 0)
        return fail_id_mismatch(e);
    if (vm_state(c->vm) != VM_NOT_STARTED)
        return fail_hotplug(e);
    return apply(c, a, e);
}

static int put_drive(struct api_call *c, struct error *e)
{
    struct action a = { .kind = ACT_PUT_DRIVE };
    int ret = apply_drive(c, &a, e);

    action_fini(&a);
    return ret;
}

static int apply_drive_patch(struct api_call *c, struct action *a, struct error *e)
{
    if (decode_body(c, &drive_patch_schema, &a->drive_patch, e) < 0)
        return -1;
    if (strcmp(a->drive_patch.drive_id, c->id) != 0)
        return fail_id_mismatch(e);
    return apply(c, a, e);
}

static int patch_drive(struct api_call *c, struct error *e)
{
    struct action a = { .kind = ACT_PATCH_DRIVE };
    int ret = apply_drive_patch(c, &a, e);

    action_fini(&a);
    return ret;
}

/* Interfaces name both ids, drives do not. */
static int check_interface_id(const struct api_call *c, const char *id, struct error *e)
{
    if (strcmp(id, c->id) == 0)
        return 0;
    return fail(e, ERR_INVALID,
                "The id from the path [%.400s] does not match the id from the body "
                "[%.400s]!",
                c->id, id);
}

static int apply_net(struct api_call *c, struct action *a, struct error *e)
{
    if (decode_body(c, &net_schema, &a->net, e) < 0 ||
        check_interface_id(c, a->net.iface_id, e) < 0)
        return -1;
    if (vm_state(c->vm) != VM_NOT_STARTED)
        return fail_hotplug(e);
    return apply(c, a, e);
}

static int put_net(struct api_call *c, struct error *e)
{
    struct action a = { .kind = ACT_PUT_NET };
    int ret = apply_net(c, &a, e);

    action_fini(&a);
    return ret;
}

static int apply_net_patch(struct api_call *c, struct action *a, struct error *e)
{
    if (decode_body(c, &net_patch_schema, &a->net_patch, e) < 0 ||
        check_interface_id(c, a->net_patch.iface_id, e) < 0)
        return -1;
    return apply(c, a, e);
}

static int patch_net(struct api_call *c, struct error *e)
{
    struct action a = { .kind = ACT_PATCH_NET };
    int ret = apply_net_patch(c, &a, e);

    action_fini(&a);
    return ret;
}

static int delete_device(struct api_call *c, struct error *e)
{
    if (vm_state(c->vm) == VM_NOT_STARTED)
        return fail(e, ERR_STATE,
                    "The requested operation is not supported before starting the microVM.");
    return fail_hotplug(e);
}

static int put_action(struct api_call *c, struct error *e)
{
    struct action_body body = { 0 };
    struct action a = { 0 };

    if (decode_body(c, &action_schema, &body, e) < 0)
        return -1;
    switch (body.type) {
    case ACTION_INSTANCE_START: a.kind = ACT_START; break;
    case ACTION_CTRL_ALT_DEL: a.kind = ACT_CTRL_ALT_DEL; break;
    case ACTION_FLUSH_METRICS: a.kind = ACT_FLUSH_METRICS; break;
    }
    return apply(c, &a, e);
}

static int patch_vm(struct api_call *c, struct error *e)
{
    uint64_t us, start_us = monotonic_us();
    struct vm_state_body body = { 0 };
    struct action a = { 0 };
    bool is_pause;

    if (decode_body(c, &vm_state_schema, &body, e) < 0)
        return -1;
    is_pause = body.state == TARGET_PAUSED;
    a.kind = is_pause ? ACT_PAUSE : ACT_RESUME;
    if (apply(c, &a, e) < 0)
        return -1;
    us = monotonic_us() - start_us;
    metric_set(is_pause ? &metrics.latencies_us.pause_vm : &metrics.latencies_us.resume_vm, us);
    log_info("'%s vm' API request took %llu us.", is_pause ? "pause" : "resume",
             (unsigned long long)us);
    return 0;
}

#define UNCOUNTED  .count = NULL
#define GETS(what) .count = &metrics.get_api_requests.what##_count
#define PUTS(what)                                                                                 \
    .count = &metrics.put_api_requests.what##_count, .fails = &metrics.put_api_requests.what##_fails
#define PATCHES(what)                                                                              \
    .count = &metrics.patch_api_requests.what##_count,                                             \
    .fails = &metrics.patch_api_requests.what##_fails

/* Further tokens of a path mean nothing, as in Firecracker. */
static const struct route {
    enum http_verb verb;
    const char *first, *second; /* the path's tokens; second NULL: any, or an id */
    bool takes_id;
    route_fn *serve;
    metric *count, *fails; /* NULL: not counted */
} routes[] = {
    { HTTP_VERB_GET, "", NULL, false, get_instance, GETS(instance_info) },
    { HTTP_VERB_GET, "version", NULL, false, get_version, GETS(vmm_version) },
    { HTTP_VERB_GET, "vm", "config", false, get_vm_config, UNCOUNTED },
    { HTTP_VERB_GET, "machine-config", NULL, false, get_machine_config, GETS(machine_cfg) },
    { HTTP_VERB_GET, "metrics", "", false, get_metrics, UNCOUNTED },
    { HTTP_VERB_GET, "boot-timeline", "", false, get_boot_timeline, UNCOUNTED },
    { HTTP_VERB_PUT, "machine-config", NULL, false, put_machine, PUTS(machine_cfg) },
    { HTTP_VERB_PATCH, "machine-config", NULL, false, patch_machine, PATCHES(machine_cfg) },
    { HTTP_VERB_PUT, "boot-source", NULL, false, put_boot_source, PUTS(boot_source) },
    { HTTP_VERB_PUT, "cpu-config", NULL, false, put_cpu_config, PUTS(cpu_cfg) },
    { HTTP_VERB_PUT, "drives", NULL, true, put_drive, PUTS(drive) },
    { HTTP_VERB_PATCH, "drives", NULL, true, patch_drive, PATCHES(drive) },
    { HTTP_VERB_DELETE, "drives", NULL, true, delete_device, UNCOUNTED },
    { HTTP_VERB_PUT, "network-interfaces", NULL, true, put_net, PUTS(network) },
    { HTTP_VERB_PATCH, "network-interfaces", NULL, true, patch_net, PATCHES(network) },
    { HTTP_VERB_DELETE, "network-interfaces", NULL, true, delete_device, UNCOUNTED },
    { HTTP_VERB_PUT, "vsock", NULL, false, put_vsock, PUTS(vsock) },
    { HTTP_VERB_PUT, "logger", NULL, false, put_logger, PUTS(logger) },
    { HTTP_VERB_PUT, "metrics", NULL, false, put_metrics, PUTS(metrics) },
    { HTTP_VERB_PUT, "serial", NULL, false, put_serial, PUTS(serial) },
    { HTTP_VERB_PUT, "actions", NULL, false, put_action, PUTS(actions) },
    { HTTP_VERB_PATCH, "vm", NULL, false, patch_vm, UNCOUNTED },
};

/* Serves what the table has, counting it. */
static int serve(const struct route *r, struct api_call *c, struct error *e)
{
    if (r->count)
        metric_inc(r->count);
    if (r->serve(c, e) == 0)
        return 0;
    if (r->fails)
        metric_inc(r->fails);
    return -1;
}

static bool token_is(struct token t, const char *name)
{
    return strlen(name) == t.length && memcmp(t.at, name, t.length) == 0;
}

static const struct route *find_route(enum http_verb verb, struct token first, struct token second)
{
    for (size_t i = 0; i < sizeof(routes) / sizeof(*routes); i++) {
        const struct route *r = &routes[i];

        if (r->verb == verb && token_is(first, r->first) &&
            (!r->second || token_is(second, r->second)))
            return r;
    }
    return NULL;
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
    static const char *const names[] = { "balloon", "entropy", "pmem", "hotplug", "snapshot" };

    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
        if (token_is(first, names[i]))
            return true;
    return false;
}

static int dispatch(struct api_call *c, struct error *e)
{
    const char *path = c->request->path + strspn(c->request->path, "/");
    struct token first = next_token(&path);
    struct token second = next_token(&path);
    const struct route *r = find_route(c->request->verb, first, second);

    if (check_body(c->request, e) < 0)
        return -1;
    if (!r) {
        char name[HTTP_LINE_MAX];

        plain(name, sizeof(name) - 128, first.at, first.length);
        return fail(e, ERR_INVALID, "Invalid request method and/or path: %s %s.%s",
                    http_verb_names[c->request->verb], name,
                    is_absent(first) ? " This version does not have it." : "");
    }
    if (r->takes_id && take_id(c->id, second, e) < 0)
        return -1;
    return serve(r, c, e);
}

static void log_request(const struct api_request *r)
{
    static const char *const names[HTTP_VERBS] = { "Get", "Put", "Patch", "Delete" };
    char path[256], body[BODY_LOGGED_MAX];

    quote(path, sizeof(path), r->path, strlen(r->path));
    if (r->body && strcmp(r->path, "/mmds") != 0) /* what the guest alone should know */
        log_info("The API server received a %s request on %s with body %s.", names[r->verb], path,
                 quote(body, sizeof(body), r->body, r->body_length));
    else
        log_info("The API server received a %s request on %s.", names[r->verb], path);
}

/* A message may repeat what a client sent; in the log it is one line all the same. */
static void log_failure(const char *message)
{
    char line[sizeof(((struct error *)0)->msg)];
    size_t i = 0;

    for (; i < sizeof(line) - 1 && message[i]; i++)
        line[i] = (char)((unsigned char)message[i] < 0x20 ? ' ' : message[i]);
    line[i] = '\0';
    log_error("Received Error. Status code: 400 Bad Request. Message: %s", line);
}

static void fail_answer(struct api_answer *a, const struct error *e)
{
    log_failure(e->msg);
    a->status = 400;
    a->type = NULL;
    json_writer_fini(&a->body);
    json_put(&a->body, "{\"fault_message\":");
    json_put_string(&a->body, e->msg);
    json_put(&a->body, "}");
}

void api_serve(struct vm *vm, const struct api_request *request, struct api_answer *answer)
{
    struct api_call call = { .vm = vm, .request = request, .answer = answer };
    uint64_t start_us = monotonic_us();
    struct error e;

    *answer = (struct api_answer){ 0 };
    log_request(request);
    if (dispatch(&call, &e) < 0) {
        fail_answer(answer, &e);
    } else {
        answer->status = answer->body.length > 0 ? 200 : 204;
        log_info("The request was executed successfully. Status code: %s.",
                 answer->status == 200 ? "200 OK" : "204 No Content");
    }
    if (answer->deprecated)
        metric_inc(&metrics.deprecated_api.deprecated_http_api_calls);
    log_debug("Total previous API call duration: %llu us.",
              (unsigned long long)(monotonic_us() - start_us));
}
