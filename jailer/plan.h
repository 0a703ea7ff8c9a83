/*
 * What the arguments mean on this host: names and paths, resolved and checked before anything is
 * changed.
 */
#pragma once

#include <limits.h>

#include "jailer/args.h"

struct plan {
    const struct args *args;
    char exec_path[PATH_MAX]; /* of the binary, without symbolic links */
    const char *exec_name;    /* its last component: names the jail's directory and the VMM */
    char root[PATH_MAX];      /* BASE/EXEC-NAME/ID/root */
    int root_at;              /* the part of root that exists already: BASE, in bytes */
    const char *parent_cgroup;
};

/* The mount's flags (ST_NODEV and the like of statvfs(3)) where path is, or would be made; 0: they
 * can't be told. */
unsigned long plan_mount_flags(const char *path);

/* Borrows args. Ends the process with a message when something is not as it must be. */
void plan_make(struct plan *p, const struct args *args);
