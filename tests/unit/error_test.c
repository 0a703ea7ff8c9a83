#include "vmm/base/error.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <limits.h>

static struct error e;

/* Those that firecracker's clients match, and what both C libraries say alike. */
Test(os_error_text, has_the_words_of_musl)
{
    static const struct {
        int os_errno;
        const char *text;
    } words[] = {
        { ENOENT, "No such file or directory" },
        { EACCES, "Permission denied" },
        { EINVAL, "Invalid argument" },
        { ENOSPC, "No space left on device" },
        { EADDRINUSE, "Address in use" },
        { ENOMEM, "Out of memory" },
        { EMFILE, "No file descriptors available" },
        { EBUSY, "Resource busy" },
        { ENAMETOOLONG, "Filename too long" },
        { ENOTTY, "Not a tty" },
        { ELOOP, "Symbolic link loop" },
        { EIO, "I/O error" },
        { EADDRNOTAVAIL, "Address not available" },
        { ENOTCONN, "Socket not connected" },
    };

    for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++)
        cr_expect_str_eq(os_error_text(words[i].os_errno), words[i].text);
}

Test(os_error_text, says_more_than_musl_where_that_has_no_words)
{
    cr_expect_str_eq(os_error_text(EUCLEAN), "Structure needs cleaning");
}

Test(os_error_text, is_there_for_any_number)
{
    static const int numbers[] = { 0, -1, 58, 4096, INT_MIN, INT_MAX };

    for (size_t i = 0; i < sizeof(numbers) / sizeof(*numbers); i++)
        cr_expect_str_eq(os_error_text(numbers[i]), "No error information");
}

Test(fail_os, ends_with_the_words_and_the_number)
{
    cr_expect_eq(fail_os(&e, EMFILE, "%s", "what"), -1);
    cr_expect_str_eq(e.msg, "what: No file descriptors available (os error 24)");
    cr_expect_eq(e.kind, ERR_HOST);
    cr_expect_eq(e.os_errno, EMFILE);
}

Test(fail_path, names_the_file_behind_the_words)
{
    cr_expect_eq(fail_path(&e, EACCES, "/x y", "what"), -1);
    cr_expect_str_eq(e.msg, "what: Permission denied (os error 13) /x y");
    cr_expect_eq(e.os_errno, EACCES);
    cr_expect_eq(fail_path(&e, EACCES, "", "what"), -1);
    cr_expect_str_eq(e.msg, "what: Permission denied (os error 13)");
}

Test(fail_within, puts_the_prefix_before_the_text)
{
    fail(&e, ERR_STATE, "not now");
    cr_expect_eq(fail_within(&e, "Drive"), -1);
    cr_expect_str_eq(e.msg, "Drive: not now");
    cr_expect_eq(e.kind, ERR_STATE);
}
