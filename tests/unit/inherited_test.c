#include "vmm/base/inherited.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

static bool is_null_device(int fd)
{
    struct stat st;

    return fstat(fd, &st) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, 3);
}

/* How a child that does this ends; it has what the test has. */
static int status_of(void (*work)(void))
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        work();
        _exit(99);
    }
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    return status;
}

static unsigned holes; /* a bit for each standard descriptor that is closed */

static void settle_with_holes(void)
{
    close_range(3, ~0u, 0);
    for (int fd = 0; fd <= 2; fd++)
        if (holes >> fd & 1)
            close(fd);
    inherited_settle();
    for (int fd = 0; fd <= 2; fd++)
        if (holes >> fd & 1 ? !is_null_device(fd) || (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDWR
                            : is_null_device(fd))
            _exit(1);
    _exit(fcntl(3, F_GETFD) < 0 && errno == EBADF ? 0 : 2);
}

Test(inherited, descriptors_are_there_and_those_that_were_stay)
{
    int ends[2];

    cr_assert_eq(pipe(ends), 0);
    for (int fd = 0; fd <= 2; fd++)
        cr_assert_eq(dup2(ends[1], fd), fd);
    for (holes = 0; holes < 8; holes++)
        cr_expect_eq(status_of(settle_with_holes), 0, "holes 0x%x", holes);
}

static void settle_without_devices(void)
{
    if (chroot("/proc/self/fdinfo") < 0) /* no directory of devices */
        _exit(0);
    close(STDOUT_FILENO);
    inherited_settle();
    _exit(fcntl(STDOUT_FILENO, F_GETFD) >= 0 && write(STDOUT_FILENO, "x", 1) < 0 ? 0 : 1);
}

/* chroot() takes root, or a namespace. */
Test(inherited, descriptors_need_no_null_device)
{
    cr_expect_eq(status_of(settle_without_devices), 0);
}

static bool is_handled(int number, void (*handler)(int))
{
    struct sigaction is;

    return sigaction(number, NULL, &is) == 0 && is.sa_handler == handler;
}

static void settle_signals_that_were_ignored_and_blocked(void)
{
    sigset_t all, none;

    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    for (int i = 1; i < 32; i++)
        signal(i, SIG_IGN);
    inherited_settle();
    sigprocmask(SIG_SETMASK, NULL, &none);
    for (int i = 1; i < 32; i++)
        if (sigismember(&none, i) || !is_handled(i, i == SIGPIPE ? SIG_IGN : SIG_DFL))
            _exit(i);
    _exit(0);
}

Test(inherited, signals_do_what_they_do)
{
    cr_expect_eq(status_of(settle_signals_that_were_ignored_and_blocked), 0);
}

static int to_test = -1, end;

static void give_back(void)
{
    (void)!write(to_test, "back", 4);
}

static void end_by_a_signal(void)
{
    inherited_settle();
    inherited_give_back(give_back);
    raise(end);
}

Test(inherited, things_are_given_back_when_a_signal_ends_the_process)
{
    static const int ends[] = { SIGTERM, SIGINT, SIGQUIT, SIGHUP };

    for (unsigned i = 0; i < sizeof(ends) / sizeof(*ends); i++) {
        int p[2], status;
        char text[8];

        cr_assert_eq(pipe(p), 0);
        to_test = p[1];
        end = ends[i];
        status = status_of(end_by_a_signal);
        close(p[1]);
        cr_expect(WIFSIGNALED(status) && WTERMSIG(status) == end, "signal %d: 0x%x", end, status);
        cr_expect_eq(read(p[0], text, sizeof(text)), end == SIGHUP ? 0 : 4, "signal %d, once", end);
        close(p[0]);
    }
}

static void settle_as_the_first_process(void)
{
    if (unshare(CLONE_NEWPID) < 0)
        _exit(128 + SIGTERM);
    if (fork() == 0) {
        inherited_settle();
        if (is_handled(SIGHUP, SIG_DFL))
            raise(SIGTERM);
        _exit(98);
    } else {
        int status;

        wait(&status);
        _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 97);
    }
}

/* unshare() takes root. */
Test(inherited, the_first_process_of_a_namespace_ends_by_signals)
{
    int status = status_of(settle_as_the_first_process);

    cr_expect_eq(WEXITSTATUS(status), 128 + SIGTERM);
}
