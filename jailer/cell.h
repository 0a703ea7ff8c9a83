/*
 * The cell: the directory that becomes the VMM's root, with the VMM's binary and its devices in it
 * and nothing else.
 *
 * A jail of one id is made once: its PID file says that it was, and then its device nodes are in
 * the way of another one (as in Firecracker). What a jailer left that was killed half-way is made
 * anew. Two jailers of one id at once: the second is refused.
 */
#pragma once

#include "jailer/plan.h"

/* What has to be fetched from the host's tree before it is out of sight, as descriptors; -1: not
 * needed. */
struct cell {
    int root_fd; /* the root as the host sees it, where the PID file goes; locked */
    int exec_fd, kvm_fd, tun_fd, urandom_fd, uffd_fd; /* detached mounts */
    int run_fd;                                       /* the cell's /run, once it is furnished */
    int uffd_minor; /* of /dev/userfaultfd; -1: the host has none */
    bool is_reused; /* there is a PID file */
};

/* Makes the root directory, and brings the binary into it (a copy or a hard link). */
void cell_make(struct cell *c, const struct plan *p);

/* Moves into the cell: a mount namespace of our own whose root is the cell's, and nothing else of
 * the host's tree. What the host mounts below the cell's root later is seen inside. */
void cell_enter(struct cell *c, const struct plan *p);

/* Makes directories and device nodes, owned by the VMM's user and for it alone, whatever the umask,
 * following no link that an earlier VMM or its user may have left in their place. From inside. */
void cell_furnish(struct cell *c, const struct plan *p);

/* Takes the write permission from the root, if that is asked for. From inside. */
void cell_seal(const struct cell *c, const struct plan *p);
