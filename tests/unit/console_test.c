#include "vmm/base/console.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>

#include "tests/unit/support/directory.h"

static void become(int fd, int standard)
{
    cr_assert_eq(dup2(fd, standard), standard);
    close(fd);
}

static bool is_non_blocking(int fd)
{
    return fcntl(fd, F_GETFL) & O_NONBLOCK;
}

Test(console_out, opens_a_pipe_anew_and_leaves_the_caller_s_alone)
{
    int ends[2], out;

    cr_assert_eq(pipe(ends), 0);
    become(ends[1], STDOUT_FILENO);
    out = console_out();
    cr_expect_gt(out, STDERR_FILENO);
    cr_expect(is_non_blocking(out));
    cr_expect(fcntl(out, F_GETFD) & FD_CLOEXEC);
    cr_expect_not(is_non_blocking(STDOUT_FILENO));
    cr_expect_eq(console_out(), out);
}

Test(console_out, shares_a_file_with_its_offset)
{
    char path[sizeof(NEW_FILE)];

    become(new_file(path), STDOUT_FILENO);
    cr_expect_eq(console_out(), STDOUT_FILENO);
    cr_expect_not(is_non_blocking(STDOUT_FILENO));
    unlink(path);
}

Test(console_out, gives_a_socket_back_as_it_was)
{
    int ends[2];

    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    become(ends[1], STDOUT_FILENO);
    cr_expect_eq(console_out(), STDOUT_FILENO);
    cr_expect(is_non_blocking(STDOUT_FILENO));
    console_restore();
    cr_expect_not(is_non_blocking(STDOUT_FILENO));
    fcntl(STDOUT_FILENO, F_SETFL, O_RDWR | O_NONBLOCK);
    console_restore();
    cr_expect(is_non_blocking(STDOUT_FILENO), "by others");
}

Test(console_out, leaves_a_socket_non_blocking_that_was)
{
    int ends[2];

    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends), 0);
    become(ends[1], STDOUT_FILENO);
    cr_expect_eq(console_out(), STDOUT_FILENO);
    console_restore();
    cr_expect(is_non_blocking(STDOUT_FILENO));
}

Test(console_out, needs_no_standard_output)
{
    close(STDOUT_FILENO);
    cr_expect_eq(console_out(), STDOUT_FILENO);
}

TestSuite(console_open_lines, .init = make_directory, .fini = remove_directory);

Test(console_open_lines, goes_on_at_the_end_of_a_file)
{
    int fd;

    put("lines", "before\n");
    fd = console_open_lines(at("lines"));
    cr_assert_geq(fd, 0);
    cr_expect_eq(write(fd, "after\n", 6), 6);
    cr_expect_str_eq(get("lines"), "before\nafter\n");
    cr_expect(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    cr_expect(is_non_blocking(fd));
}

Test(console_open_lines, makes_a_file_for_whom_the_umask_says)
{
    struct stat st;

    umask(0027);
    cr_assert_geq(console_open_lines(at("lines")), 0);
    cr_assert_eq(stat(at("lines"), &st), 0);
    cr_expect_eq(st.st_mode, S_IFREG | 0640);
}

Test(console_open_lines, waits_for_no_reader_of_a_fifo)
{
    cr_assert_eq(mkfifo(at("lines"), 0600), 0);
    cr_expect_geq(console_open_lines(at("lines")), 0);
}

Test(console_open_lines, says_why_not)
{
    cr_expect_eq(console_open_lines(at("none/lines")), -1);
    cr_expect_eq(errno, ENOENT);
}

/* A terminal, whose other end is returned. */
static int have_terminal(void)
{
    int ours = posix_openpt(O_RDWR | O_NOCTTY);

    cr_assert(ours >= 0 && grantpt(ours) == 0 && unlockpt(ours) == 0);
    become(open(ptsname(ours), O_RDWR | O_NOCTTY), STDIN_FILENO);
    return ours;
}

static tcflag_t local_modes(void)
{
    struct termios t;

    cr_assert_eq(tcgetattr(STDIN_FILENO, &t), 0);
    return t.c_lflag;
}

static void set_local_modes(tcflag_t modes)
{
    struct termios t;

    cr_assert_eq(tcgetattr(STDIN_FILENO, &t), 0);
    t.c_lflag = modes;
    cr_assert_eq(tcsetattr(STDIN_FILENO, TCSANOW, &t), 0);
}

Test(console_has_input, where_somebody_may_write)
{
    char path[sizeof(NEW_FILE)];
    int ends[2];

    cr_assert_eq(pipe(ends), 0);
    become(ends[0], STDIN_FILENO);
    cr_expect(console_has_input());
    become(open("/dev/null", O_RDONLY), STDIN_FILENO);
    cr_expect_not(console_has_input());
    become(new_file(path), STDIN_FILENO);
    cr_expect_not(console_has_input());
    unlink(path);
    have_terminal();
    cr_expect(console_has_input(), "it is nobody's");
    close(STDIN_FILENO);
    cr_expect_not(console_has_input());
}

Test(console_raw, is_undone_once)
{
    tcflag_t before;

    have_terminal();
    before = local_modes();
    cr_assert(before & ICANON && before & ECHO && before & ISIG);
    console_raw();
    cr_expect_not(local_modes() & (ICANON | ECHO | ISIG));
    console_raw();
    console_cooked();
    cr_expect_eq(local_modes(), before);
    set_local_modes(before & ~ECHO);
    console_cooked();
    cr_expect_eq(local_modes(), before & ~ECHO, "by others");
    console_raw();
    console_restore();
    cr_expect_eq(local_modes(), before & ~ECHO);
}

/* A signal ends a child, whose terminal is asked then. */
Test(console_raw, is_undone_when_a_signal_ends_the_process)
{
    tcflag_t before;
    int status;
    pid_t pid;

    have_terminal();
    before = local_modes();
    pid = fork();
    if (pid == 0) {
        console_raw();
        raise(SIGTERM);
        _exit(1);
    }
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_expect(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM, "status 0x%x", status);
    cr_expect_eq(local_modes(), before);
}

Test(console_raw, needs_a_terminal)
{
    become(open("/dev/null", O_RDONLY), STDIN_FILENO);
    console_raw();
    console_restore();
}

/* In the background of a session, which has the terminal on standard input. */
static void be_in_the_background(void)
{
    tcflag_t before = local_modes();
    int status;

    signal(SIGTTOU, SIG_IGN);
    if (!console_has_input())
        _exit(2);
    console_raw();
    if (local_modes() & ICANON)
        _exit(3);
    if (fork() == 0) {
        setpgid(0, 0);
        if (console_has_input())
            _exit(4);
        console_cooked(); /* is somebody else's by now */
        _exit(local_modes() & ICANON ? 5 : 0);
    }
    if (wait(&status) < 0 || status != 0)
        _exit(6);
    console_cooked();
    _exit(local_modes() == before ? 0 : 7);
}

Test(console, leaves_the_terminal_of_a_session_to_those_in_front)
{
    int status;
    pid_t pid;

    have_terminal();
    pid = fork();
    if (pid == 0) {
        setsid();
        if (ioctl(STDIN_FILENO, TIOCSCTTY, 0) < 0)
            _exit(1);
        be_in_the_background();
    }
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status 0x%x", status);
}
