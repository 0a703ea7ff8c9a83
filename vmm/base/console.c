#include "vmm/base/console.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <termios.h>
#include <unistd.h>

#include "vmm/base/inherited.h"

static struct {
    int out_fd;    /* -1: not yet opened */
    int out_flags; /* of stdout, when they had to be changed; else -1 */
    bool raw;
    struct termios saved;
} console = { .out_fd = -1, .out_flags = -1 };

/* A socket can't be opened anew; and who opens the master of a pseudo-terminal gets another one. */
static bool is_opened_once(const struct stat *st)
{
    return S_ISSOCK(st->st_mode) || (S_ISCHR(st->st_mode) && st->st_rdev == makedev(5, 2));
}

/* O_NONBLOCK belongs to the open file, which stdout shares with whoever started us; so stdout is
 * opened anew, where that can be. A regular file never blocks, and its offset is shared on purpose.
 */
static int open_out(void)
{
    struct stat st;
    int fd, flags;

    if (fstat(STDOUT_FILENO, &st) < 0 || S_ISREG(st.st_mode))
        return STDOUT_FILENO;
    if (!is_opened_once(&st)) {
        fd = open("/proc/self/fd/1", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        if (fd >= 0)
            return fd;
    }
    flags = fcntl(STDOUT_FILENO, F_GETFL);
    if (flags >= 0 && !(flags & O_NONBLOCK)) {
        inherited_give_back(console_restore);
        console.out_flags = flags;
        fcntl(STDOUT_FILENO, F_SETFL, flags | O_NONBLOCK);
    }
    return STDOUT_FILENO;
}

int console_out(void)
{
    if (console.out_fd < 0)
        console.out_fd = open_out();
    return console.out_fd;
}

int console_open_lines(const char *path)
{
    /* Read and write, so that opening a FIFO waits for no reader (fifo(7)). */
    return open(path, O_RDWR | O_CREAT | O_APPEND | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0666);
}

/* Job control: a shell that runs us in the background uses the terminal itself. Where we belong to
 * no session of the terminal's, or have the other end of one that has none (0), there is no such
 * question. */
static bool is_in_foreground(void)
{
    pid_t group = tcgetpgrp(STDIN_FILENO);

    return group <= 0 || group == getpgrp();
}

bool console_has_input(void)
{
    struct stat st;

    if (fstat(STDIN_FILENO, &st) < 0)
        return false;
    return S_ISFIFO(st.st_mode) || (isatty(STDIN_FILENO) && is_in_foreground());
}

void console_raw(void)
{
    struct termios raw;

    if (console.raw || tcgetattr(STDIN_FILENO, &console.saved) < 0)
        return;
    inherited_give_back(console_restore);
    raw = console.saved;
    cfmakeraw(&raw);
    console.raw = true; /* before it is, or a signal in between would find nothing to undo */
    console.raw = tcsetattr(STDIN_FILENO, TCSANOW, &raw) == 0;
}

void console_cooked(void)
{
    if (console.raw && is_in_foreground())
        tcsetattr(STDIN_FILENO, TCSANOW, &console.saved);
    console.raw = false;
}

void console_restore(void)
{
    console_cooked();
    if (console.out_flags >= 0)
        fcntl(STDOUT_FILENO, F_SETFL, console.out_flags);
    console.out_flags = -1;
}
