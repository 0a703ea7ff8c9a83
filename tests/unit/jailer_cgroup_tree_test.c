#include "jailer/cgroup_tree.h"

#include <criterion/criterion.h>
#include <criterion/redirect.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "jailer/die.h"
#include "tests/unit/support/directory.h"

/* A directory of plain files in the place of a hierarchy: what is written is found at their
 * beginning. */
static char location[PATH_MAX];

static void set_up(void)
{
    atexit(remove_directory); /* a test may end the process */
    make_directory();
    path_set(location, "%s/parent/nested/id", directory);
    cgroup_make(directory, location);
}
TestSuite(cgroup_tree, .init = set_up);

Test(cgroup_tree, is_made_level_by_level_and_may_be_there)
{
    struct stat st;

    cgroup_make(directory, location);
    cr_expect_eq(stat(at("parent/nested/id"), &st), 0);
    cr_expect(S_ISDIR(st.st_mode));
}

Test(cgroup_tree, is_not_made_where_a_file_is, .exit_code = 1)
{
    cr_redirect_stderr();
    put("file", "");
    path_set(location, "%s/file/id", directory);
    cgroup_make(directory, location);
}

#define MOUNTS                                                                                     \
    "sys /sys sysfs rw 0 0\n"                                                                      \
    "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct 0 0\n"                         \
    "cgroup /sys/fs/cgroup/blk\\040io cgroup rw,blkio 0 0\n"                                       \
    "cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nsdelegate 0 0\n"                                   \
    "cgroup2 /second cgroup2 rw 0 0\n"

static const char *mount_of(const char *type, const char *controller)
{
    static char path[PATH_MAX];

    put("mounts", MOUNTS);
    return cgroup_find_mount(path, at("mounts"), type, controller) ? path : NULL;
}

Test(cgroup_tree, is_found_by_its_type_and_controller)
{
    cr_expect_str_eq(mount_of("cgroup2", NULL), "/sys/fs/cgroup/unified");
    cr_expect_str_eq(mount_of("cgroup", NULL), "/sys/fs/cgroup/cpu,cpuacct");
    cr_expect_str_eq(mount_of("cgroup", "cpuacct"), "/sys/fs/cgroup/cpu,cpuacct");
    cr_expect_str_eq(mount_of("cgroup", "blkio"), "/sys/fs/cgroup/blk io");
    cr_expect_null(mount_of("cgroup", "cpua"));
    cr_expect_null(mount_of("cgroup", "memory"));
    cr_expect_null(mount_of("cgroup3", NULL));
}

static void put_cpusets(const char *top, const char *parent, const char *nested, const char *id)
{
    put("cpuset.cpus", top);
    put("parent/cpuset.cpus", parent);
    put("parent/nested/cpuset.cpus", nested);
    put("parent/nested/id/cpuset.cpus", id);
}

Test(cgroup_tree, inheriting_fills_each_empty_level_from_the_nearest_above)
{
    put_cpusets("0-7\n", "\n", "2-3\n", "");
    cgroup_inherit(directory, location, "cpuset.cpus");
    cr_expect_str_eq(get("parent/cpuset.cpus"), "0-7");
    cr_expect_str_eq(get("parent/nested/cpuset.cpus"), "2-3\n");
    cr_expect_str_eq(get("parent/nested/id/cpuset.cpus"), "2-3");
}

Test(cgroup_tree, inheriting_leaves_what_is_set)
{
    put_cpusets("0-7\n", "4\n", "4\n", "4\n");
    cgroup_inherit(directory, location, "cpuset.cpus");
    cr_expect_str_eq(get("parent/nested/id/cpuset.cpus"), "4\n");
}

Test(cgroup_tree, inheriting_has_nothing_to_give_when_the_top_is_empty, .exit_code = 1)
{
    cr_redirect_stderr();
    put_cpusets("\n", "1\n", "1\n", "1\n");
    cgroup_inherit(directory, location, "cpuset.cpus");
}

Test(cgroup_tree, inheriting_needs_the_file, .exit_code = 1)
{
    cr_redirect_stderr();
    cgroup_inherit(directory, location, "cpuset.cpus");
}

static void put_controls(const char *top, const char *parent, const char *nested)
{
    put("cgroup.controllers", "cpuset cpu io memory\n");
    put("cgroup.subtree_control", top);
    put("parent/cgroup.subtree_control", parent);
    put("parent/nested/cgroup.subtree_control", nested);
    put("parent/nested/id/cgroup.subtree_control", "");
}

Test(cgroup_tree, handing_down_asks_each_level_above_that_does_not_do_it_yet)
{
    put_controls("cpuset cpu\n", "cpuset\n", "");
    cgroup_hand_down(directory, location, "cpu");
    cr_expect_str_eq(get("cgroup.subtree_control"), "cpuset cpu\n", "it did already");
    cr_expect_str_eq(get("parent/cgroup.subtree_control"), "+cpuet\n", "over what was there");
    cr_expect_str_eq(get("parent/nested/cgroup.subtree_control"), "+cpu");
    cr_expect_str_eq(get("parent/nested/id/cgroup.subtree_control"), "", "the cgroup itself");
}

Test(cgroup_tree, handing_down_takes_whole_words_for_names)
{
    put_controls("cpuset\n", "cpuset\n", "cpu\n");
    cgroup_hand_down(directory, location, "cpu");
    cr_expect_str_eq(get("cgroup.subtree_control"), "+cpuet\n");
    cr_expect_str_eq(get("parent/nested/cgroup.subtree_control"), "cpu\n");
}

Test(cgroup_tree, handing_down_refuses_a_controller_that_is_not_there, .exit_code = 1)
{
    cr_redirect_stderr();
    put_controls("", "", "");
    cgroup_hand_down(directory, location, "mem");
}
