#include "jailer/check.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "jailer/plan.h"
#include "vmm/seccomp/landlock.h"

#define TEXT_BYTES 4096

enum verdict { FINE, ADVICE, WRONG };

static const char *const words[] = { [FINE] = "ok", [ADVICE] = "advice", [WRONG] = "wrong" };

/* The beginning of a file's text without its last line feed; false if there is no such file. */
static bool read_text(char *text, const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, TEXT_BYTES - 1);

    if (fd >= 0)
        close(fd);
    if (n < 0)
        return false;
    text[n] = '\0';
    if (n > 0 && text[n - 1] == '\n')
        text[n - 1] = '\0';
    return true;
}

/* Says a line; the advice only where it is needed. Counts towards the exit code. */
static bool say(enum verdict v, const char *what, const char *advice)
{
    printf("%-7s %s%s%s\n", words[v], what, v == FINE ? "" : ": ", v == FINE ? "" : advice);
    return v == WRONG;
}

/* A file whose text begins with what is wanted (or does not exist, where that is as good). */
static bool check_text(const char *what, const char *path, const char *wanted, enum verdict else_,
                       const char *advice)
{
    char text[TEXT_BYTES];

    if (!read_text(text, path))
        return say(FINE, what, advice);
    return say(strncmp(text, wanted, strlen(wanted)) == 0 ? FINE : else_, what, advice);
}

static bool check_kvm(void)
{
    struct stat st;

    if (stat("/dev/kvm", &st) < 0 || !S_ISCHR(st.st_mode))
        return say(WRONG, "/dev/kvm",
                   "there is none: load kvm_intel or kvm_amd, or switch virtualisation on in the "
                   "firmware");
    if (access("/dev/kvm", R_OK | W_OK) < 0)
        return say(WRONG, "/dev/kvm", "this user may not open it (the jailer's root may)");
    return say(FINE, "/dev/kvm", "");
}

/* The first processor's flags name one. In a host where none do, KVM emulates what a guest's kernel
 * does, and Linux does things that it can't: `tests/rig/choose-host` goes by the same. */
static bool has_virtualisation(void)
{
    char text[TEXT_BYTES], *flags, *end, *word, *rest;

    if (!read_text(text, "/proc/cpuinfo") || !(flags = strstr(text, "\nflags")))
        return true; /* who knows */
    end = strchr(flags + 1, '\n');
    if (end)
        *end = '\0';
    for (word = strtok_r(flags, " \t:", &rest); word; word = strtok_r(NULL, " \t:", &rest))
        if (strcmp(word, "vmx") == 0 || strcmp(word, "svm") == 0)
            return true;
    return false;
}

static bool check_linux(void)
{
    return say(
        has_virtualisation() ? FINE : WRONG, "KVM runs Linux",
        "the processor has neither VT-x nor AMD-V (no vmx or svm in /proc/cpuinfo), so that a "
        "Linux guest never says a word though each request is answered: switch "
        "virtualisation on in the firmware, or, in a virtual machine, on its host");
}

static bool check_seccomp(void)
{
    if (prctl(PR_GET_SECCOMP, 0, 0, 0, 0) < 0)
        return say(WRONG, "seccomp", "the kernel was built without it");
    return say(FINE, "seccomp", "");
}

static bool check_landlock(void)
{
    const int abi = landlock_abi();
    char what[32];

    if (abi < LANDLOCK_ABI_FILES)
        return say(ADVICE, "Landlock",
                   "there is none, and a captured VMM is held by its filter and its cell alone: a "
                   "kernel with CONFIG_SECURITY_LANDLOCK, and landlock in its lsm=");
    snprintf(what, sizeof(what), "Landlock, ABI %d", abi);
    return say(abi < LANDLOCK_ABI_SCOPE ? ADVICE : FINE, what,
               "it guards files; abstract sockets and signals from ABI 6 (Linux 6.12) on. Till "
               "then --netns and --new-pid-ns part microVMs");
}

static bool check_nested(void)
{
    char text[TEXT_BYTES];
    bool is_on = (read_text(text, "/sys/module/kvm_intel/parameters/nested") ||
                  read_text(text, "/sys/module/kvm_amd/parameters/nested")) &&
                 (*text == 'Y' || *text == '1');

    return say(is_on ? ADVICE : FINE, "nested virtualisation off",
               "guests that don't need it reach more of KVM's code: load kvm_intel or kvm_amd with "
               "nested=0");
}

static bool check_smt(void)
{
    return check_text("SMT off", "/sys/devices/system/cpu/smt/active", "0", ADVICE,
                      "two tenants on one core can watch each other through its caches: boot with "
                      "nosmt, or let only vCPUs of one VM share a core (core scheduling)");
}

static bool check_ksm(void)
{
    return check_text("KSM off", "/sys/kernel/mm/ksm/run", "0", WRONG,
                      "memory shared between tenants tells one what the other has: "
                      "echo 0 >/sys/kernel/mm/ksm/run");
}

static bool check_swap(void)
{
    char text[TEXT_BYTES];
    bool is_on = read_text(text, "/proc/swaps") && strchr(text, '\n') != NULL;

    return say(
        is_on ? ADVICE : FINE, "no swap",
        "guest memory ends up on the host's disk, and stays there: swapoff -a, or encrypt it");
}

/* The kernel's lists of weaknesses, each with whether something is done about it. */
static bool check_vulnerabilities(void)
{
    static const char *const names[] = { "l1tf",
                                         "mds",
                                         "meltdown",
                                         "mmio_stale_data",
                                         "retbleed",
                                         "spectre_v1",
                                         "spectre_v2",
                                         "spec_store_bypass",
                                         "tsx_async_abort",
                                         "srbds",
                                         "gather_data_sampling",
                                         "spec_rstack_overflow",
                                         "reg_file_data_sampling",
                                         "tsa",
                                         "vmscape" };
    char path[128], text[TEXT_BYTES], list[1024] = "";
    size_t used = 0;

    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        snprintf(path, sizeof(path), "/sys/devices/system/cpu/vulnerabilities/%s", names[i]);
        if (read_text(text, path) && strncmp(text, "Vulnerable", 10) == 0)
            used += (size_t)snprintf(list + used, sizeof(list) - used, " %s", names[i]);
    }
    snprintf(text, sizeof(text),
             "the processor leaks by%s: newer microcode, and no mitigations=off", list);
    return say(used ? WRONG : FINE, "processor's weaknesses mitigated", text);
}

static bool check_cgroups(void)
{
    char text[TEXT_BYTES];
    struct statfs fs;

    if (statfs("/sys/fs/cgroup", &fs) < 0 || fs.f_type != CGROUP2_SUPER_MAGIC)
        return say(ADVICE, "cgroup version 2",
                   "/sys/fs/cgroup is not one: --cgroup-version 2 sets all limits in one place and "
                   "starts a VMM right inside");
    if (!read_text(text, "/sys/fs/cgroup/cgroup.controllers") || !strstr(text, "memory") ||
        !strstr(text, "pids") || !strstr(text, "cpu"))
        return say(WRONG, "cgroup version 2", "the controllers cpu, memory and pids are needed");
    return say(FINE, "cgroup version 2", "");
}

/* Moving a process into a cgroup takes a lock that all forks and exits on the host wait for. */
static bool check_favordynmods(void)
{
    char line[TEXT_BYTES];
    FILE *f = fopen("/proc/self/mounts", "re");
    bool is_found = false, is_v2 = false;

    while (f && fgets(line, sizeof(line), f))
        if (strstr(line, " cgroup2 ")) {
            is_v2 = true;
            is_found |= strstr(line, "favordynmods") != NULL;
        }
    if (f)
        fclose(f);
    return say(is_v2 && !is_found ? ADVICE : FINE, "cgroups favour changes",
               "starts wait for each other: mount -o remount,favordynmods /sys/fs/cgroup (6.0)");
}

static bool check_huge_pages(void)
{
    char text[TEXT_BYTES];
    bool is_there = read_text(text, "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages") &&
                    strcmp(text, "0") != 0;

    return say(is_there ? FINE : ADVICE, "2 MiB pages reserved",
               "huge_pages \"2M\" has none to take: vm.nr_hugepages=N");
}

static bool check_transparent(void)
{
    char text[TEXT_BYTES];
    bool is_never =
        read_text(text, "/sys/kernel/mm/transparent_hugepage/enabled") && strstr(text, "[never]");

    return say(is_never ? ADVICE : FINE, "transparent huge pages to be had",
               "huge_pages \"Transparent\" has no effect: "
               "echo madvise >/sys/kernel/mm/transparent_hugepage/enabled");
}

/* KVM splits huge pages that guests execute from, against a weakness of some processors, and a
 * thread in each VMM merges them again: it costs each start a thread. */
static bool check_recovery(void)
{
    char text[TEXT_BYTES], ratio[TEXT_BYTES];
    bool is_on = read_text(text, "/sys/module/kvm/parameters/nx_huge_pages") && *text == 'Y' &&
                 read_text(ratio, "/sys/module/kvm/parameters/nx_huge_pages_recovery_ratio") &&
                 strcmp(ratio, "0") != 0;

    return say(
        is_on ? ADVICE : FINE, "no thread that recovers huge pages",
        "one in each VM, which delays its start: where the processor is affected and VMs are "
        "short-lived, kvm.nx_huge_pages_recovery_ratio=0; where it is not, "
        "kvm.nx_huge_pages=never");
}

static bool check_userfaultfd(void)
{
    return check_text("userfaultfd for root only", "/proc/sys/vm/unprivileged_userfaultfd", "0",
                      ADVICE, "it makes kernel bugs easier to use: vm.unprivileged_userfaultfd=0");
}

/* Where the cells would be. */
static bool check_base(const char *base)
{
    unsigned long flags = plan_mount_flags(base);
    char advice[PATH_MAX + 128];

    snprintf(advice, sizeof(advice),
             "%s is mounted %s%s%s, so that no cell there works: mount -o remount,dev,exec it, or "
             "take another --chroot-base-dir",
             base, flags & ST_NODEV ? "nodev" : "",
             (flags & ST_NODEV && flags & ST_NOEXEC) ? " and " : "",
             flags & ST_NOEXEC ? "noexec" : "");
    return say(flags & (ST_NODEV | ST_NOEXEC) ? WRONG : FINE, "devices and programs in cells",
               advice);
}

/* Clients that look for cells of `firecracker` don't find those of what it is a link to. */
static bool check_name(const char *exec_file)
{
    static const char usual[] = "/firecracker";
    char beside[PATH_MAX] = "", real[PATH_MAX], advice[3 * PATH_MAX], *name;
    const char *what = "cells have the binary's name";

    if (!exec_file) {
        if (readlink("/proc/self/exe", beside, sizeof(beside) - sizeof(usual)) < 0)
            return false;
        name = strrchr(beside, '/');
        if (!name)
            return false;
        memcpy(name, usual, sizeof(usual));
        exec_file = beside;
    }
    if (!realpath(exec_file, real) || strcmp(basename(exec_file), basename(real)) == 0)
        return say(FINE, what, "");
    snprintf(advice, sizeof(advice),
             "%s is a link to %s, and a cell is named after that: clients that look for "
             "BASE/%s/ID find none. Install the file itself under the name: ln -f or install, not "
             "ln -s",
             exec_file, real, basename(exec_file));
    return say(WRONG, what, advice);
}

int host_check(const char *exec_file, const char *base)
{
    bool is_wrong = false;

    is_wrong |= check_kvm();
    is_wrong |= check_linux();
    is_wrong |= check_seccomp();
    is_wrong |= check_landlock();
    is_wrong |= check_nested();
    is_wrong |= check_smt();
    is_wrong |= check_ksm();
    is_wrong |= check_swap();
    is_wrong |= check_vulnerabilities();
    is_wrong |= check_cgroups();
    is_wrong |= check_favordynmods();
    is_wrong |= check_huge_pages();
    is_wrong |= check_transparent();
    is_wrong |= check_recovery();
    is_wrong |= check_userfaultfd();
    is_wrong |= check_base(base);
    is_wrong |= check_name(exec_file);
    return is_wrong ? 1 : 0;
}
