#include "jailer/leave.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "jailer/die.h"
#include "vmm/base/capabilities.h"
#include "vmm/base/clock.h"
#include "vmm/seccomp/landlock.h"
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
static pid_t go_on_in_child(uint64_t flags, const struct cgroup *group)
{
    bool is_born_there = group && group->fd >= 0;
    struct clone_args args = {
        .flags = flags | (is_born_there ? CLONE_INTO_CGROUP : 0),
        .exit_signal = SIGCHLD,
        .cgroup = is_born_there ? (uint64_t)group->fd : 0,
    };
    long pid = syscall(SYS_clone3, &args, sizeof(args));

    if (pid < 0 && is_born_there && errno == EBUSY)
        cgroup_refused(group, errno);
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

/* The ends of the line between the process that the caller waits for and the one that becomes the
 * VMM. It is cut by the execve. Just before, a zero byte is sent; instead of it or behind it, why
 * there is no VMM. */
enum { CALLERS, VMMS };

/* Ends the caller's process as what became of the other one says. */
__attribute__((noreturn)) static void wait_for_vmm(const int *line)
{
    char text[4 * PATH_MAX];
    size_t used = 0, from;
    ssize_t n;

    close(line[VMMS]);
    while ((n = read(line[CALLERS], text + used, sizeof(text) - used)) > 0)
        used += (size_t)n;
    if (used == 1 && text[0] == '\0')
        _exit(0);
    if (used == 0)
        die("The process that was to become the VMM was killed");
    from = text[0] == '\0'; /* the execve failed */
    (void)!write(STDERR_FILENO, text + from, used - from);
    _exit(1);
}

/* The VMM's process learns its PID as its caller knows it, also from inside a namespace. */
static void tell_pid(const int *line, pid_t pid)
{
    if (write(line[CALLERS], &pid, sizeof(pid)) != sizeof(pid))
        die_os(errno, "Failed to tell a process its PID");
}

static pid_t hear_pid(const int *line)
{
    pid_t pid;

    close(line[CALLERS]);
    if (read(line[VMMS], &pid, sizeof(pid)) != sizeof(pid))
        die("The process that was to tell the PID was killed");
    return pid;
}

/* Goes on in a process that is not the caller's child (--daemonize) or is the first of a PID
 * namespace. The caller's process stays until the VMM is executed. Returns the PID. */
static pid_t detach(const struct args *a, const struct cgroup *group, int *line_fd)
{
    int line[2];
    pid_t pid;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, line) < 0)
        die_os(errno, "Failed to make a pair of sockets");
    if (a->daemonize) {
        if (go_on_in_child(0, NULL) != 0)
            wait_for_vmm(line);
        die_to(line[VMMS]);
        /* daemon(7): a session without a terminal, of which we are no leader, who could get one. */
        if (setsid() < 0)
            die_os(errno, "Failed to daemonize: setsid");
    }
    pid = go_on_in_child(a->new_pid_ns ? CLONE_NEWPID : 0, group);
    if (pid != 0) {
        tell_pid(line, pid);
        if (a->daemonize)
            _exit(0);
        wait_for_vmm(line);
    }
    die_to(line[VMMS]);
    *line_fd = line[VMMS];
    return hear_pid(line);
}

static void use_daemon_files(const struct daemon_files *files)
{
    int last = files->syslog_fd >= 0 ? files->syslog_fd : files->null_fd;

    if (dup2(files->null_fd, STDIN_FILENO) < 0 || dup2(files->null_fd, STDOUT_FILENO) < 0 ||
        dup2(last, STDERR_FILENO) < 0)
        die_os(errno, "Failed to duplicate fd");
}

/* Becomes the process that will be the VMM, in its cgroup, with its PID in the file. */
static void become_vmm_process(const struct plan *p, const struct cell *c,
                               const struct cgroup *group, int *line_fd)
{
    const struct args *a = p->args;
    bool is_child = a->daemonize || a->new_pid_ns;

    if (!is_child && group->fd >= 0)
        cgroup_join(group);
    prepare_pid_file(c, is_child ? detach(a, group, line_fd) : getpid());
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
static void drop_capabilities(bool keep)
{
    int ret = capabilities_limit(keep);

    if (ret < 0)
        die_os(-ret, "Failed to drop the capabilities");
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
        die_os(errno, "Failed to clear the ambient capabilities");
}

static void drop_privileges(const struct args *a)
{
    bool keep = a->uid == 0 && !a->new_user_ns; /* capabilities.h */
    int ret = keep ? capabilities_hand_down() : 0;

    if (ret < 0)
        die_os(-ret, "Failed to keep a capability");
    if (a->new_cgroup_ns && unshare(CLONE_NEWCGROUP) < 0)
        die_os(errno, "Failed to unshare into a new cgroup namespace");
    empty_bounding_set();
    become_user(a);
    drop_capabilities(keep);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        die_os(errno, "Failed to give up new privileges");
}

static void limit_files(void)
{
    int ret = landlock_files();

    if (ret < 0)
        die_os(-ret, "Failed to confine the process to its files");
}

static void limit_calls(const struct args *a)
{
    int ret = a->no_seccomp ? 0 : seccomp_install(&seccomp_process);

    if (ret < 0)
        die_os(-ret, "Failed to install the seccomp filter of the process");
}

/* The PID file names a process that is no VMM. Of a root that can't be written it stays. */
__attribute__((noreturn)) static void fail_to_execute(const struct plan *p, int os_errno)
{
    char pid_file[PATH_MAX];

    path_set(pid_file, "/%s.pid", p->exec_name);
    unlink(pid_file);
    if (os_errno == EACCES)
        die_hint(os_errno, "its user and group may not execute it, or a directory on the way",
                 "Failed to exec into Firecracker");
    die_os(os_errno, "Failed to exec into Firecracker");
}

/* What the VMM reports as its time to start includes ours. A child's CPU clock begins at 0. */
static void execute(const struct plan *p, const struct start *start, uint64_t parent_cpu_us,
                    int line_fd)
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
    if (line_fd >= 0 && write(line_fd, "", 1) != 1)
        fail_to_execute(p, errno);
    execve(path, argv, no_environment);
    fail_to_execute(p, errno);
}

void leave(const struct plan *p, const struct cell *c, const struct cgroup *group,
           const struct daemon_files *files, const struct start *start)
{
    bool is_child = p->args->daemonize || p->args->new_pid_ns;
    uint64_t used_us = clock_us(CLOCK_PROCESS_CPUTIME_ID) - start->cpu_us;
    struct start own = { start->monotonic_us, is_child ? 0 : start->cpu_us };
    int line_fd = -1;

    become_vmm_process(p, c, group, &line_fd);
    signal(SIGHUP, SIG_DFL); /* leave_terminal() */
    cell_seal(c, p);
    drop_privileges(p->args);
    limit_files();
    show_pid_file(p, c);
    if (p->args->daemonize)
        use_daemon_files(files);
    limit_calls(p->args);
    execute(p, &own, is_child ? used_us : 0, line_fd);
    __builtin_unreachable();
}
