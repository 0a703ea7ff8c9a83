/* The jailer: from arguments to a cell, and from there to the VMM. The order of the steps is part
 * of what a client can see (docs/firecracker.md), and of what makes it safe: privileges go last. */

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "jailer/cell.h"
#include "jailer/cgroup.h"
#include "jailer/check.h"
#include "jailer/die.h"
#include "jailer/leave.h"
#include "vmm/base/inherited.h"
#include "vmm/base/version.h"

/* Nothing of the caller's but its standard input, output and error (inherited.h), nor that
 * addresses are not random. */
static void forget_caller(void)
{
    inherited_settle();
    if (close_range(3, ~0u, CLOSE_RANGE_UNSHARE) < 0)
        die_os(errno, "Failed to close the inherited files");
    clearenv();
    personality(PER_LINUX);
}

/* user_namespaces(7): root in a namespace where UID and GID are the caller's, and nothing else is
 * anyone. */
static void join_new_user_ns(const struct args *a)
{
    char map[64];
    uid_t uid = geteuid();
    gid_t gid = getegid();

    if (unshare(CLONE_NEWUSER) < 0)
        die_os(errno, "Failed to unshare into a new user namespace");
    write_once("/proc/self/setgroups", "deny");
    snprintf(map, sizeof(map), "%u %u 1", (unsigned)a->uid, (unsigned)uid);
    write_once("/proc/self/uid_map", map);
    snprintf(map, sizeof(map), "%u %u 1", (unsigned)a->gid, (unsigned)gid);
    write_once("/proc/self/gid_map", map);
}

static void join_netns(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        die_os(errno, "Failed to open file %s", path);
    if (setns(fd, CLONE_NEWNET) < 0)
        die_os(errno, "Failed to join network namespace: netns");
    close(fd);
}

/* To the kernel, 1 byte means that a program that core dumps are piped to gets none either. */
#define NO_CORE 1

static void limit(int resource, const char *name, uint64_t n)
{
    const struct rlimit both = { n, n };

    if (setrlimit((__rlimit_resource_t)resource, &both) < 0)
        die_os(errno, "Failed to set limit for resource: %s=%llu", name, (unsigned long long)n);
}

/* Never waits. -1: the host has none, or one of another kind. */
static int open_syslog(void)
{
    const struct sockaddr_un log = { AF_UNIX, "/dev/log" };
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd >= 0 && connect(fd, (const struct sockaddr *)&log, sizeof(log)) < 0) {
        close(fd);
        fd = -1;
    }
    return fd;
}

static struct daemon_files open_daemon_files(void)
{
    const struct daemon_files files = {
        .null_fd = open("/dev/null", O_RDWR | O_CLOEXEC),
        .syslog_fd = open_syslog(),
    };

    if (files.null_fd < 0)
        die_os(errno, "Failed to open /dev/null");
    return files;
}

static void jail(const struct args *a, const struct start *start)
{
    struct daemon_files files = { -1, -1 };
    static struct plan plan;
    static struct cgroup group;
    struct cell cell;

    plan_make(&plan, a);
    if (a->new_user_ns)
        join_new_user_ns(a);
    cell_make(&cell, &plan);
    if (a->netns)
        join_netns(a->netns);
    if (a->has_fsize)
        limit(RLIMIT_FSIZE, "fsize", a->fsize);
    limit(RLIMIT_NOFILE, "no-file", a->no_file);
    limit(RLIMIT_CORE, "core", NO_CORE);
    cgroup_set_up(&group, &plan);
    if (a->daemonize || a->new_pid_ns)
        leave_terminal();
    if (a->daemonize)
        files = open_daemon_files();
    cell_enter(&cell, &plan);
    cell_furnish(&cell, &plan);
    leave(&plan, &cell, &group, &files, start);
}

int main(int argc, char **argv)
{
    struct start start = start_now();
    static struct args args;

    (void)argc;
    forget_caller();
    switch (args_parse(&args, argv)) {
    case REQUEST_HELP: args_print_help(); return 0;
    case REQUEST_VERSION:
        printf("Jailer v%s\nmayfly %s\n", FIRECRACKER_VERSION, MAYFLY_VERSION);
        return 0;
    case REQUEST_CHECK: return host_check(args.exec_file, args.chroot_base_dir);
    case REQUEST_JAIL: jail(&args, &start);
    }
    return 1;
}
