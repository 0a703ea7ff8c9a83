/*
 * Landlock (landlock(7)): walls around what a filter can't see, because it stands behind a pointer,
 * where the host's kernel has them. Both are for the calling process, which must have no other
 * threads yet, and for what it executes; they can be narrowed, but not lifted, and set
 * no_new_privs, which the kernel asks for.
 */
#pragma once

#include "vmm/base/error.h"

/* What landlock_scope() and landlock_files() take of the kernel. */
#define LANDLOCK_ABI_SCOPE 6
#define LANDLOCK_ABI_FILES 1

/* The version of Landlock that the kernel has for this process; 0: none. */
int landlock_abi(void);

/* From Linux 6.12 on: no connections to abstract UNIX sockets and no signals, but to processes
 * behind the same wall. 0, also where the kernel has no such wall; or -errno. */
must_check int landlock_scope(void);

/* From Linux 5.13 on: files that aren't below the root can't be opened, whatever directory they are
 * named from. Below it they can be opened, and files and sockets made and removed; nothing else can
 * be made or removed. Mounts can't be changed. The same results. */
must_check int landlock_files(void);
