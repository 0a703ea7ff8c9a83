#include "vmm/seccomp/landlock.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static int connect_to(const char *name, size_t n)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), ret;

    memcpy(a.sun_path, name, n);
    ret = connect(fd, (struct sockaddr *)&a,
                  (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n)) < 0
              ? -errno
              : 0;
    close(fd);
    return ret;
}

static int listen_as(const char *name, size_t n)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    memcpy(a.sun_path, name, n);
    cr_assert_eq(
        bind(fd, (struct sockaddr *)&a, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n)),
        0);
    cr_assert_eq(listen(fd, 1), 0);
    return fd;
}

static volatile sig_atomic_t came;

static void on_signal(int number)
{
    (void)number;
    came = 1;
}

static void *wait_for_signal(void *arg)
{
    while (!came)
        sched_yield();
    return arg;
}

Test(landlock_scope, leaves_the_process_its_own_signals_and_sockets)
{
    char outer[32], inner[32], path[64];
    size_t n = (size_t)snprintf(outer, sizeof(outer), "%cmayfly-o%d", 0, (int)getpid());
    size_t path_length = (size_t)snprintf(path, sizeof(path), "/tmp/mayfly-l%d", (int)getpid());
    pthread_t thread;

    if (landlock_abi() < 6)
        cr_skip_test("this kernel's Landlock has no scopes");
    listen_as(outer, n);
    listen_as(path, path_length);
    cr_assert_eq(connect_to(outer, n), 0);
    cr_assert_eq(kill(getppid(), 0), 0);
    cr_assert_eq(landlock_scope(), 0);
    cr_expect_eq(connect_to(outer, n), -EPERM, "a socket of those outside, as it was made before");
    cr_expect(kill(getppid(), 0) < 0 && errno == EPERM);
    cr_expect(kill(1, 0) < 0 && errno == EPERM);
    cr_expect_eq(connect_to(path, path_length), 0, "it has a path");
    n = (size_t)snprintf(inner, sizeof(inner), "%cmayfly-i%d", 0, (int)getpid());
    listen_as(inner, n);
    cr_expect_eq(connect_to(inner, n), 0);
    signal(SIGUSR1, on_signal);
    pthread_create(&thread, NULL, wait_for_signal, NULL);
    cr_expect_eq(pthread_kill(thread, SIGUSR1), 0);
    pthread_join(thread, NULL);
    cr_expect_geq(open("/etc/passwd", O_RDONLY | O_CLOEXEC), 0, "files are left alone");
    unlink(path);
}

Test(landlock_files, leaves_what_lies_below_the_root)
{
    char byte;
    int host = open("/etc", O_RDONLY | O_DIRECTORY | O_CLOEXEC), fd;

    if (landlock_abi() < 1)
        cr_skip_test("this kernel has no Landlock");
    if (geteuid() != 0)
        cr_skip_test("only root may change its root");
    cr_assert_eq(unshare(CLONE_NEWNS), 0);
    cr_assert_eq(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), 0);
    cr_assert_eq(mount("none", "/mnt", "tmpfs", 0, NULL), 0);
    cr_assert_eq(chroot("/mnt"), 0);
    cr_assert_geq(fd = openat(host, "passwd", O_RDONLY | O_CLOEXEC), 0);
    cr_assert_eq(landlock_files(), 0);
    cr_expect(openat(host, "passwd", O_RDONLY | O_CLOEXEC) < 0 && errno == EACCES);
    cr_expect_eq(read(fd, &byte, 1), 1, "what is open stays open");
    cr_expect_geq(open("/new", O_RDWR | O_CREAT | O_CLOEXEC, 0600), 0);
    cr_expect_eq(truncate("/new", 100), 0);
    cr_expect_eq(unlink("/new"), 0);
    cr_expect(mkdir("/directory", 0700) < 0 && errno == EACCES);
    cr_expect(symlink("/etc/passwd", "/link") < 0 && errno == EACCES);
    cr_expect(mknod("/fifo", S_IFIFO | 0600, 0) < 0 && errno == EACCES);
    cr_expect(mknod("/disk", S_IFBLK | 0600, 0x100) < 0 && errno == EACCES);
    cr_expect(mknod("/kvm", S_IFCHR | 0600, 0x100) < 0 && errno == EACCES);
    cr_expect(mount("none", "/", "tmpfs", 0, NULL) < 0 && errno == EPERM);
}
