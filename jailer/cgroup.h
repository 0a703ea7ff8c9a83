/*
 * Control groups, version 1 and 2: what `--cgroup` asks for, written into HIERARCHY/PARENT/ID.
 */
#pragma once

#include <limits.h>

#include "jailer/plan.h"

/* A cgroup (version 2) that the VMM is to be born in or moved to. */
struct cgroup {
    int fd; /* its directory; -1: none, or version 1, where this process has already moved */
    char path[PATH_MAX];
};

/* Makes the cgroups and writes the settings. */
void cgroup_set_up(struct cgroup *c, const struct plan *p);

/* Moves this process into it. */
void cgroup_join(const struct cgroup *c);

/* Ends the process: it could not be moved into the cgroup, or not born there. */
__attribute__((noreturn, cold)) void cgroup_refused(const struct cgroup *c, int os_errno);
