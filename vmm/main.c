/* The process: from arguments to a running event loop, and to an exit code. */

#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "api/config_file.h"
#include "api/server.h"
#include "vmm/log.h"
#include "vmm/version.h"
#include "vmm/vm.h"

enum exit_code {
    EXIT_OK = 0,
    EXIT_GENERIC = 1,
    EXIT_BAD_LEVEL = 152,
    EXIT_BAD_ARGUMENTS = 153,
};

#define ID_MAX_BYTES 64u

/* http-api-max-payload-size */
#define API_MAX_PAYLOAD_BYTES 51200u

struct options {
    const char *api_sock, *id, *config_file, *level, *log_path;
    bool no_api, boot_timer, show_level, show_origin, version, help;
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
    { "log-path", "PATH", offsetof(struct options, log_path), "file or FIFO for the log [stdout]" },
    { "level", "LEVEL", offsetof(struct options, level),
      "Off, Error, Warn, Info, Debug or Trace [Info]" },
    { "show-level", NULL, offsetof(struct options, show_level), "show the level in each log line" },
    { "show-log-origin", NULL, offsetof(struct options, show_origin),
      "show the source file and line in each log line" },
    { "version", NULL, offsetof(struct options, version), "print the version and exit" },
    { "help", NULL, offsetof(struct options, help), "print this text and exit (also -h)" },
};
#define OPTIONS (sizeof(options_table) / sizeof(*options_table))

static void print_help(void)
{
    printf("mayfly %s: one process, one microVM on KVM. Answers as Firecracker v%s.\n\n"
           "usage: mayfly [--NAME [VALUE]]...\n\n",
           MAYFLY_VERSION, FIRECRACKER_VERSION);
    for (size_t i = 0; i < OPTIONS; i++) {
        const struct option *o = &options_table[i];

        printf("  --%s%s%-*s %s\n", o->name, o->value ? " " : "",
               (int)(22 - strlen(o->name) - !!o->value), o->value ? o->value : "", o->help);
    }
    printf("\nexit codes: 0 the guest ended; 1 an error; %d bad --level; %d bad arguments\n",
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
    size_t n = strlen(id);

    if (n == 0 || n > ID_MAX_BYTES)
        return fail(e, ERR_INVALID,
                    "Invalid instance ID: Invalid len (%zu);  the length must be between 1 and %u",
                    n, ID_MAX_BYTES);
    for (size_t i = 0; i < n; i++)
        if (!strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-", id[i]))
            return fail(e, ERR_INVALID, "Invalid instance ID: Invalid char (%c) at position %zu",
                        id[i], i);
    return 0;
}

static int parse(struct options *o, char **argv, struct error *e)
{
    unsigned seen = 0;
    int used;

    for (int i = 1; argv[i] && strcmp(argv[i], "--") != 0; i += used) {
        used = parse_option(o, &seen, argv, i, e);
        if (used < 0)
            return -1;
    }
    if (o->no_api && !o->config_file)
        return fail(e, ERR_INVALID,
                    "The argument 'config-file' is required by 'no-api', but was not provided.");
    return check_id(o->id, e);
}

static int set_up_log(const struct options *o, struct error *e)
{
    int level = o->level ? log_level_parse(o->level) : LOG_INFO;

    if (o->log_path && log_open(o->log_path, e) < 0)
        return -1;
    if (level < 0)
        return fail(e, ERR_INVALID, "--level: %s is none of Off, Error, Warn, Info, Debug, Trace",
                    o->level);
    log_set_options((struct log_options){
        .level = (enum log_level)level,
        .show_level = o->show_level,
        .show_origin = o->show_origin,
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

/* A handler, not SIG_IGN: a peer that went away must be noticed by the write that fails. */
static void on_sigpipe(int signal)
{
    (void)signal;
}

static int run(const struct options *o)
{
    const struct vm_options vm_options = { .id = o->id, .boot_timer = o->boot_timer };
    const struct sigaction sigpipe = { .sa_handler = on_sigpipe, .sa_flags = SA_RESTART };
    static struct loop loop; /* these live as long as the process: nothing is freed at its end */
    static struct vm *vm;
    static struct api *api;
    struct error e;
    int code;

    log_info("Running Firecracker v%s", FIRECRACKER_VERSION);
    sigaction(SIGPIPE, &sigpipe, NULL);
    if (loop_init(&loop, &e) < 0)
        return end_with(EXIT_GENERIC, "event loop", &e);
    vm = vm_new(&loop, &vm_options);
    if (!o->no_api) {
        api = api_open(&loop, vm, o->api_sock, API_MAX_PAYLOAD_BYTES, &e);
        if (!api)
            return end_with(EXIT_GENERIC, "RunWithApiError error", &e);
    }
    if (o->config_file && config_file_apply(vm, o->config_file, &e) < 0)
        return end_with(EXIT_GENERIC, "RunWithoutApiError error", &e);
    code = loop_run(&loop);
    log_info("Vmm is stopping.");
    vm_stop(vm);
    return end(code);
}

int main(int argc, char **argv)
{
    struct options o = { .api_sock = "/run/firecracker.socket", .id = "anonymous-instance" };
    struct error e;

    (void)argc;
    if (asks_only(&o, argv + 1)) {
        if (o.help)
            print_help();
        else
            printf("Firecracker v%s\nmayfly %s\n\n", FIRECRACKER_VERSION, MAYFLY_VERSION);
        fflush(stdout);
        return o.help ? EXIT_OK : end(EXIT_OK);
    }
    if (parse(&o, argv, &e) < 0)
        return end_with(EXIT_BAD_ARGUMENTS, "Arguments parsing error", &e);
    log_set_instance(o.id);
    if (set_up_log(&o, &e) < 0)
        return end_with(EXIT_BAD_LEVEL, "Logger error", &e);
    return run(&o);
}
