#include "vmm/base/inherited.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

static const int ends[] = { SIGTERM, SIGINT, SIGQUIT };
static void (*restore)(void);

/* Whatever is opened first would become standard error: a disk, say. A bare root has no /dev/null;
 * an epoll set can neither be read nor written, and is in no namespace. */
static void fill_standard_files(void)
{
    struct stat st;

    for (int fd = 0; fd <= 2; fd++) {
        if (fstat(fd, &st) == 0 || errno != EBADF)
            continue;
        if (open("/dev/null", O_RDWR) != fd && epoll_create1(0) != fd)
            _exit(1);
    }
}

/* By the default disposition, which SA_RESETHAND has put back, so that the wait status tells of the
 * signal. The first process of a PID namespace has no such default. */
static void on_end(int signal)
{
    if (restore)
        restore();
    if (getpid() == 1)
        _exit(128 + signal);
    raise(signal);
}

static void handle_ends(void)
{
    const struct sigaction end = {
        .sa_handler = on_end,
        .sa_flags = (int)(SA_RESETHAND | SA_NODEFER),
    };

    for (size_t i = 0; i < sizeof(ends) / sizeof(*ends); i++)
        sigaction(ends[i], &end, NULL);
}

/* A write that nobody reads fails: it doesn't end the process before it has said why it ends.
 * Nobody sends real-time signals to a program that has no use for them. */
static void settle_signals(void)
{
    sigset_t none;

    for (int i = 1; i < SIGRTMIN; i++)
        signal(i, i == SIGPIPE ? SIG_IGN : SIG_DFL);
    if (getpid() == 1)
        handle_ends();
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

void inherited_settle(void)
{
    fill_standard_files();
    settle_signals();
}

void inherited_give_back(void (*give_back)(void))
{
    restore = give_back;
    handle_ends();
}
