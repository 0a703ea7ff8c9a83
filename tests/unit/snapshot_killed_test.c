/* A create that is cut off: snapshot_files_write(). */
#include "vmm/snapshot/files.h"

#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>

#include "tests/unit/support/snapshot.h"
#include "vmm/base/log.h"

/* Here a create need not wait for a disk, where this kernel's tmpfs has extended attributes. */
static void make_quick_directory(void)
{
    make_directory();
    if (geteuid() != 0 || unshare(CLONE_NEWNS) < 0 ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("none", directory, "tmpfs", 0, NULL) < 0)
        return;
    if (setxattr(directory, SNAPSHOT_MARK, "", 0, 0) < 0)
        umount2(directory, MNT_DETACH);
}

TestSuite(snapshot_killed, .init = make_quick_directory, .fini = remove_pairs, .timeout = 600);

/*
 * A create that is ended before each of its system calls.
 */

enum how { FULL_NEW, FULL_OVER_OLD, DIFF_IN_PLACE, DIFF_OF_LOADED, LIVE_FULL, LIVE_DIFF };
enum found { REFUSED, OLD, NEW, MIXED };

/* What memory has before and at the second snapshot: runs of pages. */
static char content(unsigned page, bool is_new)
{
    return (char)(page % 32 < 3 ? is_new ? 'b' : 'a' : page % 32 == 3 && is_new ? 'c' : '\0');
}

static void fill_memory(struct saved_vm *filled, bool is_new)
{
    for (unsigned page = 0; page < MEM_PAGES; page++)
        if (content(page, is_new))
            write_page(filled, page, content(page, is_new));
}

static void end_filling(struct saved_vm *filled)
{
    write_page(filled, 40, '\0');
    fill_memory(filled, true);
}

/* In a process of its own: up to the stop, all that a create finds. */
static void create_traced(enum how how)
{
    const struct snapshot_files f = pair_at("state", "mem", true);
    const enum snapshot_kind kind =
        how == DIFF_IN_PLACE || how == DIFF_OF_LOADED || how == LIVE_DIFF ? SNAPSHOT_DIFF
                                                                          : SNAPSHOT_FULL;
    const bool is_live = how == LIVE_FULL || how == LIVE_DIFF;
    int ret;

    struct saved_vm saved = { 0 };

    boot_vm(&saved, how == DIFF_IN_PLACE || is_live);
    fill_memory(&saved, false);
    if (how != FULL_NEW)
        cr_assert_eq(save(&saved, SNAPSHOT_FULL, "old"), 0, "%s", e.msg);
    if (how == DIFF_OF_LOADED) {
        drop_vm(&saved);
        load_vm(&saved, true);
    }
    if (is_live)
        write_page(&saved, 40, 'z'); /* and not for long */
    else
        fill_memory(&saved, true);
    ptrace(PTRACE_TRACEME, 0, 0, 0);
    raise(SIGSTOP);
    ret = is_live ? save_live(&saved, kind, "new", &f, end_filling)
                  : save_to(&saved, kind, "new", &f);
    _exit(ret == 0 ? 0 : 1);
}

/* Ends it before so many calls, the last of them, are made. Whether it came to its own end. */
static bool end_at(pid_t pid, unsigned calls)
{
    int status;

    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_assert(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    for (unsigned stops = 0; stops < 2 * calls - 1; stops++) { /* also where a call returns */
        ptrace(PTRACE_SYSCALL, pid, 0, 0);
        cr_assert_eq(waitpid(pid, &status, 0), pid);
        if (WIFEXITED(status)) {
            cr_assert_eq(WEXITSTATUS(status), 0);
            return true;
        }
    }
    kill(pid, SIGKILL);
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    return false;
}

static enum found look(void)
{
    struct saved_state state;
    const int fd = open_pair(at("state"), at("mem"), &state);
    bool is_new;

    if (fd < 0)
        return REFUSED;
    close(fd);
    is_new = strcmp(state.label, "new") == 0;
    for (unsigned page = 0; page < MEM_PAGES; page++)
        if (byte_of(at("mem"), page) != content(page, is_new))
            return MIXED;
    return is_new ? NEW : OLD;
}

static void expect_no_mixture(enum how how, enum found before, unsigned refused_at_least)
{
    unsigned counts[MIXED + 1] = { 0 }, calls = 1;

    for (bool is_done = false; !is_done; calls++) {
        enum found found;
        pid_t pid;

        log_set_options((struct log_options){ .level = LOG_OFF });
        unlink(at("state"));
        unlink(at("mem"));
        pid = fork();
        if (pid == 0)
            create_traced(how);
        is_done = end_at(pid, calls);
        found = look();
        counts[found]++;
        cr_expect_neq(found, MIXED, "ended at call %u", calls);
        if (calls == 1)
            cr_expect_eq(found, before, "nothing was done, but %u", found);
        if (is_done)
            cr_expect_eq(found, NEW, "%s", e.msg);
    }
    cr_expect_gt(calls, 30u, "%u calls", calls);
    cr_expect_geq(counts[REFUSED], refused_at_least);
    cr_log_info("%u calls: %u refused, %u old, %u new", calls - 1, counts[REFUSED], counts[OLD],
                counts[NEW]);
}

Test(snapshot_killed, leaves_nothing_or_a_pair)
{
    expect_no_mixture(FULL_NEW, REFUSED, 1);
}

Test(snapshot_killed, leaves_the_old_pair_or_the_new_one)
{
    expect_no_mixture(FULL_OVER_OLD, OLD, 1);
}

Test(snapshot_killed, leaves_an_unfinished_merge_refused)
{
    expect_no_mixture(DIFF_IN_PLACE, OLD, 20);
}

Test(snapshot_killed, leaves_an_unfinished_merge_into_the_mapped_file_refused)
{
    expect_no_mixture(DIFF_OF_LOADED, OLD, 20);
}

Test(snapshot_killed, leaves_the_old_pair_or_the_new_one_of_a_guest_that_runs)
{
    expect_no_mixture(LIVE_FULL, OLD, 1);
}

Test(snapshot_killed, leaves_an_unfinished_merge_of_a_guest_that_runs_refused)
{
    expect_no_mixture(LIVE_DIFF, OLD, 20);
}

Test(snapshot_killed, leaves_no_mixture_without_marks)
{
    mount_here("ramfs", NULL);
    expect_no_mixture(FULL_OVER_OLD, OLD, 1);
    expect_no_mixture(DIFF_IN_PLACE, OLD, 1);
    expect_no_mixture(LIVE_FULL, OLD, 1);
    expect_no_mixture(LIVE_DIFF, OLD, 1);
}

Test(snapshot_killed, leaves_no_mixture_in_what_is_mounted)
{
    if (geteuid() != 0 || unshare(CLONE_NEWNS) < 0 ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        cr_skip_test("only root may mount");
    put("host-mem", "");
    put("mem", "");
    cr_assert_eq(mount(at("host-mem"), at("mem"), NULL, MS_BIND, NULL), 0);
    expect_no_mixture(FULL_OVER_OLD, OLD, 20);
}

/*
 * What a disk has when the host dies is what was synced before, in any order of what was not: each
 * step that another one relies on is.
 */

/* The calls that matter here, a letter each; pages in several calls are one. */
static char letter_of(unsigned long long call)
{
    switch (call) {
    case SYS_ftruncate: return 't';
    case SYS_write: return 'w';
    case SYS_fsetxattr: return 'm';
    case SYS_pwritev: return 'p';
    case SYS_fsync: return 's';
    case SYS_unlink: return 'u';
    case SYS_rename: return 'r';
    default: return '\0';
    }
}

static const char *steps_of(enum how how)
{
    static char steps[64];
    struct user_regs_struct regs;
    unsigned n = 0;
    int status;
    pid_t pid;

    log_set_options((struct log_options){ .level = LOG_OFF });
    pid = fork();
    if (pid == 0)
        create_traced(how);
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    for (unsigned stops = 0;; stops++) {
        char letter;

        ptrace(PTRACE_SYSCALL, pid, 0, 0);
        cr_assert_eq(waitpid(pid, &status, 0), pid);
        if (WIFEXITED(status))
            break;
        cr_assert_eq(ptrace(PTRACE_GETREGS, pid, 0, &regs), 0);
        letter = letter_of(regs.orig_rax);
        if (stops % 2 == 0 && letter && (letter != 'p' || n == 0 || steps[n - 1] != 'p'))
            steps[n++] = letter;
        cr_assert_lt(n, sizeof(steps));
    }
    cr_assert_eq(WEXITSTATUS(status), 0);
    steps[n] = '\0';
    return steps;
}

Test(snapshot_killed, has_on_the_disk_what_the_next_step_relies_on)
{
    if (setxattr(directory, SNAPSHOT_MARK, "", 0, 0) < 0)
        cr_skip_test("here are no marks");
    /* The state; memory with its mark; the names one after the other. */
    cr_expect_str_eq(steps_of(FULL_OVER_OLD), "twsttmpsrsrs");
    /* The state; that memory is unfinished; its pages; that it is whole; the name. */
    cr_expect_str_eq(steps_of(DIFF_IN_PLACE), "twsmspsmsrs");
    /* Memory with its mark; its pages, and what the guest wrote meanwhile; the state; the names. */
    cr_expect_str_eq(steps_of(LIVE_FULL), "tttmpspwssrsrs");
    cr_expect_str_eq(steps_of(LIVE_DIFF), "tmspspwssmsrs");
}

Test(snapshot_killed, has_no_old_state_on_the_disk_where_there_are_no_marks)
{
    mount_here("ramfs", NULL);
    cr_expect_str_eq(steps_of(FULL_OVER_OLD), "twsttmpsusrsrs");
}
