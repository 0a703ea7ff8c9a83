/*
 * A hierarchy of control groups as directories and files: what a jail needs of it, wherever it is
 * mounted. A location is a path of PATH_MAX bytes at most below the path of its mount. What fails
 * ends the process with a message.
 */
#pragma once

#include <stdbool.h>

/* The first mount of that type ("cgroup" or "cgroup2") in a list as in /proc/self/mounts, which
 * has the controller (NULL: any) among its options. False: there is none. out has room for PATH_MAX
 * bytes. */
bool cgroup_find_mount(char *out, const char *mounts, const char *type, const char *controller);

/* Makes every directory of location below the mount that is not there. */
void cgroup_make(const char *mount, const char *location);

/* Gives each cpuset on the way from the mount to the location that is empty its parent's value of
 * file. */
void cgroup_inherit(const char *mount, const char *location, const char *file);

/* Has everything above the location hand a controller down to it (version 2). */
void cgroup_hand_down(const char *mount, const char *location, const char *controller);
