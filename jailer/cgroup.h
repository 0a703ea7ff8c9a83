/*
 * Control groups, version 1 and 2: what `--cgroup` asks for, written into HIERARCHY/PARENT/ID.
 */
#pragma once

#include "jailer/plan.h"

/* Makes the cgroups and writes the settings. Returns the cgroup (version 2) that the VMM is to be
 * born in or moved to, as a directory's descriptor; -1: none, or version 1, where this process has
 * already moved. */
int cgroup_set_up(const struct plan *p);

/* Moves this process into a cgroup that cgroup_set_up() returned. */
void cgroup_join(int cgroup_fd);
