#include "jailer/plan.h"

#include <criterion/criterion.h>
#include <criterion/redirect.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "jailer/die.h"
#include "tests/unit/support/directory.h"

static char vmm[PATH_MAX];
static struct args a;
static struct plan p;

static void set_up(void)
{
    atexit(remove_directory); /* a test may end the process */
    make_directory();
    path_set(vmm, "%s/vmm", directory);
    put("vmm", "not a program");
    cr_assert_eq(mkdir(at("base"), 0755), 0);
    a = (struct args){ .id = "id", .exec_file = vmm, .chroot_base_dir = directory };
}
TestSuite(plan, .init = set_up);

Test(plan, has_firecrackers_names)
{
    plan_make(&p, &a);
    cr_expect_str_eq(p.exec_path, at("vmm"));
    cr_expect_str_eq(p.exec_name, "vmm");
    cr_expect_str_eq(p.root, at("vmm/id/root"));
    cr_expect_eq(p.root_at, (int)strlen(directory));
    cr_expect_str_eq(p.parent_cgroup, "vmm");
}

Test(plan, names_the_cell_after_the_file_behind_a_link)
{
    cr_assert_eq(symlink("vmm", at("firecracker")), 0);
    a.exec_file = at("firecracker");
    plan_make(&p, &a);
    cr_expect_str_eq(p.root, at("vmm/id/root"));
}

Test(plan, names_the_cell_after_a_hard_link)
{
    cr_assert_eq(link(at("vmm"), at("firecracker")), 0);
    a.exec_file = at("firecracker");
    plan_make(&p, &a);
    cr_expect_str_eq(p.root, at("firecracker/id/root"));
}

Test(plan, resolves_the_base)
{
    char there[PATH_MAX];

    path_set(there, "%s/base/..//base", directory);
    a.chroot_base_dir = there;
    plan_make(&p, &a);
    cr_expect_str_eq(p.root, at("base/vmm/id/root"));
}

Test(plan, may_have_the_root_for_its_base)
{
    a.chroot_base_dir = "/";
    plan_make(&p, &a);
    cr_expect_str_eq(p.root, "/vmm/id/root");
    cr_expect_eq(p.root_at, 0);
}

Test(plan, takes_the_parent_that_it_is_given)
{
    a.parent_cgroup = "other/one";
    plan_make(&p, &a);
    cr_expect_str_eq(p.parent_cgroup, "other/one");
}

Test(plan, asks_the_file_system_where_the_cell_would_be)
{
    struct statvfs proc;

    cr_assert_eq(statvfs("/proc", &proc), 0);
    cr_expect_eq(plan_mount_flags("/proc/none/of/these"), proc.f_flag);
    cr_expect_eq(plan_mount_flags(at("none")), plan_mount_flags(directory));
    cr_expect_eq(plan_mount_flags("/none"), plan_mount_flags("/"));
}

/* What is said is for tests/integration/test_jailer_refusals.py. */
#define REFUSES(name, ...)                                                                         \
    Test(plan, refuses_##name, .exit_code = 1)                                                     \
    {                                                                                              \
        cr_redirect_stderr();                                                                      \
        __VA_ARGS__;                                                                               \
        plan_make(&p, &a);                                                                         \
    }

REFUSES(a_binary_that_is_not_there, a.exec_file = at("none"))
REFUSES(a_binary_that_is_a_directory, a.exec_file = at("base"))
REFUSES(a_base_that_is_a_file, a.chroot_base_dir = at("vmm"))
REFUSES(a_script_without_its_interpreter, put("vmm", "#!/bin/sh\n"))

Test(plan, takes_a_script_whose_interpreter_is_in_the_cell)
{
    put("vmm", "#!/sh\n");
    cr_assert_eq(mkdir(at("base/vmm"), 0755), 0);
    cr_assert_eq(mkdir(at("base/vmm/id"), 0755), 0);
    cr_assert_eq(mkdir(at("base/vmm/id/root"), 0755), 0);
    put("base/vmm/id/root/sh", "");
    a.chroot_base_dir = at("base");
    plan_make(&p, &a);
}
