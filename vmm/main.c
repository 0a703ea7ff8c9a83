/* The process: from arguments to a running event loop, and to an exit code. */

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "api/config_file.h"
#include "api/server.h"
#include "vmm/base/clock.h"
#include "vmm/base/console.h"
#include "vmm/base/inherited.h"
#include "vmm/base/instance_id.h"
#include "vmm/base/log.h"
#include "vmm/base/metrics.h"
#include "vmm/base/options.h"
#include "vmm/base/signals.h"
#include "vmm/base/syslog.h"
#include "vmm/base/timeline.h"
#include "vmm/base/version.h"
#include "vmm/machine/vm.h"
#include "vmm/seccomp/file.h"
#include "vmm/seccomp/landlock.h"
#include "vmm/snapshot/files.h"
#include "vmm/snapshot/format.h"

enum exit_code {
    EXIT_OK = 0,
    EXIT_GENERIC = 1,
    EXIT_BAD_LEVEL = 152,
    EXIT_BAD_ARGUMENTS = 153,
};

#define PAYLOAD_DEFAULT_BYTES 51200u
#define PAYLOAD_MAX_BYTES     (1u << 30) /* what the JSON parser can count */

/* A number that may not be given. */
struct number {
    bool is_given;
    uint64_t value;
};

struct arguments {
    const char *api_sock, *id, *config_file, *level, *log_path, *module, *metrics_path;
    const char *seccomp_filter, *metadata, *describe_snapshot;
    struct number start_time_us, start_time_cpu_us, parent_cpu_time_us, mmds_size_limit;
    uint64_t max_payload;
    bool no_api, boot_timer, show_level, show_origin, json_log;
    bool no_seccomp, enable_pci, snapshot_version;
};

static int parse_number(const char *name, const char *text, void *place, struct error *e)
{
    struct number *n = place;

    n->is_given = true;
    return option_number(name, text, UINT64_MAX, &n->value, e);
}

static int parse_payload(const char *name, const char *text, void *place, struct error *e)
{
    return option_number(name, text, PAYLOAD_MAX_BYTES, place, e);
}

static int parse_log_format(const char *name, const char *text, void *place, struct error *e)
{
    *(bool *)place = strcmp(text, "json") == 0;
    if (!*(bool *)place && strcmp(text, "text") != 0)
        return fail(e, ERR_INVALID, "The argument '%s' must be text or json, not '%s'.", name,
                    text);
    return 0;
}

enum { ALONE_HELP, ALONE_VERSION };

#define AT(member) offsetof(struct arguments, member)

static const struct option option_rows[] = {
    { "api-sock", "PATH", AT(api_sock),
      .help = "UNIX socket to serve the API on; must not exist [/run/firecracker.socket]" },
    { "id", "ID", AT(id), instance_id_parse,
      .help = "name of this microVM: 1 to 64 letters, digits and hyphens [anonymous-instance]" },
    { "config-file", "PATH", AT(config_file),
      .help = "configure from a JSON file, or a pipe, and boot at once" },
    { "no-api", NULL, AT(no_api), .help = "serve no API; needs --config-file" },
    { "boot-timer", NULL, AT(boot_timer),
      .help = "log the time from the start to the guest's mark (a write of 123 to 0xc0000000)" },
    { "http-api-max-payload-size", "BYTES", AT(max_payload), parse_payload,
      .help = "largest body of a request [51200]" },
    { "log-path", "PATH", AT(log_path), .help = "file or FIFO for the log [stdout]" },
    { "log-format", "text|json", AT(json_log), parse_log_format,
      .help = "json: each line of the log is an object [text]" },
    { "level", "Off|Error|Warn|Info|Debug|Trace", AT(level),
      .help = "the least severe lines that are logged [Info]" },
    { "show-level", NULL, AT(show_level), .help = "show the level in each log line" },
    { "show-log-origin", NULL, AT(show_origin),
      .help = "show the source file and line in each log line" },
    { "module", "PREFIX", AT(module),
      .help = "log only what source files log whose path begins so (api, virtio, vmm/machine)" },
    { "metrics-path", "PATH", AT(metrics_path), .help = "file or FIFO for the metrics [none]" },
    { "no-seccomp", NULL, AT(no_seccomp),
      .help =
          "leave the VMM's system calls, signals and sockets unlimited (but for what the jailer "
          "allows)" },
    { "seccomp-filter", "PATH", AT(seccomp_filter),
      .help = "use the filters of a file, as seccompiler-bin makes them, instead of the built-in "
              "ones" },
    { "start-time-us", "US", AT(start_time_us), parse_number,
      .help = "when the jailer began, on CLOCK_MONOTONIC: for the metrics" },
    { "start-time-cpu-us", "US", AT(start_time_cpu_us), parse_number,
      .help = "the process's CPU time at exec: for the metrics" },
    { "parent-cpu-time-us", "US", AT(parent_cpu_time_us), parse_number,
      .help = "CPU time that the jailer used: for the metrics" },
    { "enable-pci", NULL, AT(enable_pci), .help = "refused: devices are on virtio-mmio" },
    { "metadata", "PATH", AT(metadata),
      .help = "put a JSON file into the metadata service (MMDS)" },
    { "mmds-size-limit", "BYTES", AT(mmds_size_limit), parse_number,
      .help = "largest metadata, as compact JSON [that of --http-api-max-payload-size]" },
    { "snapshot-version", NULL, AT(snapshot_version),
      .help = "print the version of the snapshots that are made, and exit" },
    { "describe-snapshot", "PATH", AT(describe_snapshot),
      .help = "print the version of a snapshot's state file, and exit" },
    { "version", NULL, ALONE_VERSION, .rules = OPTION_ALONE, .help = "print the version and exit" },
    { "help", NULL, ALONE_HELP, .rules = OPTION_ALONE,
      .help = "print this text and exit (also -h)" },
};
OPTIONS(options, option_rows);

static void print_help(void)
{
    printf("mayfly %s: one process, one microVM on KVM. Answers as Firecracker v%s.\n\n"
           "usage: mayfly [--NAME [VALUE]]...\n\n",
           MAYFLY_VERSION, FIRECRACKER_VERSION);
    options_print(&options);
    printf("\nexit codes: 0 the guest ended; 1 an error; %d bad --level; %d bad arguments;\n"
           "after a signal: 148 SIGSYS, 149 SIGBUS, 150 SIGSEGV, 151 SIGXFSZ, 154 SIGXCPU,\n"
           "156 SIGHUP, 157 SIGILL. SIGTERM, SIGINT and SIGQUIT kill the process; as the first\n"
           "process of a PID namespace it exits with 128 + N.\n",
           EXIT_BAD_LEVEL, EXIT_BAD_ARGUMENTS);
}

static int parse_arguments(struct arguments *o, char **argv, struct error *e)
{
    if (options_check(&options, argv, e) < 0 || !options_take(&options, argv, o, e))
        return -1;
    if (o->no_api && !o->config_file)
        return fail(e, ERR_INVALID, "Argument 'config-file' required, but not found.");
    if (o->no_seccomp && o->seccomp_filter)
        return fail(e, ERR_INVALID,
                    "Argument 'seccomp-filter' cannot be used together with argument "
                    "'no-seccomp'.");
    return 0;
}

static int set_up_log(const struct arguments *o, struct error *e)
{
    int level = o->level ? log_level_parse(o->level) : LOG_INFO;

    log_prepare();
    if (o->json_log)
        log_set_json();
    if (o->log_path && log_open(o->log_path, e) < 0)
        return -1;
    log_set_options((struct log_options){
        .level = (enum log_level)level,
        .show_level = o->show_level,
        .show_origin = o->show_origin,
        .module = o->module,
    });
    return 0;
}

static int end(int code)
{
    if (code == EXIT_OK)
        log_info("Firecracker exiting successfully. exit_code=0");
    else
        log_error("Firecracker exiting with error. exit_code=%d", code);
    console_restore();
    return code;
}

/* Said twice: for whoever reads the log, and for whoever started us. */
static int end_with(int code, const char *what, struct error *e)
{
    fail_within(e, what);
    log_error("%s", e->msg);
    syslog_print_error(log_get_instance(), e->msg);
    return end(code);
}

/* From the jailer's start to an answering API; what was not given is not told. */
static void record_startup(const struct arguments *o)
{
    if (o->start_time_us.is_given)
        metric_set(&metrics.api_server.process_startup_time_us,
                   monotonic_us() - o->start_time_us.value);
    if (o->start_time_cpu_us.is_given)
        metric_set(&metrics.api_server.process_startup_time_cpu_us,
                   clock_us(CLOCK_PROCESS_CPUTIME_ID) - o->start_time_cpu_us.value +
                       o->parent_cpu_time_us.value);
}

/* Finds the filters that the threads of a running guest will have. That of the process as it starts
 * is the jailer's. */
static int choose_filters(const struct seccomp_threads **out, const struct arguments *o,
                          struct error *e)
{
    static struct seccomp_threads custom;

    *out = NULL;
    if (o->no_seccomp)
        return 0;
    *out = o->seccomp_filter ? &custom : &seccomp_threads;
    return o->seccomp_filter ? seccomp_file_read(&custom, o->seccomp_filter, e) : 0;
}

static int set_up_metrics(const struct arguments *o, struct error *e)
{
    const struct metrics_config config = { .metrics_path = (char *)o->metrics_path };

    return o->metrics_path ? metrics_open(&config, o->id, e) : 0;
}

static int run(const struct arguments *o)
{
    struct vm_options vm_options = {
        .id = o->id,
        .boot_timer = o->boot_timer,
        .metadata_max_bytes =
            o->mmds_size_limit.is_given ? o->mmds_size_limit.value : o->max_payload,
    };
    const char *how = o->no_api ? "RunWithoutApiError error" : "RunWithApiError error";
    static struct loop loop; /* these live as long as the process: nothing is freed at its end */
    static struct vm *vm;
    static struct api *api;
    struct error e;
    int code, ret;

    log_info("Running Firecracker v%s", FIRECRACKER_VERSION);
    ret = o->no_seccomp ? 0 : landlock_scope();
    if (ret < 0) {
        fail_os(&e, -ret, "cannot confine the process");
        return end_with(EXIT_GENERIC, "Landlock error", &e);
    }
    if (choose_filters(&vm_options.seccomp, o, &e) < 0)
        return end_with(EXIT_GENERIC, "Seccomp error", &e);
    if (set_up_metrics(o, &e) < 0)
        return end_with(EXIT_GENERIC, "Could not initialize metrics", &e);
    if (loop_init(&loop, &e) < 0)
        return end_with(EXIT_GENERIC, "event loop", &e);
    vm = vm_new(&loop, &vm_options);
    if (!o->no_api) {
        api = api_open(&loop, vm, o->api_sock, o->max_payload, &e);
        if (!api)
            return end_with(EXIT_GENERIC, how, &e);
        record_startup(o);
    }
    ret = 0;
    if (o->config_file)
        ret = config_file_apply(vm, o->config_file, o->metadata, &e);
    else if (o->metadata)
        ret = metadata_file_apply(vm, o->metadata, &e);
    if (ret < 0)
        return end_with(EXIT_GENERIC, how, &e);
    vm_prepare(vm);
    code = loop_run(&loop);
    log_info("Vmm is stopping.");
    vm_stop(vm);
    metrics_write_unasked();
    end(code);
    vm_close(vm);
    return code;
}

/* Of any version: the header is the same in all. */
static int describe_snapshot(const char *path)
{
    struct snapshot_header h = { .major = 0 };
    autofree uint8_t *state = NULL;
    struct error e;
    size_t bytes;
    int ret = snapshot_files_read_state(path, &state, &bytes, &e);

    if (ret < 0 && e.os_errno)
        fail_os(&e, e.os_errno, "Unable to open snapshot state file");
    else if (ret == 0)
        ret = snapshot_header_read(&h, state, bytes, &e);
    if (ret < 0 && !e.os_errno)
        fail_within(&e, "Invalid data format version of snapshot file");
    if (ret < 0)
        return end_with(EXIT_GENERIC, "When printing Snapshot Data format", &e);
    printf("v%u.%u.0\n", h.major, h.minor);
    fflush(stdout);
    return end(EXIT_OK);
}

int main(int argc, char **argv)
{
    struct arguments o = {
        .api_sock = "/run/firecracker.socket",
        .id = "anonymous-instance",
        .max_payload = PAYLOAD_DEFAULT_BYTES,
    };
    const struct option *alone;
    struct error e;
    int ret;

    (void)argc;
    inherited_settle();
    timeline_init();
    signals_install();
    alone = options_alone(&options, argv + 1);
    if (alone && alone->at == ALONE_HELP) {
        print_help();
        return EXIT_OK;
    }
    if (alone) {
        printf("Firecracker v%s\nmayfly %s\n\n", FIRECRACKER_VERSION, MAYFLY_VERSION);
        fflush(stdout);
        return end(EXIT_OK);
    }
    ret = parse_arguments(&o, argv + 1, &e);
    log_set_instance(o.id);
    if (ret < 0)
        return end_with(EXIT_BAD_ARGUMENTS, "Arguments parsing error", &e);
    if (o.enable_pci) {
        fail(&e, ERR_INVALID, "--enable-pci: there is no PCI; devices are on virtio-mmio");
        return end_with(EXIT_GENERIC, "Not supported", &e);
    }
    if (o.snapshot_version) {
        printf("v%u.%u.0\n", SNAPSHOT_MAJOR, SNAPSHOT_MINOR);
        fflush(stdout);
        return end(EXIT_OK);
    }
    if (o.describe_snapshot)
        return describe_snapshot(o.describe_snapshot);
    timeline_begin(o.start_time_us.value);
    if (o.level && log_level_parse(o.level) < 0) {
        fail(&e, ERR_INVALID,
             "Failed to parse string to level filter: %s.Possible values: [Error, Warning, Info, "
             "Debug]",
             o.level);
        return end_with(EXIT_BAD_LEVEL, "Invalid value for logger level", &e);
    }
    if (set_up_log(&o, &e) < 0)
        return end_with(EXIT_GENERIC, "Could not initialize logger", &e);
    return run(&o);
}
