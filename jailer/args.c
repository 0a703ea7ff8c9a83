#include "jailer/args.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "jailer/die.h"
#include "vmm/base/instance_id.h"
#include "vmm/base/version.h"

#define NO_FILE_DEFAULT 2048u

/* A uid or a gid. The largest number of 32 bits means "leave it as it is" to setresuid(2). */
static int parse_owner(const char *name, const char *text, void *place, struct error *e)
{
    uint64_t n = 0;

    if (option_number(name, text, UINT32_MAX - 1, &n, e) < 0)
        return fail(e, ERR_INVALID, "Invalid %s: %s", name, text);
    *(uint32_t *)place = (uint32_t)n;
    return 0;
}
_Static_assert(sizeof(uid_t) == sizeof(uint32_t) && sizeof(gid_t) == sizeof(uint32_t), "both");

static int parse_resource_limit(const char *name, const char *text, void *place, struct error *e)
{
    const char *value = strchr(text, '=');
    bool is_fsize = strncmp(text, "fsize=", 6) == 0;
    struct args *a = place;

    if (!value)
        return fail(e, ERR_INVALID, "Invalid format for resources limits: %s", text);
    if (!is_fsize && strncmp(text, "no-file=", 8) != 0)
        return fail(e, ERR_INVALID, "Invalid resource argument: %.*s", (int)(value - text), text);
    if (option_number(name, value + 1, UINT64_MAX, is_fsize ? &a->fsize : &a->no_file, e) < 0)
        return fail(e, ERR_INVALID,
                    "Invalid limit value for resource: %s: must be a number of at most 64 bits",
                    value + 1);
    a->has_fsize |= is_fsize;
    return 0;
}

/* CONTROLLER.PROPERTY=VALUE. The file is one component of a path. */
static int parse_cgroup(const char *name, const char *text, void *place, struct error *e)
{
    struct args *a = place;
    const char *equals = strchr(text, '=');
    const char *dot = strchr(text, '.');
    struct cgroup_setting *s;

    (void)name;
    if (!equals || !equals[1] || strchr(equals + 1, '='))
        return fail(e, ERR_INVALID, "Invalid format for cgroups: %s", text);
    if (!dot || dot == text || dot + 1 >= equals || memchr(text, '/', (size_t)(equals - text)))
        return fail(e, ERR_INVALID, "Cgroup invalid file: %.*s", (int)(equals - text), text);
    if (a->cgroup_count == CGROUP_SETTINGS_MAX)
        return fail(e, ERR_INVALID, "More than %d arguments 'cgroup' were provided.",
                    CGROUP_SETTINGS_MAX);
    s = &a->cgroups[a->cgroup_count++];
    s->file = text;
    s->file_bytes = (int)(equals - text);
    s->controller_bytes = (int)(dot - text);
    s->value = equals + 1;
    return 0;
}

static int parse_cgroup_version(const char *name, const char *text, void *place, struct error *e)
{
    (void)name;
    if (strcmp(text, "1") != 0 && strcmp(text, "2") != 0)
        return fail(e, ERR_INVALID, "%s is an invalid cgroup version specifier", text);
    *(int *)place = *text - '0';
    return 0;
}

/* A relative path without `.` and `..`, so that it stays below the hierarchy's root. */
static int parse_parent_cgroup(const char *name, const char *text, void *place, struct error *e)
{
    bool is_valid = *text && *text != '/';

    (void)name;
    for (const char *at = text; *at && is_valid;) {
        size_t n = strcspn(at, "/");

        is_valid = !(n == 1 && at[0] == '.') && !(n == 2 && at[0] == '.' && at[1] == '.');
        at += n + strspn(at + n, "/");
    }
    *(const char **)place = text;
    return is_valid ? 0
                    : fail(e, ERR_INVALID,
                           "Parent cgroup path is invalid. Path should not be absolute or contain "
                           "'..' or '.'");
}

static int parse_exec_method(const char *name, const char *text, void *place, struct error *e)
{
    static const char *const methods[] = {
        [EXEC_COPY] = "copy",
        [EXEC_LINK] = "link",
        [EXEC_BIND] = "bind",
    };

    (void)name;
    for (unsigned i = 0; i < sizeof(methods) / sizeof(*methods); i++)
        if (strcmp(text, methods[i]) == 0) {
            *(enum exec_method *)place = (enum exec_method)i;
            return 0;
        }
    return fail(e, ERR_INVALID, "Invalid exec method: %s: must be copy, link or bind", text);
}

#define AT(member) offsetof(struct args, member)

static const struct option option_rows[] = {
    { "id", "ID", AT(id), instance_id_parse, OPTION_REQUIRED,
      "name of this microVM: 1 to 64 letters, digits and hyphens" },
    { "exec-file", "PATH", AT(exec_file), NULL, OPTION_REQUIRED, "the VMM's binary" },
    { "uid", "UID", AT(uid), parse_owner, OPTION_REQUIRED, "user that the VMM runs as" },
    { "gid", "GID", AT(gid), parse_owner, OPTION_REQUIRED, "group that the VMM runs as" },
    { "chroot-base-dir", "PATH", AT(chroot_base_dir),
      .help = "where the jails are: the VMM's root is PATH/EXEC-NAME/ID/root [/srv/jailer]" },
    { "netns", "PATH", AT(netns), .help = "network namespace to join" },
    { "daemonize", NULL, AT(daemonize),
      .help = "own session, and /dev/null for standard input, output and error (until the guest "
              "runs, the host's syslog for the latter)" },
    { "new-pid-ns", NULL, AT(new_pid_ns),
      .help = "new PID namespace; the jailer ends and leaves the PID in EXEC-NAME.pid" },
    { "cgroup", "FILE=VALUE", 0, parse_cgroup, OPTION_REPEATABLE,
      "cgroup setting, cpu.shares=10 for one; repeatable" },
    { "cgroup-version", "1|2", AT(cgroup_version), parse_cgroup_version,
      .help = "of --cgroup [1]" },
    { "parent-cgroup", "PATH", AT(parent_cgroup), parse_parent_cgroup,
      .help = "cgroup, relative to the hierarchy's root, that ID is made in; without --cgroup, in "
              "version 2, the one that is joined if it exists [EXEC-NAME]" },
    { "resource-limit", "NAME=N", 0, parse_resource_limit, OPTION_REPEATABLE,
      "fsize or no-file [no-file=2048]; repeatable" },
    { "exec-method", "copy|link|bind", AT(exec_method), parse_exec_method,
      .help = "how the binary comes into the jail; bind: read-only [copy]" },
    { "read-only-root", NULL, AT(read_only_root),
      .help = "only /run and what is mounted below the root can be written" },
    { "new-ipc-ns", NULL, AT(new_ipc_ns), .help = "new IPC namespace" },
    { "new-uts-ns", NULL, AT(new_uts_ns), .help = "new UTS namespace" },
    { "new-cgroup-ns", NULL, AT(new_cgroup_ns), .help = "new cgroup namespace" },
    { "new-user-ns", NULL, AT(new_user_ns),
      .help = "new user namespace, for a jailer without root: UID and GID are the caller's" },
    { "no-seccomp", NULL, AT(no_seccomp),
      .help = "do not limit the system calls of the whole process; needed for other VMMs than "
              "mayfly" },
    { "check", NULL, REQUEST_CHECK, .rules = OPTION_ALONE,
      .help = "say what this host lacks for running microVMs, and exit; with --exec-file and "
              "--chroot-base-dir, also what is wrong with these" },
    { "version", NULL, REQUEST_VERSION, .rules = OPTION_ALONE,
      .help = "print the version and exit" },
    { "help", NULL, REQUEST_HELP, .rules = OPTION_ALONE,
      .help = "print this text and exit (also -h)" },
};
OPTIONS(options, option_rows);

void args_print_help(void)
{
    printf("mayfly-jailer %s: builds a cell, walks in and becomes the VMM.\n\n"
           "usage: mayfly-jailer --id ID --exec-file PATH --uid UID --gid GID [OPTION]... "
           "[-- VMM-ARGUMENT...]\n"
           "       mayfly-jailer --check | --version | --help\n\n",
           MAYFLY_VERSION);
    options_print(&options);
}

/* `--check` looks where a jail would be made, if it is told where. Whatever else is there may be
 * wrong. */
static void find_places_to_check(struct args *a, char **argv)
{
    for (; argv[0] && argv[1]; argv++) {
        if (strcmp(argv[0], "--exec-file") == 0)
            a->exec_file = argv[1];
        if (strcmp(argv[0], "--chroot-base-dir") == 0)
            a->chroot_base_dir = argv[1];
    }
}

enum request args_parse(struct args *a, char **argv)
{
    const struct option *alone = options_alone(&options, argv + 1);
    struct error e;

    *a = (struct args){
        .chroot_base_dir = "/srv/jailer",
        .cgroup_version = 1,
        .no_file = NO_FILE_DEFAULT,
    };
    if (alone) {
        find_places_to_check(a, argv);
        return (enum request)alone->at; /* such a row has no other place */
    }
    if (options_check(&options, argv + 1, &e) < 0)
        die("Failed to parse arguments: %s", e.msg);
    a->vmm_args = options_take(&options, argv + 1, a, &e);
    if (!a->vmm_args)
        die("%s", e.msg);
    return REQUEST_JAIL;
}
