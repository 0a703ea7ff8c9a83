#include "vmm/snapshot/files.h"

#include <errno.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/mount.h>

#include "tests/unit/support/snapshot.h"

static struct saved_vm vm;

TestSuite(snapshot_files_write, .init = make_directory, .fini = remove_pairs);
TestSuite(snapshot_chain_of_one, .init = make_directory, .fini = remove_pairs);
TestSuite(snapshot_files_read_state, .init = make_directory, .fini = remove_pairs);

#define EXPECT_OK(call) cr_expect_eq((call), 0, "%s", e.msg)
#define EXPECT_NO(call, text)                                                                      \
    do {                                                                                           \
        cr_expect_eq((call), -1);                                                                  \
        cr_expect_not_null(strstr(e.msg, text), "%s", e.msg);                                      \
    } while (0)

static bool is_there(const char *name)
{
    return access(at(name), F_OK) == 0;
}

Test(snapshot_files_write, makes_a_pair_that_is_loaded)
{
    struct saved_state state;
    int fd;

    boot_vm(&vm, false);
    write_page(&vm, 3, 'a');
    EXPECT_OK(save(&vm, SNAPSHOT_FULL, "first"));
    cr_expect(file_is(at("mem"), &vm.mem));
    cr_expect_leq(blocks_of(at("mem")), 4 * GMEM_PAGE_BYTES, "the rest is a hole");
    cr_expect_str_eq(mark_of(at("mem")), "whole");
    fd = open_pair(at("state"), at("mem"), &state);
    cr_expect_geq(fd, 0, "%s", e.msg);
    cr_expect_str_eq(state.label, "first");
    cr_expect_not(is_there("mem.mayfly-new"));
    cr_expect_not(is_there("state.mayfly-new"));
    close(fd);
    drop_vm(&vm);
}

Test(snapshot_files_write, leaves_an_old_file_to_whom_it_is_mapped_by)
{
    char byte = '?';
    int old;

    boot_vm(&vm, false);
    write_page(&vm, 3, 'a');
    EXPECT_OK(save(&vm, SNAPSHOT_FULL, "first"));
    old = open(at("mem"), O_RDONLY);
    write_page(&vm, 3, 'b');
    EXPECT_OK(save(&vm, SNAPSHOT_FULL, "second"));
    cr_expect_eq(pread(old, &byte, 1, 3 * GMEM_PAGE_BYTES + 5), 1);
    cr_expect_eq(byte, 'a');
    cr_expect_eq(byte_of(at("mem"), 3), 'b');
    cr_expect_str_eq(get("state") + sizeof(struct uuid), "second");
    close(old);
    drop_vm(&vm);
}

Test(snapshot_files_write, keeps_the_mode_of_an_old_file)
{
    struct stat st;

    boot_vm(&vm, false);
    EXPECT_OK(save(&vm, SNAPSHOT_FULL, "first"));
    chmod(at("mem"), 04601); /* nothing runs as its owner */
    EXPECT_OK(save(&vm, SNAPSHOT_FULL, "second"));
    cr_assert_eq(stat(at("mem"), &st), 0);
    cr_expect_eq(st.st_mode & 07777, 0601);
    drop_vm(&vm);
}

Test(snapshot_files_write, refuses_one_file_for_both)
{
    struct snapshot_files f = pair_at("mem", "mem", false);
    char dotted[PATH_MAX];

    boot_vm(&vm, false);
    EXPECT_NO(save_to(&vm, SNAPSHOT_FULL, "x", &f), "backing file, too");
    cr_expect_not(is_there("mem"));
    snprintf(dotted, sizeof(dotted), "%s/./mem", directory);
    f.memory_path = dotted;
    EXPECT_NO(save_to(&vm, SNAPSHOT_FULL, "x", &f), "backing file, too");
    EXPECT_OK(save(&vm, SNAPSHOT_FULL, "first"));
    EXPECT_NO(save_to(&vm, SNAPSHOT_FULL, "x", &f), "backing file, too");
    cr_assert_eq(link(at("mem"), at("link")), 0);
    f = pair_at("link", "mem", false);
    EXPECT_NO(save_to(&vm, SNAPSHOT_FULL, "x", &f), "backing file, too");
    f = pair_at("mem", "mem.mayfly-new", false);
    EXPECT_NO(save_to(&vm, SNAPSHOT_FULL, "x", &f), "backing file, too");
    f = pair_at("mem.mayfly-new", "mem", false);
    EXPECT_NO(save_to(&vm, SNAPSHOT_FULL, "x", &f), "backing file, too");
    cr_expect(file_is(at("mem"), &vm.mem));
    cr_expect_str_eq(get("state") + sizeof(struct uuid), "first");
    drop_vm(&vm);
}

Test(snapshot_files_write, says_which_file_cannot_be_opened)
{
    struct snapshot_files f = pair_at("no/state", "mem", false);

    boot_vm(&vm, false);
    EXPECT_NO(save_to(&vm, SNAPSHOT_FULL, "x", &f),
              "Cannot perform open on the snapshot backing file: No such file or directory (os "
              "error 2)");
    f.state_path = directory;
    EXPECT_NO(save_to(&vm, SNAPSHOT_FULL, "x", &f),
              "Cannot perform open on the snapshot backing file: Is a directory (os error 21)");
    f.state_path = "";
    EXPECT_NO(save_to(&vm, SNAPSHOT_FULL, "x", &f),
              "Cannot perform open on the snapshot backing file: No such file or directory (os "
              "error 2)");
    mkfifo(at("fifo"), 0600);
    f = pair_at("fifo", "mem", false);
    EXPECT_NO(save_to(&vm, SNAPSHOT_FULL, "x", &f),
              "Cannot perform open on the snapshot backing file: ");
    f = pair_at("state", "no/mem", false);
    EXPECT_NO(save_to(&vm, SNAPSHOT_FULL, "x", &f),
              "Cannot perform open on the memory backing file: No such file or directory (os "
              "error 2)");
    f.memory_path = "/dev/null";
    EXPECT_NO(save_to(&vm, SNAPSHOT_FULL, "x", &f),
              "Cannot perform truncate on the memory backing file: Invalid argument (os error 22)");
    f.memory_path = "/dev/full";
    EXPECT_NO(save_to(&vm, SNAPSHOT_FULL, "x", &f),
              "Cannot perform truncate on the memory backing file: Invalid argument (os error 22)");
    cr_expect_not(is_there("mem"));
    cr_expect_not(is_there("state"), "a refused create leaves nothing");
    cr_expect_not(is_there("state.mayfly-new"));
    drop_vm(&vm);
}

Test(snapshot_files_write, needs_permission_for_an_old_file)
{
    if (geteuid() != 0)
        cr_skip_test("only root may become somebody else");
    boot_vm(&vm, false);
    EXPECT_OK(save(&vm, SNAPSHOT_FULL, "first"));
    chmod(directory, 0777);
    chmod(at("mem"), 0644);
    chmod(at("state"), 0666);
    cr_assert_eq(seteuid(65534), 0);
    EXPECT_NO(save(&vm, SNAPSHOT_FULL, "second"),
              "Cannot perform open on the memory backing file: Permission denied (os error 13)");
    cr_assert_eq(seteuid(0), 0);
    chmod(at("mem"), 0666);
    chmod(directory, 0755);
    cr_assert_eq(seteuid(65534), 0);
    write_page(&vm, 1, 'b');
    EXPECT_OK(save(&vm, SNAPSHOT_FULL, "third")); /* nothing can be made here: in place */
    cr_assert_eq(seteuid(0), 0);
    cr_expect(file_is(at("mem"), &vm.mem));
    cr_expect_str_eq(get("state") + sizeof(struct uuid), "third");
    drop_vm(&vm);
}

Test(snapshot_files_write, leaves_the_old_pair_on_a_full_disk)
{
    struct saved_state state;
    int fd;

    mount_here("tmpfs", "size=1m");
    boot_vm(&vm, true);
    write_page(&vm, 3, 'a');
    EXPECT_OK(save(&vm, SNAPSHOT_FULL, "first"));
    for (unsigned i = 4; i < MEM_PAGES; i++)
        write_page(&vm, i, 'b');
    EXPECT_NO(save(&vm, SNAPSHOT_FULL, "second"), "No space left on device (os error 28)");
    fd = open_pair(at("state"), at("mem"), &state);
    cr_expect_geq(fd, 0, "%s", e.msg);
    cr_expect_str_eq(state.label, "first");
    cr_expect_eq(byte_of(at("mem"), 3), 'a');
    cr_expect_eq(byte_of(at("mem"), 4), '\0');
    close(fd);
    cr_assert_eq(mount(NULL, directory, NULL, MS_REMOUNT, "size=8m"), 0);
    EXPECT_OK(save(&vm, SNAPSHOT_DIFF, "third"));
    cr_expect(file_is(at("mem"), &vm.mem), "nothing that changed was forgotten");
    drop_vm(&vm);
}

Test(snapshot_files_write, merges_a_diff_again_that_did_not_fit)
{
    struct saved_state state;

    mount_here("tmpfs", "size=1m");
    boot_vm(&vm, true);
    write_page(&vm, 3, 'a');
    EXPECT_OK(save(&vm, SNAPSHOT_FULL, "first"));
    if (strcmp(mark_of(at("mem")), "whole") != 0)
        cr_skip_test("this kernel's tmpfs has no extended attributes");
    for (unsigned i = 3; i < MEM_PAGES; i++)
        write_page(&vm, i, 'b');
    EXPECT_NO(save(&vm, SNAPSHOT_DIFF, "second"),
              "Cannot write memory file: No space left on device (os error 28)");
    cr_expect_str_eq(mark_of(at("mem")), "whole merging");
    cr_expect_eq(open_pair(at("state"), at("mem"), &state), -1);
    cr_expect_not_null(strstr(e.msg, "its file is unfinished"), "%s", e.msg);
    cr_assert_eq(mount(NULL, directory, NULL, MS_REMOUNT, "size=8m"), 0);
    EXPECT_OK(save(&vm, SNAPSHOT_DIFF, "third"));
    cr_expect(file_is(at("mem"), &vm.mem));
    cr_expect_str_eq(mark_of(at("mem")), "whole");
    drop_vm(&vm);
}

Test(snapshot_files_write, merges_a_diff_into_what_it_is_to)
{
    ino_t first;
    struct stat st;

    boot_vm(&vm, true);
    write_page(&vm, 3, 'a');
    write_page(&vm, 4, 'a');
    EXPECT_OK(save(&vm, SNAPSHOT_DIFF, "first"));
    cr_expect_str_eq(mark_of(at("mem")), "whole", "all there is since the boot");
    cr_expect(file_is(at("mem"), &vm.mem));
    cr_assert_eq(stat(at("mem"), &st), 0);
    first = st.st_ino;
    write_page(&vm, 4, 'b');
    write_page(&vm, 9, 'b');
    EXPECT_OK(save(&vm, SNAPSHOT_DIFF, "second"));
    cr_expect(file_is(at("mem"), &vm.mem));
    cr_expect_str_eq(mark_of(at("mem")), "whole");
    cr_assert_eq(stat(at("mem"), &st), 0);
    cr_expect_eq(st.st_ino, first, "in place");
    drop_vm(&vm);
}

Test(snapshot_files_write, writes_a_layer_where_nothing_is_to_be_merged_into)
{
    struct snapshot_files f = pair_at("state2", "layer", false);
    struct saved_state state;

    boot_vm(&vm, true);
    write_page(&vm, 3, 'a');
    EXPECT_OK(save(&vm, SNAPSHOT_FULL, "first"));
    write_page(&vm, 4, 'b');
    EXPECT_OK(save_to(&vm, SNAPSHOT_DIFF, "second", &f));
    cr_expect(is_layer(at("layer")));
    cr_expect_eq(byte_of(at("layer"), 3), '\0');
    cr_expect_eq(byte_of(at("layer"), 4), 'b');
    cr_expect_eq(open_pair(at("state2"), at("layer"), &state), -1);
    cr_expect_not_null(strstr(e.msg, "only what changed since another snapshot"), "%s", e.msg);
    write_page(&vm, 5, 'c');
    EXPECT_OK(save_to(&vm, SNAPSHOT_DIFF, "third", &f)); /* on top of that layer */
    cr_expect(is_layer(at("layer")));
    cr_expect_eq(byte_of(at("layer"), 4), 'b');
    cr_expect_eq(byte_of(at("layer"), 5), 'c');
    write_page(&vm, 6, 'd');
    EXPECT_NO(save(&vm, SNAPSHOT_DIFF, "fourth"), "Cannot write memory file: it is of snapshot ");
    cr_expect_eq(byte_of(at("mem"), 6), '\0');
    cr_expect_str_eq(get("state") + sizeof(struct uuid), "first");
    drop_vm(&vm);
}

Test(snapshot_files_write, merges_into_a_copy_that_has_no_mark)
{
    boot_vm(&vm, true);
    write_page(&vm, 3, 'a');
    EXPECT_OK(save(&vm, SNAPSHOT_FULL, "first"));
    cr_assert_eq(removexattr(at("mem"), SNAPSHOT_MARK), 0);
    write_page(&vm, 4, 'b');
    EXPECT_OK(save(&vm, SNAPSHOT_DIFF, "second"));
    cr_expect(file_is(at("mem"), &vm.mem));
    cr_expect_str_eq(mark_of(at("mem")), "whole");
    cr_assert_eq(setxattr(at("mem"), SNAPSHOT_MARK, "hello", 5, 0), 0);
    EXPECT_NO(save(&vm, SNAPSHOT_DIFF, "third"), "it is of snapshot ?");
    drop_vm(&vm);
}

/* Of a restored machine that does not track, a Diff is all since the load, and a Full takes the
 * rest from the file. */
Test(snapshot_files_write, takes_what_a_restored_machine_did_not_change_from_its_file)
{
    struct snapshot_files f = pair_at("state2", "mem2", true);
    struct saved_vm loaded = { 0 };

    boot_vm(&vm, false);
    write_page(&vm, 3, 'a');
    write_page(&vm, 300, 'a');
    EXPECT_OK(save(&vm, SNAPSHOT_FULL, "first"));
    load_vm(&loaded, false);
    write_page(&loaded, 3, 'b');
    write_page(&loaded, 7, 'b');
    EXPECT_OK(save_to(&loaded, SNAPSHOT_FULL, "full", &f));
    cr_expect(file_is(at("mem2"), &loaded.mem));
    cr_expect_leq(blocks_of(at("mem2")), 6 * GMEM_PAGE_BYTES, "holes stay holes");
    f = pair_at("state2", "mem3", true);
    write_page(&loaded, 8, 'c');
    EXPECT_OK(save_to(&loaded, SNAPSHOT_DIFF, "diff", &f));
    cr_expect(is_layer(at("mem3")));
    cr_expect_eq(byte_of(at("mem3"), 300), '\0');
    cr_expect_eq(byte_of(at("mem3"), 7), 'b');
    cr_expect_leq(blocks_of(at("mem3")), 5 * GMEM_PAGE_BYTES, "exactly what was written");
    drop_vm(&loaded);
    drop_vm(&vm);
}

Test(snapshot_files_write, does_not_take_what_was_cut_off_for_zeros)
{
    const struct snapshot_files f = pair_at("other", "other-mem", false);
    struct saved_vm loaded = { 0 };

    boot_vm(&vm, false);
    write_page(&vm, 3, 'a');
    EXPECT_OK(save(&vm, SNAPSHOT_FULL, "first"));
    drop_vm(&vm);
    load_vm(&loaded, false);
    write_page(&loaded, 4, 'b');
    cr_assert_eq(truncate(at("mem"), MEM_BYTES - 1), 0);
    EXPECT_NO(save_to(&loaded, SNAPSHOT_FULL, "second", &f), "was cut off");
    cr_expect_not(is_there("other-mem"));
    EXPECT_NO(save(&loaded, SNAPSHOT_DIFF, "second"), "was cut off");
    cr_assert_eq(truncate(at("mem"), MEM_BYTES), 0);
    EXPECT_OK(save_to(&loaded, SNAPSHOT_FULL, "third", &f));
    drop_vm(&loaded);
}

Test(snapshot_files_write, overwrites_the_file_that_memory_is_mapped_from)
{
    struct saved_vm loaded = { 0 };

    boot_vm(&vm, false);
    write_page(&vm, 3, 'a');
    EXPECT_OK(save(&vm, SNAPSHOT_FULL, "first"));
    drop_vm(&vm);
    load_vm(&loaded, true);
    write_page(&loaded, 4, 'b');
    EXPECT_OK(save(&loaded, SNAPSHOT_DIFF, "second")); /* in place */
    cr_expect(file_is(at("mem"), &loaded.mem));
    write_page(&loaded, 5, 'c');
    EXPECT_OK(save(&loaded, SNAPSHOT_FULL, "third")); /* a new file under that name */
    cr_expect(file_is(at("mem"), &loaded.mem));
    write_page(&loaded, 6, 'd');
    EXPECT_OK(save(&loaded, SNAPSHOT_DIFF, "fourth"));
    cr_expect(file_is(at("mem"), &loaded.mem));
    drop_vm(&loaded);
    load_vm(&loaded, false);
    cr_expect(file_is(at("mem"), &loaded.mem));
    drop_vm(&loaded);
}

Test(snapshot_files_write, does_not_merge_into_what_others_are_mapped_from)
{
    struct saved_vm loaded = { 0 };
    struct saved_state state;
    int other;

    boot_vm(&vm, false);
    EXPECT_OK(save(&vm, SNAPSHOT_FULL, "first"));
    load_vm(&loaded, false);
    other = open_pair(at("state"), at("mem"), &state);
    cr_assert_geq(other, 0, "%s", e.msg);
    write_page(&loaded, 4, 'b');
    EXPECT_NO(save(&loaded, SNAPSHOT_DIFF, "second"), "another microVM is mapped from it");
    cr_expect_eq(byte_of(at("mem"), 4), '\0');
    cr_expect_str_eq(mark_of(at("mem")), "whole");
    close(other);
    other = open(at("mem"), O_RDONLY);
    cr_expect(flock(other, LOCK_EX | LOCK_NB) < 0, "its own lock is still there");
    EXPECT_OK(save(&loaded, SNAPSHOT_DIFF, "third"));
    cr_expect(flock(other, LOCK_EX | LOCK_NB) < 0, "and after it was an exclusive one");
    cr_expect_eq(flock(other, LOCK_SH | LOCK_NB), 0);
    close(other);
    drop_vm(&loaded);
    drop_vm(&vm);
}

Test(snapshot_files_write, writes_in_place_what_cannot_be_replaced)
{
    struct snapshot_files f = pair_at("state", "link", true);
    struct saved_state state;
    struct stat st;
    int fd;

    mkdir(at("sub"), 0700);
    put("sub/mem", "something");
    cr_assert_eq(symlink("sub/mem", at("link")), 0);
    boot_vm(&vm, false);
    write_page(&vm, 3, 'a');
    EXPECT_OK(save_to(&vm, SNAPSHOT_FULL, "first", &f));
    cr_expect(lstat(at("link"), &st) == 0 && S_ISLNK(st.st_mode));
    cr_expect(file_is(at("sub/mem"), &vm.mem));
    fd = open_pair(at("state"), at("link"), &state);
    cr_expect_geq(fd, 0, "%s", e.msg);
    close(fd);
    cr_assert_eq(symlink("sub/new", at("dangling")), 0);
    f = pair_at("state", "dangling", true);
    EXPECT_OK(save_to(&vm, SNAPSHOT_FULL, "second", &f));
    cr_expect(file_is(at("sub/new"), &vm.mem));
    drop_vm(&vm);
}
Test(snapshot_files_write, leaves_nothing_behind_a_link_when_it_is_refused)
{
    struct snapshot_files f = pair_at("link", "mem", false);

    boot_vm(&vm, false);
    mkdir(at("sub"), 0700);
    cr_assert_eq(symlink("mem", at("link")), 0);
    EXPECT_NO(save_to(&vm, SNAPSHOT_FULL, "x", &f), "backing file, too");
    cr_expect_not(is_there("mem"));
    f = pair_at("mem", "link", false);
    EXPECT_NO(save_to(&vm, SNAPSHOT_FULL, "x", &f), "backing file, too");
    cr_expect_not(is_there("mem"));
    cr_assert_eq(symlink(at("sub/end"), at("sub/further")), 0);
    cr_assert_eq(symlink("sub/further", at("far")), 0);
    f = pair_at("far", "no/mem", false);
    EXPECT_NO(save_to(&vm, SNAPSHOT_FULL, "x", &f), "No such file or directory");
    cr_expect_not(is_there("far"));
    f = pair_at("far", "mem", false);
    EXPECT_OK(save_to(&vm, SNAPSHOT_FULL, "ok", &f));
    cr_expect_str_eq(get("sub/end") + sizeof(struct uuid), "ok");
    drop_vm(&vm);
}

/* A name to which nothing can be added is written in place, new as it is. */
Test(snapshot_files_write, removes_what_it_made_in_place_when_it_is_refused)
{
    char name[NAME_MAX + 1];
    struct snapshot_files f;

    memset(name, 'a', NAME_MAX);
    name[NAME_MAX] = '\0';
    f = pair_at(name, "/no", false);
    f.memory_path = "/dev/full";
    boot_vm(&vm, false);
    EXPECT_NO(save_to(&vm, SNAPSHOT_FULL, "x", &f), "Invalid argument");
    cr_expect_not(is_there(name));
    drop_vm(&vm);
}

/* Where a name of somebody else's stays that one's, though the file may be written. */
Test(snapshot_files_write, writes_in_place_what_is_anothers_in_a_sticky_directory)
{
    struct saved_state state;
    int fd;

    if (geteuid() != 0)
        cr_skip_test("only root may become somebody else");
    boot_vm(&vm, false);
    write_page(&vm, 3, 'a');
    EXPECT_OK(save(&vm, SNAPSHOT_FULL, "first"));
    cr_assert_eq(chmod(directory, 01777), 0);
    cr_assert_eq(chmod(at("state"), 0666), 0);
    cr_assert_eq(chown(at("mem"), 65534, 65534), 0);
    cr_assert_eq(seteuid(65534), 0);
    write_page(&vm, 3, 'b');
    EXPECT_OK(save(&vm, SNAPSHOT_FULL, "second"));
    cr_assert_eq(seteuid(0), 0);
    fd = open_pair(at("state"), at("mem"), &state);
    cr_expect_geq(fd, 0, "%s", e.msg);
    cr_expect_str_eq(state.label, "second");
    cr_expect(file_is(at("mem"), &vm.mem));
    close(fd);
    drop_vm(&vm);
}

Test(snapshot_files_write, takes_names_of_any_length)
{
    struct saved_state state;
    struct snapshot_files f;
    char names[2][NAME_MAX + 2];
    int fd;

    for (unsigned i = 0; i < 2; i++) {
        memset(names[i], 'a' + (int)i, NAME_MAX + 1);
        names[i][NAME_MAX] = names[i][NAME_MAX + 1] = '\0';
    }
    boot_vm(&vm, false);
    write_page(&vm, 3, 'a');
    f = pair_at(names[0], names[1], true);
    EXPECT_OK(save_to(&vm, SNAPSHOT_FULL, "first", &f));
    fd = open_pair(f.state_path, f.memory_path, &state);
    cr_expect_geq(fd, 0, "%s", e.msg);
    cr_expect(file_is(f.memory_path, &vm.mem));
    close(fd);
    names[0][NAME_MAX] = 'a';
    f = pair_at(names[0], "mem", true);
    EXPECT_NO(save_to(&vm, SNAPSHOT_FULL, "second", &f),
              "Cannot perform open on the snapshot backing file: Filename too long");
    cr_expect_not(is_there("mem"));
    drop_vm(&vm);
}

Test(snapshot_files_write, writes_in_place_what_is_mounted)
{
    struct saved_vm loaded = { 0 };
    struct saved_state state;
    int fd;

    if (geteuid() != 0 || unshare(CLONE_NEWNS) < 0 ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        cr_skip_test("only root may mount");
    put("host-mem", "something");
    put("host-state", "a longer state than what it is replaced by: so many bytes");
    put("mem", "");
    put("state", "");
    cr_assert_eq(mount(at("host-mem"), at("mem"), NULL, MS_BIND, NULL), 0);
    cr_assert_eq(mount(at("host-state"), at("state"), NULL, MS_BIND, NULL), 0);
    boot_vm(&vm, false);
    write_page(&vm, 3, 'a');
    EXPECT_OK(save(&vm, SNAPSHOT_FULL, "first"));
    write_page(&vm, 4, 'b');
    EXPECT_OK(save(&vm, SNAPSHOT_FULL, "second"));
    cr_expect(file_is(at("host-mem"), &vm.mem));
    drop_vm(&vm);
    load_vm(&loaded, false);
    write_page(&loaded, 5, 'c');
    EXPECT_OK(save(&loaded, SNAPSHOT_FULL, "third"));
    cr_expect(file_is(at("host-mem"), &loaded.mem), "also where memory is mapped from that");
    fd = open_pair(at("host-state"), at("host-mem"), &state);
    cr_expect_str_eq(state.label, "third");
    write_page(&loaded, 6, 'd');
    EXPECT_NO(save(&loaded, SNAPSHOT_FULL, "fourth"), "another microVM is mapped from it");
    cr_expect_eq(byte_of(at("host-mem"), 6), '\0');
    close(fd);
    drop_vm(&loaded);
}

/* ramfs has no extended attributes. */
Test(snapshot_files_write, does_without_marks)
{
    struct saved_vm loaded = { 0 };
    struct stat before, after;
    struct snapshot_files f;

    mount_here("ramfs", NULL);
    boot_vm(&vm, true);
    write_page(&vm, 3, 'a');
    EXPECT_OK(save(&vm, SNAPSHOT_FULL, "first"));
    cr_expect_str_eq(mark_of(at("mem")), "none");
    cr_assert_eq(stat(at("mem"), &before), 0);
    write_page(&vm, 4, 'b');
    EXPECT_OK(save(&vm, SNAPSHOT_DIFF, "second"));
    cr_expect(file_is(at("mem"), &vm.mem));
    cr_assert_eq(stat(at("mem"), &after), 0);
    cr_expect_neq(before.st_ino, after.st_ino, "nothing could say that it is unfinished");
    cr_assert_eq(symlink("state", at("link")), 0);
    f = pair_at("link", "mem", false);
    EXPECT_OK(save_to(&vm, SNAPSHOT_FULL, "linked", &f));
    cr_expect_str_eq(get("state") + sizeof(struct uuid), "linked");
    drop_vm(&vm);
    load_vm(&loaded, false);
    write_page(&loaded, 5, 'c');
    EXPECT_OK(save(&loaded, SNAPSHOT_FULL, "third"));
    cr_expect(file_is(at("mem"), &loaded.mem));
    drop_vm(&loaded);
}

Test(snapshot_files_write, does_not_touch_what_another_is_writing)
{
    int other;

    boot_vm(&vm, false);
    EXPECT_OK(save(&vm, SNAPSHOT_FULL, "first"));
    other = open(at("mem.mayfly-new"), O_RDWR | O_CREAT, 0600);
    cr_assert_eq(flock(other, LOCK_EX), 0);
    cr_assert_eq(write(other, "x", 1), 1);
    EXPECT_NO(save(&vm, SNAPSHOT_FULL, "second"), "another microVM is writing it");
    cr_expect_str_eq(get("mem.mayfly-new"), "x");
    cr_expect_str_eq(get("state") + sizeof(struct uuid), "first");
    close(other);
    EXPECT_OK(save(&vm, SNAPSHOT_FULL, "third")); /* what a killed one left is used again */
    cr_expect_not(is_there("mem.mayfly-new"));
    drop_vm(&vm);
}

Test(snapshot_chain_of_one, judges_the_file)
{
    struct uuid name, other;
    struct stat st;
    int fd;

    boot_vm(&vm, false);
    EXPECT_OK(save(&vm, SNAPSHOT_FULL, "first"));
    memcpy(&name, get("state"), sizeof(name));
    EXPECT_OK(uuid_make(&other, &e));
    EXPECT_NO(open_memory(at("no"), &name, MEM_BYTES),
              "Failed to load guest memory: No such file or directory (os error 2)");
    EXPECT_NO(open_memory(directory, &name, MEM_BYTES), "exceeds largest possible file offset");
    EXPECT_NO(open_memory("/dev/zero", &name, MEM_BYTES), "exceeds largest possible file offset");
    EXPECT_NO(open_memory(at("mem"), &name, MEM_BYTES + 1), "exceeds largest possible file offset");
    EXPECT_NO(open_memory(at("mem"), &other, MEM_BYTES), "its file is of snapshot ");
    fd = open(at("mem"), O_RDWR);
    cr_assert_eq(flock(fd, LOCK_EX), 0);
    EXPECT_NO(open_memory(at("mem"), &name, MEM_BYTES), "is being written");
    close(fd);
    cr_assert_eq(setxattr(at("mem"), SNAPSHOT_MARK, "hello", 5, 0), 0);
    EXPECT_NO(open_memory(at("mem"), &name, MEM_BYTES), "is not one of ours");
    cr_assert_eq(removexattr(at("mem"), SNAPSHOT_MARK), 0);
    fd = open_memory(at("mem"), &other, MEM_BYTES);
    cr_expect_eq(fstat(fd, &st), 0, "a copy without a mark: %s", e.msg);
    close(fd);
    drop_vm(&vm);
}

Test(snapshot_files_read_state, judges_the_file)
{
    uint8_t *bytes = NULL;
    size_t n;

    put("long", "");
    cr_assert_eq(truncate(at("long"), SNAPSHOT_STATE_BYTES + 1), 0);
    put("short", "1234567");
    put("least", "12345678");
    mkfifo(at("fifo"), 0600);
    EXPECT_NO(snapshot_files_read_state(at("no"), &bytes, &n, &e),
              "Failed to open snapshot file: No such file or directory (os error 2)");
    EXPECT_NO(snapshot_files_read_state(directory, &bytes, &n, &e),
              "Failed to load snapshot state from file: IO Error: Is a directory (os error 21)");
    EXPECT_NO(snapshot_files_read_state(at("short"), &bytes, &n, &e),
              "IO Error: File too short to contain CRC");
    EXPECT_NO(snapshot_files_read_state(at("long"), &bytes, &n, &e),
              "Snapshot size exceeds limit of 10000000 bytes");
    EXPECT_NO(snapshot_files_read_state("/dev/zero", &bytes, &n, &e),
              "Snapshot size exceeds limit of 10000000 bytes");
    EXPECT_NO(snapshot_files_read_state(at("fifo"), &bytes, &n, &e), "it is no regular file");
    EXPECT_OK(snapshot_files_read_state(at("least"), &bytes, &n, &e));
    cr_expect(n == 8 && memcmp(bytes, "12345678", 8) == 0);
    free(bytes);
}
