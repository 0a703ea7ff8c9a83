#include "jailer/cgroup.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "jailer/cgroup_tree.h"
#include "jailer/die.h"

#define MOUNTS           "/proc/self/mounts"
#define CONTROLLER_BYTES 64

/* Where most hosts have it, which spares reading a list of what may be hundreds of mounts. */
static bool is_mounted_at(const char *path, long magic)
{
    struct statfs fs;

    return statfs(path, &fs) == 0 && fs.f_type == magic;
}

__attribute__((noreturn)) static void die_of_version(const char *other_type, int other)
{
    static const char *const missing = "Hierarchy not found: No hierarchy found for this cgroup "
                                       "version.";
    char path[PATH_MAX];

    if (!cgroup_find_mount(path, MOUNTS, other_type, NULL))
        die("%s This host has none of either version.", missing);
    die("%s This host has version %d (%s): --cgroup-version %d.", missing, other, path, other);
}

static void find_v1(char *out, const char *controller)
{
    path_set(out, "/sys/fs/cgroup/%s", controller);
    if (is_mounted_at(out, CGROUP_SUPER_MAGIC) ||
        cgroup_find_mount(out, MOUNTS, "cgroup", controller))
        return;
    if (!cgroup_find_mount(out, MOUNTS, "cgroup", NULL))
        die_of_version("cgroup2", 2);
    die("Controller %s is unavailable", controller);
}

static void find_v2(char *out)
{
    path_set(out, "/sys/fs/cgroup");
    if (!is_mounted_at(out, CGROUP2_SUPER_MAGIC) &&
        !cgroup_find_mount(out, MOUNTS, "cgroup2", NULL))
        die_of_version("cgroup", 1);
}

static void name_controller(char name[CONTROLLER_BYTES], const struct cgroup_setting *s)
{
    snprintf(name, CONTROLLER_BYTES, "%.*s", s->controller_bytes, s->file);
}

static void set_v1(const struct plan *p, const struct cgroup_setting *s)
{
    char controller[CONTROLLER_BYTES], mount[PATH_MAX], location[PATH_MAX], path[PATH_MAX];

    name_controller(controller, s);
    find_v1(mount, controller);
    path_set(location, "%s/%s/%s", mount, p->parent_cgroup, p->args->id);
    cgroup_make(mount, location);
    if (strcmp(controller, "cpuset") == 0) {
        cgroup_inherit(mount, location, "cpuset.cpus");
        cgroup_inherit(mount, location, "cpuset.mems");
    }
    /* Firecracker looks at the parent's first, and clients know what it says. */
    path_set(path, "%s/%s/%.*s", mount, p->parent_cgroup, s->file_bytes, s->file);
    if (access(path, F_OK) < 0)
        die_os(errno, "Failed to read file %s into a string", path);
    path_set(path, "%s/%.*s", location, s->file_bytes, s->file);
    write_once(path, s->value);
}

/* "0" is whoever writes it. */
static void join_v1(const struct plan *p, const struct cgroup_setting *s)
{
    char controller[CONTROLLER_BYTES], mount[PATH_MAX], path[PATH_MAX];

    name_controller(controller, s);
    find_v1(mount, controller);
    path_set(path, "%s/%s/%s/tasks", mount, p->parent_cgroup, p->args->id);
    write_once(path, "0");
}

static void set_v2(const char *mount, const char *location, const struct cgroup_setting *s)
{
    char controller[CONTROLLER_BYTES], path[PATH_MAX];

    name_controller(controller, s);
    cgroup_hand_down(mount, location, controller);
    path_set(path, "%s/%.*s", location, s->file_bytes, s->file);
    write_once(path, s->value);
}

static void set_up_v2(struct cgroup *c, const struct plan *p)
{
    const struct args *a = p->args;
    char mount[PATH_MAX];

    find_v2(mount);
    path_set(c->path, "%s/%s", mount, p->parent_cgroup);
    if (a->cgroup_count > 0) {
        path_set(c->path, "%s/%s/%s", mount, p->parent_cgroup, a->id);
        cgroup_make(mount, c->path);
    }
    for (int i = 0; i < a->cgroup_count; i++)
        set_v2(mount, c->path, &a->cgroups[i]);
    c->fd = open(c->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    /* Without settings, a parent that exists is joined as it is. */
    if (c->fd < 0 && (errno != ENOENT || a->cgroup_count > 0))
        die_os(errno, "Failed to open directory %s", c->path);
}

void cgroup_set_up(struct cgroup *c, const struct plan *p)
{
    const struct args *a = p->args;

    *c = (struct cgroup){ .fd = -1 };
    if (a->cgroup_version == 2) {
        set_up_v2(c, p);
        return;
    }
    for (int i = 0; i < a->cgroup_count; i++)
        set_v1(p, &a->cgroups[i]);
    for (int i = 0; i < a->cgroup_count; i++)
        join_v1(p, &a->cgroups[i]);
}

void cgroup_join(const struct cgroup *c)
{
    int fd = openat(c->fd, "cgroup.procs", O_WRONLY | O_CLOEXEC);

    if (fd < 0 || write(fd, "0", 1) != 1)
        cgroup_refused(c, errno);
    close(fd);
}

void cgroup_refused(const struct cgroup *c, int os_errno)
{
    die_hint(os_errno,
             os_errno == EBUSY ? "it hands controllers down (cgroup.subtree_control), and so can "
                                 "have no processes of its own: pass --cgroup for a child of it, "
                                 "or another --parent-cgroup"
                               : NULL,
             "Failed to move process to cgroup (%s)", c->path);
}
