/*
 * The jailer's command line: `--name value` or `--flag`, nothing twice but where it says so, and
 * everything after `--` for the VMM. Values are checked for what they are, not against the host:
 * that is plan.h.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define CGROUP_SETTINGS_MAX 64

enum exec_method { EXEC_COPY, EXEC_LINK, EXEC_BIND };

struct cgroup_setting {
    const char *file; /* "cpu.shares"; not terminated at its end: see file_bytes */
    int file_bytes;
    int controller_bytes; /* of file: "cpu" */
    const char *value;
};

struct args {
    const char *id, *exec_file, *chroot_base_dir, *netns, *parent_cgroup;
    uid_t uid;
    gid_t gid;
    bool daemonize, new_pid_ns, new_ipc_ns, new_uts_ns, new_cgroup_ns, new_user_ns;
    bool read_only_root, no_seccomp;
    enum exec_method exec_method;
    int cgroup_version;
    bool has_fsize;
    uint64_t fsize, no_file; /* resource limits */
    struct cgroup_setting cgroups[CGROUP_SETTINGS_MAX];
    int cgroup_count;
    char **vmm_args; /* what follows `--`, terminated by NULL */
};

/* What the command line asks for instead of a jail. */
enum request { REQUEST_JAIL, REQUEST_HELP, REQUEST_VERSION, REQUEST_CHECK };

/* Borrows argv. Ends the process with a message when something is wrong. */
enum request args_parse(struct args *a, char **argv);

/* To stdout. */
void args_print_help(void);
