#include "jailer/die.h"

#include <criterion/criterion.h>
#include <criterion/redirect.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

/* What a failing process says on a line of its own. */
static void expect_line(void (*fail)(void), const char *text)
{
    char got[4 * PATH_MAX] = "";
    size_t used = 0;
    ssize_t n;
    int ends[2];

    cr_assert_eq(pipe(ends), 0);
    if (fork() == 0) {
        die_to(ends[1]);
        fail();
        _exit(0);
    }
    close(ends[1]);
    while ((n = read(ends[0], got + used, sizeof(got) - used - 1)) > 0)
        used += (size_t)n;
    cr_expect_str_eq(got, text);
}

static void plain(void)
{
    die("%d things are wrong", 2);
}

static void of_the_host(void)
{
    die_os(EBUSY, "Failed to open %s", "/x");
}

static void with_a_hint(void)
{
    die_hint(ENOENT, "there is another", "Failed to open %s", "/x");
}

static void without_a_hint(void)
{
    die_hint(ENOENT, NULL, "Failed to open %s", "/x");
}

Test(die, says_one_line_and_nothing_else)
{
    expect_line(plain, "2 things are wrong\n");
    expect_line(of_the_host, "Failed to open /x: Resource busy (os error 16)\n");
    expect_line(with_a_hint,
                "Failed to open /x: No such file or directory (os error 2); there is another\n");
    expect_line(without_a_hint, "Failed to open /x: No such file or directory (os error 2)\n");
}

static void at_length(void)
{
    static char path[4 * PATH_MAX];

    memset(path, 'x', sizeof(path) - 1);
    die("%s", path);
}

Test(die, cuts_what_is_too_long)
{
    char text[3 * PATH_MAX];

    memset(text, 'x', sizeof(text));
    memcpy(text + sizeof(text) - 2, "\n", 2);
    expect_line(at_length, text);
}

Test(die, ends_with_status_1, .exit_code = 1)
{
    cr_redirect_stderr();
    die("x");
}

Test(path_set, takes_what_fits)
{
    char path[PATH_MAX];

    path_set(path, "/%0*d", PATH_MAX - 2, 0);
    cr_expect_eq(strlen(path), PATH_MAX - 1);
}

Test(path_set, refuses_what_does_not, .exit_code = 1)
{
    char path[PATH_MAX];

    cr_redirect_stderr();
    path_set(path, "/%0*d", PATH_MAX - 1, 0);
}

Test(write_once, needs_a_file_that_is_there, .exit_code = 1)
{
    cr_redirect_stderr();
    write_once("/tmp/none/none", "1");
}
