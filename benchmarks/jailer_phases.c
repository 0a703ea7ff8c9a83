/*
 * The jailer with a clock between its steps, for benchmarks/jailer: the same steps in the same
 * order, from the jailer's own library. Before it leaves it prints the nanoseconds of each phase;
 * what it executes (this program under the name "stub") prints when it began.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "jailer/cell.h"
#include "jailer/cgroup.h"
#include "jailer/leave.h"
#include "vmm/base/clock.h"

static uint64_t last;

static void lap(const char *name)
{
    uint64_t now = monotonic_ns();

    printf("%s %llu\n", name, (unsigned long long)(now - last));
    last = monotonic_ns();
}

int main(int argc, char **argv)
{
    const struct rlimit files = { 2048, 2048 };
    struct start start = start_now();
    static struct args args;
    static struct plan plan;
    const struct daemon_files no_files = { -1, -1 };
    static struct cgroup group;
    struct cell cell;

    (void)argc;
    if (strcmp(argv[0], "/stub") == 0)
        return printf("began %llu\n", (unsigned long long)monotonic_ns()) < 0;
    last = monotonic_ns();
    close_range(3, ~0u, 0);
    if (args_parse(&args, argv) != REQUEST_JAIL)
        return 1;
    plan_make(&plan, &args);
    lap("arguments, plan");
    cell_make(&cell, &plan);
    lap("directory, binary");
    setrlimit(RLIMIT_NOFILE, &files);
    cgroup_set_up(&group, &plan);
    lap("limits, cgroup");
    cell_enter(&cell, &plan);
    lap("mount namespace");
    cell_furnish(&cell, &plan);
    lap("devices");
    printf("leaving %llu\n", (unsigned long long)last);
    fflush(stdout);
    leave(&plan, &cell, &group, &no_files, &start);
}
