#include "vmm/boot/cmdline.h"

#include <criterion/criterion.h>
#include <string.h>

static struct cmdline c;
static struct error error;

static void expect_init(const char *boot_args, const char *text)
{
    cr_assert_eq(cmdline_init(&c, boot_args, &error), 0, "%s", error.msg);
    cr_assert_str_eq(c.text, text);
}

static void expect_after_add(const char *boot_args, const char *text)
{
    cr_assert_eq(cmdline_init(&c, boot_args, &error), 0, "%s", error.msg);
    cr_assert_eq(cmdline_add(&c, &error, "pci=%s", "off"), 0, "%s", error.msg);
    cr_assert_eq(cmdline_add(&c, &error, "ro"), 0, "%s", error.msg);
    cr_assert_str_eq(c.text, text);
}

Test(cmdline_init, has_a_default)
{
    expect_init(NULL, "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux "
                      "i8042.dumbkbd swiotlb=noforce");
}

Test(cmdline_init, takes_an_empty_one)
{
    expect_init("", "");
    expect_init(" \n\t ", "");
}

Test(cmdline_init, drops_outer_blanks_and_keeps_inner_ones)
{
    expect_init("  console=ttyS0  quiet\n", "console=ttyS0  quiet");
}

Test(cmdline_init, trims_both_sides_of_the_separator)
{
    expect_init(" quiet   --   single -x ", "quiet -- single -x");
    expect_init("quiet -- ", "quiet");
}

static void fill(char *text, size_t n)
{
    memset(text, 'x', n);
    text[n] = 0;
}

Test(cmdline_init, refuses_2048_bytes_and_takes_2047)
{
    char args[LAYOUT_CMDLINE_MAX + 10];

    fill(args, 2047);
    cr_assert_eq(cmdline_init(&c, args, &error), 0);
    cr_assert_eq(strlen(c.text), 2047);
    fill(args, 2048);
    cr_assert_eq(cmdline_init(&c, args, &error), -1);
    cr_assert_str_eq(error.msg,
                     "The kernel command line is invalid: Invalid cmdline capacity provided.");
}

Test(cmdline_init, counts_the_separator)
{
    char args[LAYOUT_CMDLINE_MAX + 10];

    fill(args, 2042);
    strcat(args, " -- y");
    cr_assert_eq(cmdline_init(&c, args, &error), 0);
    cr_assert_eq(strlen(c.text), 2047);
    strcat(args, "z");
    cr_assert_eq(cmdline_init(&c, args, &error), -1);
}

Test(cmdline_add, appends_behind_a_blank)
{
    expect_after_add("console=ttyS0", "console=ttyS0 pci=off ro");
    expect_after_add("", "pci=off ro");
}

Test(cmdline_add, stays_before_the_arguments_for_init)
{
    expect_after_add("quiet -- single", "quiet pci=off ro -- single");
    expect_after_add("quiet -- a -- b", "quiet pci=off ro -- a -- b");
    expect_after_add(" -- single", "pci=off ro -- single");
}

Test(cmdline_add, takes_only_a_free_standing_separator)
{
    expect_after_add("a --b c-- d", "a --b c-- d pci=off ro");
    expect_after_add("quiet --", "quiet -- pci=off ro");
    expect_after_add("-- single", "-- single pci=off ro");
}

Test(cmdline_add, does_not_look_for_the_separator_in_quotes)
{
    expect_after_add("a=\"b -- c\" d -- e", "a=\"b -- c\" d pci=off ro -- e");
    expect_after_add("a=\"b -- c", "a=\"b -- c pci=off ro");
}

static void expect_overflow(const char *argument)
{
    struct cmdline before = c;

    cr_assert_eq(cmdline_add(&c, &error, "%s", argument), -1);
    cr_assert_str_eq(error.msg, "Invalid kernel command line: Inserting string would make command "
                                "line too long.");
    cr_assert_eq(memcmp(&before, &c, sizeof(c)), 0);
}

Test(cmdline_add, fills_the_line_to_its_last_byte)
{
    char args[LAYOUT_CMDLINE_MAX], longer[2 * LAYOUT_CMDLINE_MAX];

    fill(args, 2040);
    cr_assert_eq(cmdline_init(&c, args, &error), 0);
    expect_overflow("1234567");
    cr_assert_eq(cmdline_add(&c, &error, "123456"), 0);
    cr_assert_eq(strlen(c.text), 2047);
    expect_overflow("");
    fill(longer, sizeof(longer) - 1);
    expect_overflow(longer);
}

Test(cmdline_add, counts_the_arguments_for_init)
{
    char args[LAYOUT_CMDLINE_MAX];

    fill(args, 2000);
    strcat(args, " -- 0123456789012345678901234567890123456789");
    cr_assert_eq(cmdline_init(&c, args, &error), 0);
    cr_assert_eq(cmdline_add(&c, &error, "ab"), 0);
    expect_overflow("x");
    cr_assert_str_eq(c.text + 2000, " ab -- 0123456789012345678901234567890123456789");
}

Test(cmdline_add, refuses_what_is_not_printable)
{
    cr_assert_eq(cmdline_init(&c, "quiet -- x", &error), 0);
    cr_assert_eq(cmdline_add(&c, &error, "root=PARTUUID=\xc3\xbc"), -1);
    cr_assert_str_eq(error.msg, "Invalid kernel command line: String contains a non-printable "
                                "ASCII character.");
    cr_assert_eq(cmdline_add(&c, &error, "a\nb"), -1);
    cr_assert_eq(cmdline_add(&c, &error, "a\x7f"), -1);
    cr_assert_str_eq(c.text, "quiet -- x");
}
