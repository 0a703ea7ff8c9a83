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
#include "vmm/base/instance_id.h"
#include "vmm/base/log.h"
#include "vmm/base/metrics.h"
#include "vmm/base/signals.h"
#include "vmm/base/timeline.h"
#include "vmm/base/version.h"
#include "vmm/machine/vm.h"
#include "vmm/seccomp/file.h"

enum exit_code {
    EXIT_OK = 0,
    EXIT_GENERIC = 1,
    EXIT_BAD_LEVEL = 152,
    EXIT_BAD_ARGUMENTS = 153,
};

#define PAYLOAD_DEFAULT_BYTES 51200u
#define PAYLOAD_MAX_BYTES     (1u << 30) /* what the JSON parser can count */

struct options {
    const char *api_sock, *id, *config_file, *level, *log_path, *module, *metrics_path;
    const char *seccomp_filter, *start_time_us, *start_time_cpu_us, *parent_cpu_time_us;
    const char *max_payload, *metadata, *mmds_size_limit, *describe_snapshot;
    bool no_api, boot_timer, show_level, show_origin, version, help;
    bool no_seccomp, enable_pci, snapshot_version;
};

static const struct option {
    const char *name;
    const char *value; /* what --help calls it; NULL: a flag without one */
    size_t offset;     /* in struct options: a string, or a bool for a flag */
    const char *help;
} options_table[] = {
    { "api-sock", "PATH", offsetof(struct options, api_sock),
      "UNIX socket to serve the API on; must not exist [/run/firecracker.socket]" },
    { "id", "ID", offsetof(struct options, id),
      "name of this microVM: 1 to 64 letters, digits and hyphens [anonymous-instance]" },
    { "config-file", "PATH", offsetof(struct options, config_file),
      "configure from a JSON file and boot at once" },
    { "no-api", NULL, offsetof(struct options, no_api), "serve no API; needs --config-file" },
    { "boot-timer", NULL, offsetof(struct options, boot_timer),
      "log the time from the start to the guest's mark (a write of 123 to 0xc0000000)" },
    { "http-api-max-payload-size", "BYTES", offsetof(struct options, max_payload),
      "largest body of a request [51200]" },
    { "log-path", "PATH", offsetof(struct options, log_path), "file or FIFO for the log [stdout]" },
    { "level", "LEVEL", offsetof(struct options, level),
      "Off, Error, Warn, Info, Debug or Trace [Info]" },
    { "show-level", NULL, offsetof(struct options, show_level), "show the level in each log line" },
    { "show-log-origin", NULL, offsetof(struct options, show_origin),
      "show the source file and line in each log line" },
    { "module", "PREFIX", offsetof(struct options, module),
      "log only what source files log whose path begins so (api, virtio, vmm/machine)" },
    { "metrics-path", "PATH", offsetof(struct options, metrics_path),
      "file or FIFO for the metrics [none]" },
    { "no-seccomp", NULL, offsetof(struct options, no_seccomp),
      "leave the VMM's system calls unlimited (but for what the jailer allows)" },
    { "seccomp-filter", "PATH", offsetof(struct options, seccomp_filter),
      "use the filters of a file, as seccompiler-bin makes them, instead of the built-in ones" },
    { "start-time-us", "US", offsetof(struct options, start_time_us),
      "when the jailer began, on CLOCK_MONOTONIC: for the metrics" },
    { "start-time-cpu-us", "US", offsetof(struct options, start_time_cpu_us),
      "the process's CPU time at exec: for the metrics" },
    { "parent-cpu-time-us", "US", offsetof(struct options, parent_cpu_time_us),
      "CPU time that the jailer used: for the metrics" },
    { "enable-pci", NULL, offsetof(struct options, enable_pci),
      "refused: devices are on virtio-mmio" },
    { "metadata", "PATH", offsetof(struct options, metadata), "refused: there is no MMDS yet" },
    { "mmds-size-limit", "BYTES", offsetof(struct options, mmds_size_limit),
      "refused: there is no MMDS yet" },
    { "snapshot-version", NULL, offsetof(struct options, snapshot_version),
      "refused: there are no snapshots yet" },
    { "describe-snapshot", "PATH", offsetof(struct options, describe_snapshot),
      "refused: there are no snapshots yet" },
    { "version", NULL, offsetof(struct options, version), "print the version and exit" },
    { "help", NULL, offsetof(struct options, help), "print this text and exit (also -h)" },
};
#define OPTIONS (sizeof(options_table) / sizeof(*options_table))
_Static_assert(OPTIONS <= 32, "parse_option() keeps a bit for each");

static void print_help(void)
{
    printf("mayfly %s: one process, one microVM on KVM. Answers as Firecracker v%s.\n\n"
           "usage: mayfly [--NAME [VALUE]]...\n\n",
           MAYFLY_VERSION, FIRECRACKER_VERSION);
    for (size_t i = 0; i < OPTIONS; i++) {
        const struct option *o = &options_table[i];

        printf("  --%s%s%-*s %s\n", o->name, o->value ? " " : "",
               (int)(32 - strlen(o->name) - !!o->value), o->value ? o->value : "", o->help);
    }
    printf("\nexit codes: 0 the guest ended; 1 an error; %d bad --level; %d bad arguments;\n"
           "after a signal: 148 SIGSYS, 149 SIGBUS, 150 SIGSEGV, 151 SIGXFSZ, 154 SIGXCPU,\n"
           "156 SIGHUP, 157 SIGILL. SIGTERM, SIGINT and SIGQUIT kill the process.\n",
           EXIT_BAD_LEVEL, EXIT_BAD_ARGUMENTS);
}

static const struct option *find_option(const char *name)
{
    for (size_t i = 0; i < OPTIONS; i++)
        if (strcmp(options_table[i].name, name) == 0)
            return &options_table[i];
    return NULL;
}

static int refuse_unknown(const char *name, struct error *e)
{
    return fail(e, ERR_INVALID,
                "Found argument '%s' which wasn't expected, or isn't valid in this context.", name);
}

/* One argument at argv[i]; how many elements it took, or -1. */
static int parse_option(struct options *out, unsigned *seen, char **argv, int i, struct error *e)
{
    const char *name = strncmp(argv[i], "--", 2) == 0 ? argv[i] + 2 : NULL;
    const struct option *o = name ? find_option(name) : NULL;
    unsigned bit;

    if (!o)
        return refuse_unknown(name ? name : argv[i], e);
    bit = 1u << (o - options_table);
    if (*seen & bit)
        return fail(e, ERR_INVALID, "The argument '%s' was provided more than once.", name);
    *seen |= bit;
    if (!o->value) {
        *(bool *)((char *)out + o->offset) = true;
        return 1;
    }
    if (!argv[i + 1] || strncmp(argv[i + 1], "--", 2) == 0)
        return fail(e, ERR_INVALID, "The argument '%s' requires a value, but none was supplied.",
                    name);
    *(const char **)((char *)out + o->offset) = argv[i + 1];
    return 2;
}

/* `--help` and `--version` win over whatever else is there. */
static bool asks_only(struct options *o, char **argv)
{
    for (; *argv && strcmp(*argv, "--") != 0; argv++) {
        o->help |= strcmp(*argv, "--help") == 0 || strcmp(*argv, "-h") == 0;
        o->version |= strcmp(*argv, "--version") == 0;
    }
    return o->help || o->version;
}

static int check_id(const char *id, struct error *e)
{
    char why[INSTANCE_ID_ERROR_BYTES];

    return instance_id_check(id, why) ? 0 : fail(e, ERR_INVALID, "%s", why);
}

struct numbers {
    uint64_t start_time_us, start_time_cpu_us, parent_cpu_time_us, max_payload;
};

/* Leaves *out alone where the option is not given. */
static int parse_number(uint64_t *out, const char *name, const char *text, uint64_t max,
                        struct error *e)
{
    uint64_t value = 0;

    if (!text)
        return 0;
    for (const char *at = text; *at || at == text; at++) {
        unsigned digit = (unsigned)(*at - '0');

        if (digit > 9)
            return fail(e, ERR_INVALID, "The argument '%s' must be a number, not '%s'.", name,
                        text);
        if (value > (max - digit) / 10)
            return fail(e, ERR_INVALID, "The argument '%s' must be at most %llu, not %s.", name,
                        (unsigned long long)max, text);
        value = value * 10 + digit;
    }
    *out = value;
    return 0;
}

static int parse_numbers(const struct options *o, struct numbers *n, struct error *e)
{
    if (parse_number(&n->start_time_us, "start-time-us", o->start_time_us, UINT64_MAX, e) < 0 ||
        parse_number(&n->start_time_cpu_us, "start-time-cpu-us", o->start_time_cpu_us, UINT64_MAX,
                     e) < 0 ||
        parse_number(&n->parent_cpu_time_us, "parent-cpu-time-us", o->parent_cpu_time_us,
                     UINT64_MAX, e) < 0)
        return -1;
    return parse_number(&n->max_payload, "http-api-max-payload-size", o->max_payload,
                        PAYLOAD_MAX_BYTES, e);
}

/* Options that are right, for what this version does not have. */
static int refuse_absent(const struct options *o, struct error *e)
{
    const struct {
        bool is_given;
        const char *what;
    } absent[] = {
        { o->enable_pci, "--enable-pci: there is no PCI; devices are on virtio-mmio" },
        { o->metadata, "--metadata: there is no MMDS" },
        { o->mmds_size_limit, "--mmds-size-limit: there is no MMDS" },
        { o->snapshot_version, "--snapshot-version: there are no snapshots" },
        { o->describe_snapshot, "--describe-snapshot: there are no snapshots" },
    };

    for (size_t i = 0; i < sizeof(absent) / sizeof(*absent); i++)
        if (absent[i].is_given)
            return fail(e, ERR_INVALID, "%s in this version", absent[i].what);
    return 0;
}

static int parse(struct options *o, struct numbers *n, char **argv, struct error *e)
{
    unsigned seen = 0;
    int used;

    for (int i = 1; argv[i] && strcmp(argv[i], "--") != 0; i += used) {
        used = parse_option(o, &seen, argv, i, e);
        if (used < 0)
            return -1;
    }
    if (o->no_api && !o->config_file)
        return fail(e, ERR_INVALID, "Argument 'config-file' required, but not found.");
    if (o->no_seccomp && o->seccomp_filter)
        return fail(e, ERR_INVALID,
                    "Argument 'seccomp-filter' cannot be used together with argument "
                    "'no-seccomp'.");
    return check_id(o->id, e) < 0 ? -1 : parse_numbers(o, n, e);
}

static int set_up_log(const struct options *o, struct error *e)
{
    int level = o->level ? log_level_parse(o->level) : LOG_INFO;

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
    return code;
}

/* Said twice: for whoever reads the log, and for whoever started us. */
static int end_with(int code, const char *what, const struct error *e)
{
    log_error("%s: %s", what, e->msg);
    fprintf(stderr, "Error: %s: %s\n", what, e->msg);
    return end(code);
}

/* From the jailer's start to an answering API; what was not given is not told. */
static void record_startup(const struct options *o, const struct numbers *n)
{
    if (o->start_time_us)
        metric_set(&metrics.api_server.process_startup_time_us, monotonic_us() - n->start_time_us);
    if (o->start_time_cpu_us)
        metric_set(&metrics.api_server.process_startup_time_cpu_us,
                   clock_us(CLOCK_PROCESS_CPUTIME_ID) - n->start_time_cpu_us +
                       n->parent_cpu_time_us);
}

/* Finds the filters that the threads of a running guest will have. That of the process as it starts
 * is the jailer's. */
static int choose_filters(const struct seccomp_threads **out, const struct options *o,
                          struct error *e)
{
    static struct seccomp_threads custom;

    *out = NULL;
    if (o->no_seccomp)
        return 0;
    *out = o->seccomp_filter ? &custom : &seccomp_threads;
    return o->seccomp_filter ? seccomp_file_read(&custom, o->seccomp_filter, e) : 0;
}

static int set_up_metrics(const struct options *o, struct error *e)
{
    const struct metrics_config config = { .metrics_path = (char *)o->metrics_path };

    return o->metrics_path ? metrics_open(&config, o->id, e) : 0;
}

static int run(const struct options *o, const struct numbers *n)
{
    struct vm_options vm_options = { .id = o->id, .boot_timer = o->boot_timer };
    const char *how = o->no_api ? "RunWithoutApiError error" : "RunWithApiError error";
    static struct loop loop; /* these live as long as the process: nothing is freed at its end */
    static struct vm *vm;
    static struct api *api;
    struct error e;
    int code;

    log_info("Running Firecracker v%s", FIRECRACKER_VERSION);
    signals_install();
    if (choose_filters(&vm_options.seccomp, o, &e) < 0)
        return end_with(EXIT_GENERIC, "Seccomp error", &e);
    if (set_up_metrics(o, &e) < 0)
        return end_with(EXIT_GENERIC, "Could not initialize metrics", &e);
    if (loop_init(&loop, &e) < 0)
        return end_with(EXIT_GENERIC, "event loop", &e);
    vm = vm_new(&loop, &vm_options);
    if (!o->no_api) {
        api = api_open(&loop, vm, o->api_sock, n->max_payload, &e);
        if (!api)
            return end_with(EXIT_GENERIC, how, &e);
        record_startup(o, n);
    }
    if (o->config_file && config_file_apply(vm, o->config_file, &e) < 0)
        return end_with(EXIT_GENERIC, how, &e);
    code = loop_run(&loop);
    log_info("Vmm is stopping.");
    vm_stop(vm);
    metrics_write();
    end(code);
    vm_close(vm);
    return code;
}

int main(int argc, char **argv)
{
    struct options o = { .api_sock = "/run/firecracker.socket", .id = "anonymous-instance" };
    struct numbers n = { .max_payload = PAYLOAD_DEFAULT_BYTES };
    struct error e;

    (void)argc;
    timeline_init();
    if (asks_only(&o, argv + 1)) {
        if (o.help)
            print_help();
        else
            printf("Firecracker v%s\nmayfly %s\n\n", FIRECRACKER_VERSION, MAYFLY_VERSION);
        fflush(stdout);
        return o.help ? EXIT_OK : end(EXIT_OK);
    }
    if (parse(&o, &n, argv, &e) < 0)
        return end_with(EXIT_BAD_ARGUMENTS, "Arguments parsing error", &e);
    if (refuse_absent(&o, &e) < 0)
        return end_with(EXIT_GENERIC, "Not supported", &e);
    timeline_begin(n.start_time_us);
    log_set_instance(o.id);
    if (o.level && log_level_parse(o.level) < 0) {
        fail(&e, ERR_INVALID,
             "Failed to parse string to level filter: %s.Possible values: [Error, Warning, Info, "
             "Debug]",
             o.level);
        return end_with(EXIT_BAD_LEVEL, "Invalid value for logger level", &e);
    }
    if (set_up_log(&o, &e) < 0)
        return end_with(EXIT_GENERIC, "Could not initialize logger", &e);
    return run(&o, &n);
}
