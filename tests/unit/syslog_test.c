#include "vmm/base/syslog.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static int ours; /* the other end of what is standard error meanwhile */

static void have_standard_error(int type)
{
    int ends[2];

    cr_assert_eq(socketpair(AF_UNIX, type, 0, ends), 0);
    cr_assert_eq(dup2(ends[1], STDERR_FILENO), STDERR_FILENO);
    close(ends[1]);
    ours = ends[0];
}

static const char *printed(const char *instance_id, const char *why)
{
    static char text[256];
    ssize_t n;

    syslog_print_error(instance_id, why);
    n = recv(ours, text, sizeof(text) - 1, MSG_DONTWAIT);
    text[n < 0 ? 0 : n] = '\0';
    return text;
}

static bool is_standard_output(int fd)
{
    struct stat of_fd, of_output;

    cr_assert_eq(fstat(fd, &of_fd), 0);
    cr_assert_eq(fstat(STDOUT_FILENO, &of_output), 0);
    return of_fd.st_dev == of_output.st_dev && of_fd.st_ino == of_output.st_ino;
}

Test(syslog, is_told_a_priority_and_of_which_microvm)
{
    have_standard_error(SOCK_DGRAM);
    cr_expect_str_eq(printed("vm-1", "out of luck"), "<27>mayfly: vm-1: Error: out of luck\n");
    cr_expect_eq(syslog_leave(), 0);
    cr_expect(is_standard_output(STDERR_FILENO));
}

Test(syslog, is_no_stream)
{
    have_standard_error(SOCK_STREAM);
    cr_expect_str_eq(printed("vm-1", "out of luck"), "Error: out of luck\n");
    cr_expect_eq(syslog_leave(), 0);
    cr_expect_not(is_standard_output(STDERR_FILENO));
}

Test(syslog, is_no_pipe)
{
    int ends[2];

    cr_assert_eq(pipe(ends), 0);
    cr_assert_eq(dup2(ends[1], STDERR_FILENO), STDERR_FILENO);
    cr_expect_eq(syslog_leave(), 0);
    cr_expect_not(is_standard_output(STDERR_FILENO));
}

Test(syslog, cannot_be_left_for_nothing)
{
    have_standard_error(SOCK_DGRAM);
    close(STDOUT_FILENO);
    cr_expect_eq(syslog_leave(), -EBADF);
}
