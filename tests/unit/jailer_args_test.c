#include "jailer/args.h"

#include <criterion/criterion.h>
#include <criterion/redirect.h>
#include <string.h>

#define NEEDED "--id", "x", "--exec-file", "/bin/true", "--uid", "1", "--gid", "2"

static struct args a;

static enum request parse(const char **rest)
{
    static const char *argv[32] = { "mayfly-jailer", NEEDED }; /* what is parsed points to it */
    int n = 9;

    do
        argv[n++] = *rest;
    while (*rest++);
    return args_parse(&a, (char **)argv);
}
#define PARSE(...) parse((const char *[]){ __VA_ARGS__, NULL })

Test(args_parse, has_firecrackers_defaults)
{
    cr_assert_eq(parse((const char *[]){ NULL }), REQUEST_JAIL);
    cr_expect_str_eq(a.chroot_base_dir, "/srv/jailer");
    cr_expect_eq(a.uid, 1);
    cr_expect_eq(a.gid, 2);
    cr_expect_eq(a.no_file, 2048);
    cr_expect_eq(a.cgroup_version, 1);
    cr_expect_eq(a.exec_method, EXEC_COPY);
    cr_expect_not(a.has_fsize || a.daemonize || a.new_pid_ns || a.no_seccomp || a.new_user_ns);
    cr_expect_null(a.netns);
    cr_expect_null(a.parent_cgroup);
    cr_expect_null(a.vmm_args[0]);
}

Test(args_parse, leaves_what_follows_two_dashes_to_the_vmm)
{
    PARSE("--daemonize", "--", "--id", "y", "--help", "--");
    cr_expect(a.daemonize);
    cr_expect_str_eq(a.id, "x");
    cr_expect_str_eq(a.vmm_args[0], "--id");
    cr_expect_str_eq(a.vmm_args[3], "--");
    cr_expect_null(a.vmm_args[4]);
}

Test(args_parse, splits_cgroup_settings)
{
    PARSE("--cgroup", "cpu.shares=10", "--cgroup", "memory.swap.max=a b");
    cr_assert_eq(a.cgroup_count, 2);
    cr_expect_eq(a.cgroups[0].controller_bytes, 3);
    cr_expect_eq(strncmp(a.cgroups[0].file, "cpu.shares", (size_t)a.cgroups[0].file_bytes), 0);
    cr_expect_str_eq(a.cgroups[0].value, "10");
    cr_expect_eq(a.cgroups[1].controller_bytes, 6);
    cr_expect_eq(a.cgroups[1].file_bytes, 15);
    cr_expect_str_eq(a.cgroups[1].value, "a b");
}

Test(args_parse, takes_limits_up_to_64_bits)
{
    PARSE("--resource-limit", "fsize=18446744073709551615", "--resource-limit", "no-file=7");
    cr_expect(a.has_fsize);
    cr_expect_eq(a.fsize, UINT64_MAX);
    cr_expect_eq(a.no_file, 7);
}

Test(args_parse, takes_nested_parents)
{
    PARSE("--parent-cgroup", "a/..b/.c", "--cgroup-version", "2");
    cr_expect_str_eq(a.parent_cgroup, "a/..b/.c");
    cr_expect_eq(a.cgroup_version, 2);
}

Test(args_parse, finds_a_request_wherever_it_stands)
{
    cr_expect_eq(PARSE("--bogus", "--version"), REQUEST_VERSION);
    cr_expect_eq(PARSE("--check", "--help"), REQUEST_HELP);
    cr_expect_eq(PARSE("--check"), REQUEST_CHECK);
    cr_expect_eq(PARSE("--", "--check"), REQUEST_JAIL);
}

/* What is said is for tests/integration/test_jailer.py. */
#define REFUSES(name, ...)                                                                         \
    Test(args_parse, refuses_##name, .exit_code = 1)                                               \
    {                                                                                              \
        cr_redirect_stderr();                                                                      \
        PARSE(__VA_ARGS__);                                                                        \
    }

REFUSES(a_limit_of_more_than_64_bits, "--resource-limit", "fsize=18446744073709551616")
REFUSES(an_empty_number, "--resource-limit", "no-file=")
REFUSES(a_second_uid, "--uid", "1")
REFUSES(an_option_without_its_value, "--netns")
REFUSES(what_is_no_option, "netns")
REFUSES(an_empty_parent, "--parent-cgroup", "")
REFUSES(a_parent_that_climbs, "--parent-cgroup", "a/..")
REFUSES(a_setting_without_a_property, "--cgroup", "cpu.=1")
REFUSES(a_setting_without_a_controller, "--cgroup", ".shares=1")
REFUSES(a_setting_whose_dot_is_in_the_value, "--cgroup", "cpu=1.5")

static enum request parse_cgroups(int count)
{
    const char *argv[2 * CGROUP_SETTINGS_MAX + 16] = { "mayfly-jailer", NEEDED };

    for (int i = 0; i < count; i++) {
        argv[9 + 2 * i] = "--cgroup";
        argv[10 + 2 * i] = "a.b=c";
    }
    return args_parse(&a, (char **)argv);
}

Test(args_parse, keeps_many_cgroup_settings)
{
    cr_assert_eq(parse_cgroups(CGROUP_SETTINGS_MAX), REQUEST_JAIL);
    cr_expect_eq(a.cgroup_count, CGROUP_SETTINGS_MAX);
}

Test(args_parse, refuses_more_cgroup_settings_than_it_keeps, .exit_code = 1)
{
    cr_redirect_stderr();
    parse_cgroups(CGROUP_SETTINGS_MAX + 1);
}
