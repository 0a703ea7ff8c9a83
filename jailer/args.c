#include "jailer/args.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "jailer/die.h"
#include "vmm/base/instance_id.h"
#include "vmm/base/version.h"

#define NO_FILE_DEFAULT 2048u

/* The options as text; what they mean comes later, so that the order given does not matter. */
struct texts {
    const char *id, *exec_file, *uid, *gid, *chroot_base_dir, *netns, *cgroup_version;
    const char *parent_cgroup, *exec_method;
    bool daemonize, new_pid_ns, new_ipc_ns, new_uts_ns, new_cgroup_ns, new_user_ns;
    bool read_only_root, no_seccomp;
};

#define NO_PLACE ((size_t)-1) /* may come more than once: parsed where it stands */

static const struct option {
    const char *name;
    const char *value; /* what --help calls it; NULL: a flag */
    size_t offset;     /* in struct texts */
    const char *help;
} options[] = {
    { "id", "ID", offsetof(struct texts, id),
      "name of this microVM: 1 to 64 letters, digits and hyphens" },
    { "exec-file", "PATH", offsetof(struct texts, exec_file), "the VMM's binary" },
    { "uid", "UID", offsetof(struct texts, uid), "user that the VMM runs as" },
    { "gid", "GID", offsetof(struct texts, gid), "group that the VMM runs as" },
    { "chroot-base-dir", "PATH", offsetof(struct texts, chroot_base_dir),
      "where the jails are: the VMM's root is PATH/EXEC-NAME/ID/root [/srv/jailer]" },
    { "netns", "PATH", offsetof(struct texts, netns), "network namespace to join" },
    { "daemonize", NULL, offsetof(struct texts, daemonize),
      "own session, and /dev/null for standard input, output and error" },
    { "new-pid-ns", NULL, offsetof(struct texts, new_pid_ns),
      "new PID namespace; the jailer ends and leaves the PID in EXEC-NAME.pid" },
    { "cgroup", "FILE=VALUE", NO_PLACE, "cgroup setting, cpu.shares=10 for one; repeatable" },
    { "cgroup-version", "1|2", offsetof(struct texts, cgroup_version), "of --cgroup [1]" },
    { "parent-cgroup", "PATH", offsetof(struct texts, parent_cgroup),
      "cgroup, relative to the hierarchy's root, that ID is made in [EXEC-NAME]" },
    { "resource-limit", "NAME=N", NO_PLACE, "fsize or no-file [no-file=2048]; repeatable" },
    { "exec-method", "HOW", offsetof(struct texts, exec_method),
      "how the binary comes into the jail: copy, link or (read-only) bind [copy]" },
    { "read-only-root", NULL, offsetof(struct texts, read_only_root),
      "only /run and what is mounted below the root can be written" },
    { "new-ipc-ns", NULL, offsetof(struct texts, new_ipc_ns), "new IPC namespace" },
    { "new-uts-ns", NULL, offsetof(struct texts, new_uts_ns), "new UTS namespace" },
    { "new-cgroup-ns", NULL, offsetof(struct texts, new_cgroup_ns), "new cgroup namespace" },
    { "new-user-ns", NULL, offsetof(struct texts, new_user_ns),
      "new user namespace, for a jailer without root: UID and GID are the caller's" },
    { "no-seccomp", NULL, offsetof(struct texts, no_seccomp),
      "do not limit the system calls of the whole process; needed for other VMMs than mayfly" },
};
#define OPTIONS (sizeof(options) / sizeof(*options))
_Static_assert(OPTIONS <= 32, "read_texts() keeps a bit for each");

void args_print_help(void)
{
    printf("mayfly-jailer %s: builds a cell, walks in and becomes the VMM.\n\n"
           "usage: mayfly-jailer --id ID --exec-file PATH --uid UID --gid GID [OPTION]... "
           "[-- VMM-ARGUMENT...]\n"
           "       mayfly-jailer --check | --version | --help\n\n",
           MAYFLY_VERSION);
    for (size_t i = 0; i < OPTIONS; i++) {
        const struct option *o = &options[i];

        printf("  --%s%s%-*s %s\n", o->name, o->value ? " " : "",
               (int)(28 - strlen(o->name) - !!o->value), o->value ? o->value : "", o->help);
    }
    printf("  %-30s %s\n", "--check", "say what this host lacks for running microVMs, and exit");
    printf("  %-30s %s\n", "--version", "print the version and exit");
    printf("  %-30s %s\n", "--help", "print this text and exit (also -h)");
}

/* Decimal digits only, up to max. */
static bool parse_number(const char *text, uint64_t max, uint64_t *out)
{
    uint64_t value = 0;

    if (!*text)
        return false;
    for (; *text; text++) {
        unsigned digit = (unsigned)(*text - '0');

        if (digit > 9 || value > (max - digit) / 10)
            return false;
        value = value * 10 + digit;
    }
    *out = value;
    return true;
}

static void parse_resource_limit(struct args *a, const char *text)
{
    const char *value = strchr(text, '=');
    bool is_fsize = strncmp(text, "fsize=", 6) == 0;
    uint64_t n;

    if (!value)
        die("Invalid format for resources limits: %s", text);
    if (!is_fsize && strncmp(text, "no-file=", 8) != 0)
        die("Invalid resource argument: %.*s", (int)(value - text), text);
    if (!parse_number(value + 1, UINT64_MAX, &n))
        die("Invalid limit value for resource: %s: must be a number of at most 64 bits", value + 1);
    if (is_fsize) {
        a->has_fsize = true;
        a->fsize = n;
    } else {
        a->no_file = n;
    }
}

/* CONTROLLER.PROPERTY=VALUE. The file is one component of a path. */
static void parse_cgroup(struct args *a, const char *text)
{
    const char *equals = strchr(text, '=');
    const char *dot = strchr(text, '.');
    struct cgroup_setting *s;

    if (!equals || !equals[1] || strchr(equals + 1, '='))
        die("Invalid format for cgroups: %s", text);
    if (!dot || dot == text || dot + 1 >= equals || memchr(text, '/', (size_t)(equals - text)))
        die("Cgroup invalid file: %.*s", (int)(equals - text), text);
    if (a->cgroup_count == CGROUP_SETTINGS_MAX)
        die("More than %d arguments 'cgroup' were provided.", CGROUP_SETTINGS_MAX);
    s = &a->cgroups[a->cgroup_count++];
    s->file = text;
    s->file_bytes = (int)(equals - text);
    s->controller_bytes = (int)(dot - text);
    s->value = equals + 1;
}

static const struct option *find_option(const char *name)
{
    for (size_t i = 0; i < OPTIONS; i++)
        if (strcmp(options[i].name, name) == 0)
            return &options[i];
    die("Arguments parsing error: Found argument '%s' which wasn't expected, or isn't valid in "
        "this context.",
        name);
}

/* One option at argv[0]; returns what follows it. */
static char **read_option(struct texts *t, struct args *a, unsigned *seen, char **argv)
{
    const struct option *o = find_option(strncmp(*argv, "--", 2) == 0 ? *argv + 2 : *argv);
    unsigned bit = 1u << (o - options);

    if (o->offset != NO_PLACE && (*seen & bit))
        die("Arguments parsing error: The argument '%s' was provided more than once.", o->name);
    *seen |= bit;
    if (!o->value) {
        *(bool *)((char *)t + o->offset) = true;
        return argv + 1;
    }
    if (!argv[1] || strncmp(argv[1], "--", 2) == 0)
        die("Arguments parsing error: The argument '%s' requires a value, but none was supplied.",
            o->name);
    if (o->offset != NO_PLACE)
        *(const char **)((char *)t + o->offset) = argv[1];
    else if (strcmp(o->name, "cgroup") == 0)
        parse_cgroup(a, argv[1]);
    else
        parse_resource_limit(a, argv[1]);
    return argv + 2;
}

static enum request find_request(char **argv)
{
    enum request r = REQUEST_JAIL;

    for (; *argv && strcmp(*argv, "--") != 0; argv++) {
        if (strcmp(*argv, "--help") == 0 || strcmp(*argv, "-h") == 0)
            return REQUEST_HELP;
        if (strcmp(*argv, "--version") == 0)
            r = REQUEST_VERSION;
        else if (strcmp(*argv, "--check") == 0 && r == REQUEST_JAIL)
            r = REQUEST_CHECK;
    }
    return r;
}

static void require(const char *value, const char *name)
{
    if (!value)
        die("Arguments parsing error: Argument '%s' required, but not found.", name);
}

/* A relative path without `.` and `..`, so that it stays below the hierarchy's root. */
static void check_parent_cgroup(const char *path)
{
    if (*path == '/' || !*path)
        goto invalid;
    for (const char *at = path; *at;) {
        size_t n = strcspn(at, "/");

        if ((n == 1 && at[0] == '.') || (n == 2 && at[0] == '.' && at[1] == '.'))
            goto invalid;
        at += n + strspn(at + n, "/");
    }
    return;
invalid:
    die("Parent cgroup path is invalid. Path should not be absolute or contain '..' or '.'");
}

static enum exec_method parse_exec_method(const char *text)
{
    if (!text || strcmp(text, "copy") == 0)
        return EXEC_COPY;
    if (strcmp(text, "link") == 0)
        return EXEC_LINK;
    if (strcmp(text, "bind") == 0)
        return EXEC_BIND;
    die("Invalid exec method: %s: must be copy, link or bind", text);
}

static void understand(struct args *a, const struct texts *t)
{
    const char *version = t->cgroup_version;
    char why[INSTANCE_ID_ERROR_BYTES];
    uint64_t n;

    require(t->id, "id");
    require(t->exec_file, "exec-file");
    require(t->uid, "uid");
    require(t->gid, "gid");
    if (!instance_id_check(t->id, why))
        die("%s", why);
    /* The largest number of 32 bits means "leave it as it is" to setresuid(2). */
    if (!parse_number(t->uid, UINT32_MAX - 1, &n))
        die("Invalid uid: %s", t->uid);
    a->uid = (uid_t)n;
    if (!parse_number(t->gid, UINT32_MAX - 1, &n))
        die("Invalid gid: %s", t->gid);
    a->gid = (gid_t)n;
    if (t->parent_cgroup)
        check_parent_cgroup(t->parent_cgroup);
    if (version && strcmp(version, "1") != 0 && strcmp(version, "2") != 0)
        die("%s is an invalid cgroup version specifier", version);
    a->id = t->id;
    a->exec_file = t->exec_file;
    a->chroot_base_dir = t->chroot_base_dir ? t->chroot_base_dir : "/srv/jailer";
    a->netns = t->netns;
    a->parent_cgroup = t->parent_cgroup;
    a->cgroup_version = version && *version == '2' ? 2 : 1;
    a->exec_method = parse_exec_method(t->exec_method);
    a->daemonize = t->daemonize;
    a->new_pid_ns = t->new_pid_ns;
    a->new_ipc_ns = t->new_ipc_ns;
    a->new_uts_ns = t->new_uts_ns;
    a->new_cgroup_ns = t->new_cgroup_ns;
    a->new_user_ns = t->new_user_ns;
    a->read_only_root = t->read_only_root;
    a->no_seccomp = t->no_seccomp;
}

enum request args_parse(struct args *a, char **argv)
{
    enum request r = find_request(argv + 1);
    struct texts t = { 0 };
    unsigned seen = 0;

    *a = (struct args){ .no_file = NO_FILE_DEFAULT };
    if (r != REQUEST_JAIL)
        return r;
    for (argv++; *argv && strcmp(*argv, "--") != 0;)
        argv = read_option(&t, a, &seen, argv);
    a->vmm_args = *argv ? argv + 1 : argv;
    understand(a, &t);
    return r;
}
