#include "vmm/base/options.h"

#include <criterion/criterion.h>

struct sample {
    const char *path;
    bool flag;
    unsigned count;
    uint64_t number;
};

static int count_up(const char *name, const char *text, void *place, struct error *e)
{
    (void)name;
    (void)text;
    (void)e;
    ++*(unsigned *)place;
    return 0;
}

static int parse_byte(const char *name, const char *text, void *place, struct error *e)
{
    return option_number(name, text, 255, place, e);
}

static const struct option rows[] = {
    { "path", "PATH", offsetof(struct sample, path), NULL, OPTION_REQUIRED, "" },
    { "flag", NULL, offsetof(struct sample, flag), .help = "" },
    { "more", "X", offsetof(struct sample, count), count_up, OPTION_REPEATABLE, "" },
    { "byte", "N", offsetof(struct sample, number), parse_byte, .help = "" },
    { "version", NULL, 1, .rules = OPTION_ALONE, .help = "" },
    { "help", NULL, 2, .rules = OPTION_ALONE, .help = "" },
};
OPTIONS(options, rows);

static struct sample s;
static struct error e;

static const char *check(const char **argv)
{
    return options_check(&options, (char **)argv, &e) < 0 ? e.msg : "";
}
#define ARGV(...)  ((const char *[]){ __VA_ARGS__, NULL })
#define CHECK(...) check(ARGV(__VA_ARGS__))

Test(options_check, names_what_is_wrong)
{
    cr_expect_str_eq(CHECK("--path", "x", "--more", "1", "--more", "2"), "");
    cr_expect_str_eq(CHECK("--flag"), "Argument 'path' required, but not found.");
    cr_expect_str_eq(CHECK("--path", "x", "--path", "y"),
                     "The argument 'path' was provided more than once.");
    cr_expect_str_eq(CHECK("--path"),
                     "The argument 'path' requires a value, but none was supplied.");
    cr_expect_str_eq(CHECK("--path", "--flag"),
                     "The argument 'path' requires a value, but none was supplied.");
    cr_expect_str_eq(CHECK("--path", "x", "--no"), "Found argument 'no' which wasn't expected, or "
                                                   "isn't valid in this context.");
    cr_expect_str_eq(CHECK("--path", "x", "flag"), "Found argument 'flag' which wasn't expected, "
                                                   "or isn't valid in this context.");
    cr_expect_str_eq(CHECK("--path", "x", "--", "--no"), "", "what follows is somebody else's");
}

Test(options_take, fills_the_struct_and_leaves_what_follows)
{
    const char **argv =
        ARGV("--flag", "--path", "x", "--more", "a", "--byte", "255", "--more", "b", "--", "rest");
    char **rest = options_take(&options, (char **)argv, &s, &e);

    cr_assert_eq(rest, (char **)argv + 10);
    cr_expect_str_eq(s.path, "x");
    cr_expect(s.flag);
    cr_expect_eq(s.count, 2);
    cr_expect_eq(s.number, 255);
    cr_expect_null(*options_take(&options, (char **)ARGV("--flag"), &s, &e));
}

Test(options_take, says_why_a_value_is_none)
{
    static const char *const bad[][2] = {
        { "", "The argument 'byte' must be a number, not ''." },
        { "-1", "The argument 'byte' must be a number, not '-1'." },
        { "1 ", "The argument 'byte' must be a number, not '1 '." },
        { "256", "The argument 'byte' must be at most 255, not 256." },
        { "99999999999999999999999", "The argument 'byte' must be at most 255, not "
                                     "99999999999999999999999." },
    };

    for (unsigned i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        cr_expect_null(options_take(&options, (char **)ARGV("--byte", bad[i][0]), &s, &e));
        cr_expect_str_eq(e.msg, bad[i][1]);
    }
    cr_expect_eq(option_number("n", "18446744073709551615", UINT64_MAX, &s.number, &e), 0);
    cr_expect_eq(s.number, UINT64_MAX);
    cr_expect_eq(option_number("n", "18446744073709551616", UINT64_MAX, &s.number, &e), -1);
    cr_expect_eq(option_number("n", "1", 0, &s.number, &e), -1);
}

Test(options_alone, finds_the_last_in_the_table_before_two_dashes)
{
    cr_expect_eq(options_alone(&options, (char **)ARGV("x", "--version", "--help")), &rows[5]);
    cr_expect_eq(options_alone(&options, (char **)ARGV("-h")), &rows[5]);
    cr_expect_eq(options_alone(&options, (char **)ARGV("--version", "--", "-h")), &rows[4]);
    cr_expect_null(options_alone(&options, (char **)ARGV("--flag", "--", "--help")));
}
