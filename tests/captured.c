/*
 * A VMM that its guest has captured: run by the jailer in the VMM's place, it confines itself as
 * the VMM's threads do and then tries to do harm, one line an attempt:
 *
 *     NAME: SIGSYS           the seccomp filter stopped it
 *     NAME: No such file...  the kernel refused it for another reason
 *     NAME: SUCCEEDED
 *
 * usage (behind the jailer's own arguments): process|main|vcpu|pager OTHER-TENANT'S-FILE
 * standard input is a directory of the host's, with a file "secret"; two abstract sockets have the
 * name of the other tenant's file, one of them with zeros behind it
 * or: process memory, which takes as much as it can get; process x32, which uses another ABI.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/if_tun.h>
#include <linux/kvm.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <ucontext.h>
#include <unistd.h>

#include "vmm/base/capabilities.h"
#include "vmm/seccomp/landlock.h"
#include "vmm/seccomp/seccomp.h"

static volatile sig_atomic_t was_stopped;

/* Goes on behind the call that was not made. */
static void on_sigsys(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)info;
    was_stopped = 1;
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RAX] = -ENOSYS;
}

__attribute__((format(printf, 1, 2))) static void say(const char *fmt, ...)
{
    char line[256];
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    (void)!write(STDOUT_FILENO, line, (size_t)n);
}

static void report(const char *name, long result)
{
    int why = errno;

    if (was_stopped)
        say("%s: SIGSYS\n", name);
    else if (result >= 0)
        say("%s: SUCCEEDED\n", name);
    else
        say("%s: %s\n", name, strerror(why));
    was_stopped = 0;
}

/* Raw calls, so that nothing stands between the attempt and the kernel. */
#define TRY(name, ...) report(name, syscall(__VA_ARGS__))

static char binary[] = "/mayfly"; /* as the test calls it */

static void look_at_files(const char *other)
{
    int root = open("/", O_RDONLY | O_CLOEXEC);

    TRY("read the host's /etc/passwd", SYS_openat, AT_FDCWD, "/etc/passwd", O_RDONLY);
    TRY("climb out of the root", SYS_openat, root, "../../../../../../etc/passwd", O_RDONLY);
    TRY("read another tenant's files", SYS_openat, AT_FDCWD, other, O_RDONLY);
    TRY("read a file of a directory that was left open", SYS_openat, STDIN_FILENO, "secret",
        O_RDONLY);
    TRY("read /proc", SYS_openat, AT_FDCWD, "/proc/1/environ", O_RDONLY);
    TRY("open by a file handle", SYS_open_by_handle_at, root, &(long[8]){ 8 }, O_RDONLY);
    TRY("change the root again", SYS_chroot, "/dev");
    TRY("make the node of a disk", SYS_mknodat, AT_FDCWD, "/dev/vda", S_IFBLK | 0600,
        makedev(254, 0));
    TRY("overwrite its PID file", SYS_openat, AT_FDCWD, "/mayfly.pid", O_WRONLY);
    TRY("open a file that its mode forbids", SYS_openat, AT_FDCWD, "/closed", O_RDONLY);
    TRY("overwrite its binary", SYS_openat, AT_FDCWD, binary, O_WRONLY);
    TRY("cut a file", SYS_openat, AT_FDCWD, "/run/short", O_WRONLY | O_TRUNC);
    TRY("make a file that has no name", SYS_openat, AT_FDCWD, "/run", O_RDWR | O_TMPFILE, 0600);
    TRY("change a file's owner", SYS_fchownat, AT_FDCWD, binary, 0, 0, 0);
    TRY("change a file's mode", SYS_fchmodat, AT_FDCWD, binary, 06755);
    TRY("make a file run as its user", SYS_fchmod, root, 06755);
    TRY("remove a file", SYS_unlinkat, AT_FDCWD, "/mayfly.pid", 0);
    TRY("remove a directory", SYS_rmdir, "/run");
    TRY("link a file", SYS_linkat, AT_FDCWD, binary, AT_FDCWD, "/run/link", 0);
    TRY("make a symbolic link", SYS_symlinkat, "/etc/passwd", AT_FDCWD, "/run/symlink");
}

/* An abstract socket of the host's. */
static void connect_to(const char *attempt, const char *name, bool is_padded)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    size_t length = strlen(name);
    int fd = (int)syscall(SYS_socket, AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    memcpy(a.sun_path + 1, name, length);
    TRY(attempt, SYS_connect, fd, &a,
        is_padded ? sizeof(a) : offsetof(struct sockaddr_un, sun_path) + 1 + length);
}

static void reach_sockets(const char *other)
{
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof(int))]; /* zero: standard input */
    } control = { .head = { CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS } };
    struct iovec byte = { &(char){ 0 }, 1 };
    struct msghdr message = { .msg_iov = &byte,
                              .msg_iovlen = 1,
                              .msg_control = &control,
                              .msg_controllen = sizeof(control) };

    connect_to("connect to an abstract socket", other, false);
    connect_to("connect to an abstract socket with a full name", other, true);
    TRY("open a datagram socket", SYS_socket, AF_UNIX, SOCK_DGRAM, 0);
    TRY("make a pair of sockets", SYS_socketpair, AF_UNIX, SOCK_STREAM, 0, (int[2]){ 0 });
    TRY("hand out a descriptor", SYS_sendmsg, STDOUT_FILENO, &message, 0);
    TRY("hand out several descriptors", SYS_sendmmsg, STDOUT_FILENO, &message, 1, 0);
    TRY("take a descriptor", SYS_recvmsg, STDOUT_FILENO, &message, 0);
    TRY("send to an address", SYS_sendto, STDOUT_FILENO, "x", 1, 0, &message, 16);
}

static void reach_the_network(void)
{
    TRY("open an IPv4 socket", SYS_socket, AF_INET, SOCK_STREAM, 0);
    TRY("open an IPv6 socket", SYS_socket, AF_INET6, SOCK_DGRAM, 0);
    TRY("open a packet socket", SYS_socket, AF_PACKET, SOCK_RAW, 0);
    TRY("open a netlink socket", SYS_socket, AF_NETLINK, SOCK_RAW, 0);
    TRY("open a vsock socket", SYS_socket, AF_VSOCK, SOCK_STREAM, 0);
}

static void reach_processes(void)
{
    TRY("trace its parent", SYS_ptrace, PTRACE_ATTACH, 1, 0, 0);
    TRY("read another process's memory", SYS_process_vm_readv, 1, NULL, 0, NULL, 0, 0);
    TRY("kill its parent", SYS_kill, 1, SIGKILL);
    TRY("abort another process", SYS_tgkill, 1, 1, SIGABRT);
    TRY("signal another process's thread", SYS_tgkill, 1, 1, 34);
    TRY("signal any thread", SYS_tkill, 1, SIGKILL);
    TRY("queue a signal", SYS_rt_sigqueueinfo, 1, SIGKILL, NULL);
    TRY("have a file's signals sent", SYS_fcntl, STDOUT_FILENO, F_SETOWN, 1);
    TRY("make a file send signals", SYS_fcntl, STDIN_FILENO, F_SETFL, O_ASYNC);
    TRY("open a PID", SYS_pidfd_open, 1, 0);
    TRY("fork", SYS_fork);
    TRY("fork in a new user namespace", SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
    TRY("fork by clone3", SYS_clone3, NULL, 0);
    TRY("execute a shell", SYS_execve, "/bin/sh", NULL, NULL);
}

static void reach_the_kernel(void)
{
    TRY("mount", SYS_mount, "none", "/run", "tmpfs", 0, NULL);
    TRY("unmount", SYS_umount2, "/", 2);
    TRY("pivot the root", SYS_pivot_root, ".", ".");
    TRY("leave its namespaces", SYS_unshare, CLONE_NEWUSER);
    TRY("join another's namespaces", SYS_setns, 0, 0);
    TRY("load a module", SYS_finit_module, 0, "", 0);
    TRY("load another kernel", SYS_kexec_load, 0, 0, NULL, 0);
    TRY("load a BPF program", SYS_bpf, 0, NULL, 0);
    TRY("open a performance counter", SYS_perf_event_open, NULL, 0, -1, -1, 0);
    TRY("use the kernel's keys", SYS_keyctl, 0, 0, 0, 0, 0);
    TRY("read the kernel's log", SYS_syslog, 3, NULL, 0);
    TRY("set the clock", SYS_clock_settime, 0, NULL);
    TRY("reach I/O ports", SYS_iopl, 3);
    TRY("reboot", SYS_reboot, 0, 0, 0, NULL);
    TRY("push characters into a terminal", SYS_ioctl, 0, TIOCSTI, "x");
}

static void raise_itself(void)
{
    struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
    const struct __user_cap_data_struct capability[_LINUX_CAPABILITY_U32S_3] = {
        { 1 << CAP_DAC_OVERRIDE, 1 << CAP_DAC_OVERRIDE, 1 << CAP_DAC_OVERRIDE }
    };

    TRY("become root", SYS_setresuid, 0, 0, 0);
    TRY("join root's group", SYS_setgroups, 1, &(gid_t){ 0 });
    TRY("take capabilities", SYS_capset, &header, &capability);
    TRY("raise its limits", SYS_prlimit64, 0, RLIMIT_NOFILE, &(struct rlimit){ 1 << 20, 1 << 20 },
        NULL);
    TRY("map executable memory", SYS_mmap, NULL, 4096, PROT_READ | PROT_EXEC,
        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TRY("map a file for all to see", SYS_mmap, NULL, 4096, PROT_READ | PROT_WRITE,
        MAP_SHARED | MAP_LOCKED, STDOUT_FILENO, 0);
    TRY("make memory executable", SYS_mprotect, (uintptr_t)binary & ~4095ul, 4096,
        PROT_READ | PROT_EXEC);
}

static void exhaust(void)
{
    int fd = 0, last;
    ssize_t n = 0;

    while ((last = fd) >= 0)
        fd = open("/", O_RDONLY | O_CLOEXEC);
    report("open files without end", fd);
    for (int i = 3; i < 100; i++)
        close(i);
    fd = open("/large", O_RDWR);
    for (int i = 0; i < 4096 && fd >= 0 && n >= 0; i++) {
        static char page[4096];

        n = write(fd, page, sizeof(page));
    }
    report("write a file without end", n);
}

/* What is left to a guest's VMM to take, and no more. */
static void use_kvm(bool is_running)
{
    int kvm = open("/dev/kvm", O_RDWR);

    if (!is_running)
        return;
    TRY("create another VM", SYS_ioctl, kvm, KVM_CREATE_VM, 0);
    TRY("start a thread", SYS_clone, CLONE_VM | CLONE_THREAD | CLONE_SIGHAND, 0, 0, 0, 0);
    TRY("set up an io_uring", SYS_io_uring_setup, 1, NULL);
    TRY("listen for connections", SYS_listen, kvm, 1);
    TRY("attach to another tap", SYS_ioctl, kvm, TUNSETIFF, NULL);
    TRY("change what signals do", SYS_rt_sigaction, SIGSYS, NULL, NULL, 8);
    TRY("lift a filter", SYS_seccomp, 0, 0, NULL);
}

static void take_memory(void)
{
    for (;;) {
        char *more =
            mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        if (more == MAP_FAILED)
            return;
        memset(more, 1, 1 << 20);
    }
}

int main(int argc, char **argv)
{
    const struct sigaction stopped = { .sa_sigaction = on_sigsys, .sa_flags = SA_SIGINFO };
    const char *how = argv[argc - 2], *other = argv[argc - 1];
    const struct sock_fprog *filter = strcmp(how, "main") == 0    ? &seccomp_main
                                      : strcmp(how, "vcpu") == 0  ? &seccomp_vcpu
                                      : strcmp(how, "pager") == 0 ? &seccomp_pager
                                                                  : NULL;
    struct sigaction ignored = { .sa_handler = SIG_IGN };

    sigaction(SIGSYS, &stopped, NULL);
    sigaction(SIGXFSZ, &ignored, NULL);
    if (strcmp(other, "memory") == 0)
        take_memory();
    if (strcmp(other, "x32") == 0)
        syscall(SYS_getpid | 0x40000000);
    if (filter && capabilities_give_up() < 0)
        return 2;
    if (landlock_scope() < 0)
        return 2;
    if (filter && seccomp_install(filter) < 0)
        return 2;
    look_at_files(other);
    reach_sockets(other);
    reach_the_network();
    reach_processes();
    reach_the_kernel();
    raise_itself();
    use_kvm(filter);
    exhaust();
    say("done\n");
    _exit(0);
}
