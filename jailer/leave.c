#include "jailer/leave.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "jailer/cgroup.h"
#include "jailer/die.h"
#include "vmm/base/clock.h"
#include "vmm/seccomp/seccomp.h"

#define NEW_PID_FILE ".pid"
#define OWN_ARGS     9

struct start start_now(void)
{
    return (struct start){ clock_us(CLOCK_MONOTONIC), clock_us(CLOCK_PROCESS_CPUTIME_ID) };
}

void leave_terminal(void)
{
    int fd;

    signal(SIGHUP, SIG_IGN);
    if (getsid(0) != getpid())
        return;
    fd = open("/dev/tty", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return; /* there is none */
    if (ioctl(fd, TIOCNOTTY) < 0)
        die_os(errno, "Failed to leave the session's terminal");
    close(fd);
}

/* Goes on in a child, which is born in the cgroup: that costs less than moving there, which makes
 * every fork and exit on the host wait. Returns its PID in the parent, 0 in the child. */
static pid_t go_on_in_child(uint64_t flags, int cgroup_fd)
{
    struct clone_args args = {
        .flags = flags | (cgroup_fd >= 0 ? CLONE_INTO_CGROUP : 0),
        .exit_signal = SIGCHLD,
        .cgroup = cgroup_fd >= 0 ? (uint64_t)cgroup_fd : 0,
    };
    long pid = syscall(SYS_clone3, &args, sizeof(args));

    if (pid < 0)
        die_os(errno, "Failed cloning into a new child process");
    return (pid_t)pid;
}

/* Under a name that nobody looks for. What an earlier VMM may have put in its place is removed. */
static void prepare_pid_file(const struct cell *c, pid_t pid)
{
    char text[16];
    int fd, n;

    unlinkat(c->root_fd, NEW_PID_FILE, 0);
    fd = openat(c->root_fd, NEW_PID_FILE, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0)
        die_os(errno, "Failed to open file /%s", NEW_PID_FILE);
    n = snprintf(text, sizeof(text), "%d", (int)pid);
    if (write(fd, text, (size_t)n) != n)
        die_os(errno, "Failed to write to /%s", NEW_PID_FILE);
    close(fd);
}

/* The file gets its name when it is complete and the VMM is about to be executed: nobody finds half
 * of one, or one of a jailer that failed. */
static void show_pid_file(const struct plan *p, const struct cell *c)
{
    char name[PATH_MAX];

    path_set(name, "%s.pid", p->exec_name);
    if (renameat2(c->root_fd, NEW_PID_FILE, c->root_fd, name, RENAME_NOREPLACE) < 0)
        die_os(errno, "Failed to open file /%s", name);
}

/* daemon(7): a session without a terminal that can't get one. The last child may be the one that
 * the new PID namespace needs anyway. */
static void detach_from_caller(bool is_last, int cgroup_fd, int null_fd)
{
    if (go_on_in_child(0, -1) != 0)
        _exit(0);
    if (setsid() < 0)
        die_os(errno, "Failed to daemonize: setsid");
    if (go_on_in_child(0, is_last ? cgroup_fd : -1) != 0)
        _exit(0);
    for (int fd = 0; fd <= 2; fd++)
        if (dup2(null_fd, fd) < 0)
            die_os(errno, "Failed to duplicate fd");
}

/* Becomes the process that will be the VMM, in its cgroup. */
static void become_vmm_process(const struct plan *p, const struct cell *c, int cgroup_fd,
                               int null_fd)
{
    const struct args *a = p->args;
    pid_t pid;

    if (cgroup_fd >= 0 && !a->daemonize && !a->new_pid_ns)
        cgroup_join(cgroup_fd);
    if (a->daemonize)
        detach_from_caller(!a->new_pid_ns, cgroup_fd, null_fd);
    if (!a->new_pid_ns) {
        prepare_pid_file(c, getpid());
        return;
    }
    pid = go_on_in_child(CLONE_NEWPID, cgroup_fd);
    if (pid == 0)
        return;
    prepare_pid_file(c, pid);
    show_pid_file(p, c);
    _exit(0);
}

/* capabilities(7): then not even executing a file as root would bring one back. */
static void empty_bounding_set(void)
{
    int cap = 0;

    while (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) == 0)
        cap++;
    if (errno != EINVAL) /* the kernel has no more */
        die_os(errno, "Failed to drop capability %d from the bounding set", cap);
}

static void become_user(const struct args *a)
{
    /* In a user namespace there is but one group, and setgroups(2) is denied. */
    if (!a->new_user_ns && setgroups(0, NULL) < 0)
        die_os(errno, "Failed to drop the supplementary groups");
    if (setresgid(a->gid, a->gid, a->gid) < 0)
        die_os(errno, "Failed to change to group %u", a->gid);
    if (setresuid(a->uid, a->uid, a->uid) < 0)
        die_os(errno, "Failed to change to user %u", a->uid);
}

/* User 0, or the one user of a user namespace, still has them. */
static void drop_capabilities(void)
{
    struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
    const struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = { 0 };

    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
        die_os(errno, "Failed to clear the ambient capabilities");
    if (syscall(SYS_capset, &header, none) < 0)
        die_os(errno, "Failed to drop the capabilities");
}

static void drop_privileges(const struct args *a)
{
    if (a->new_cgroup_ns && unshare(CLONE_NEWCGROUP) < 0)
        die_os(errno, "Failed to unshare into a new cgroup namespace");
    empty_bounding_set();
    become_user(a);
    drop_capabilities();
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        die_os(errno, "Failed to give up new privileges");
}

static void limit_calls(const struct args *a)
{
    int ret = a->no_seccomp ? 0 : seccomp_install(&seccomp_process);

    if (ret < 0)
        die_os(-ret, "Failed to install the seccomp filter of the process");
}

/* What the VMM reports as its time to start includes ours. A child's CPU clock begins at 0. */
static void execute(const struct plan *p, const struct start *start, uint64_t parent_cpu_us)
{
    static char *no_environment[] = { NULL };
    char path[PATH_MAX], start_us[24], start_cpu_us[24], parent_us[24];
    const char *own[OWN_ARGS] = { path,         "--id",
                                  p->args->id,  "--start-time-us",
                                  start_us,     "--start-time-cpu-us",
                                  start_cpu_us, "--parent-cpu-time-us",
                                  parent_us };
    char **extra = p->args->vmm_args, **argv;
    size_t count = 0;

    while (extra[count])
        count++;
    argv = calloc(OWN_ARGS + count + 1, sizeof(*argv));
    if (!argv)
        die("out of memory");
    path_set(path, "/%s", p->exec_name);
    snprintf(start_us, sizeof(start_us), "%llu", (unsigned long long)start->monotonic_us);
    snprintf(start_cpu_us, sizeof(start_cpu_us), "%llu", (unsigned long long)start->cpu_us);
    snprintf(parent_us, sizeof(parent_us), "%llu", (unsigned long long)parent_cpu_us);
    memcpy(argv, own, sizeof(own));
    memcpy(argv + OWN_ARGS, extra, count * sizeof(*argv));
    execve(path, argv, no_environment);
    die_os(errno, "Failed to exec into Firecracker");
}

void leave(const struct plan *p, const struct cell *c, int cgroup_fd, int null_fd,
           const struct start *start)
{
    bool is_child = p->args->daemonize || p->args->new_pid_ns;
    uint64_t used_us = clock_us(CLOCK_PROCESS_CPUTIME_ID) - start->cpu_us;
    struct start own = { start->monotonic_us, is_child ? 0 : start->cpu_us };

    become_vmm_process(p, c, cgroup_fd, null_fd);
    signal(SIGHUP, SIG_DFL); /* leave_terminal() */
    cell_seal(c, p);
    drop_privileges(p->args);
    if (!p->args->new_pid_ns)
        show_pid_file(p, c);
    limit_calls(p->args);
    execute(p, &own, is_child ? used_us : 0);
    __builtin_unreachable();
}
