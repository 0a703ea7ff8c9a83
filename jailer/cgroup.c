#include "jailer/cgroup.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <mntent.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "jailer/die.h"

#define MOUNTS     "/proc/self/mounts"
#define LINE_BYTES 4096

/* Where most hosts have it, which spares reading a list of what may be hundreds of mounts. */
static bool is_mounted_at(const char *path, long magic)
{
    struct statfs fs;

    return statfs(path, &fs) == 0 && fs.f_type == magic;
}

static bool find_mount(char *out, const char *type, const char *controller)
{
    FILE *mounts = setmntent(MOUNTS, "re");
    struct mntent entry, *found;
    char text[LINE_BYTES];

    if (!mounts)
        die_os(errno, "Failed to open file %s", MOUNTS);
    do
        found = getmntent_r(mounts, &entry, text, sizeof(text));
    while (found &&
           (strcmp(entry.mnt_type, type) != 0 || (controller && !hasmntopt(&entry, controller))));
    if (found)
        path_set(out, "%s", entry.mnt_dir);
    endmntent(mounts);
    return found != NULL;
}

static void find_v1(char *out, const char *controller)
{
    path_set(out, "/sys/fs/cgroup/%s", controller);
    if (is_mounted_at(out, CGROUP_SUPER_MAGIC) || find_mount(out, "cgroup", controller))
        return;
    if (!find_mount(out, "cgroup", NULL))
        die("Hierarchy not found: No hierarchy found for this cgroup version.");
    die("Controller %s is unavailable", controller);
}

static void find_v2(char *out)
{
    path_set(out, "/sys/fs/cgroup");
    if (!is_mounted_at(out, CGROUP2_SUPER_MAGIC) && !find_mount(out, "cgroup2", NULL))
        die("Hierarchy not found: No hierarchy found for this cgroup version.");
}

/* Makes every directory of path beyond its first `exists` bytes. */
static void make_path(const char *path, size_t exists)
{
    char at[PATH_MAX];

    for (const char *end = path + exists; end;) {
        end = strchr(end + 1, '/');
        path_set(at, "%.*s", end ? (int)(end - path) : (int)strlen(path), path);
        if (mkdir(at, 0755) < 0 && errno != EEXIST)
            die_os(errno, "Failed to create directory %s", at);
    }
}

/* These files want their value in one write. */
static void write_file(const char *path, const char *value)
{
    size_t n = strlen(value);
    int fd = open(path, O_WRONLY | O_CLOEXEC);

    if (fd < 0 || write(fd, value, n) != (ssize_t)n)
        die_os(errno, "Failed to write to %s", path);
    close(fd);
}

/* The first line; false if it is empty. */
static bool read_line(const char *path, char *line)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, line, LINE_BYTES - 1);

    if (n < 0)
        die_os(errno, "Failed to read file %s into a string", path);
    close(fd);
    line[n] = '\0';
    line[strcspn(line, "\n")] = '\0';
    return line[0] != '\0';
}

/* A new cpuset is empty, and stays unusable until it says which processors and memory it has; a
 * value can only be part of what the parents have. So each level without one takes its parent's. */
static void inherit(const char *mount, const char *location, const char *file)
{
    char path[PATH_MAX], line[LINE_BYTES];
    const char *end = location + strlen(mount);

    path_set(path, "%s/%s", mount, file);
    if (!read_line(path, line))
        die("Failed to inherit cgroups configurations from file %s in path %s", file, mount);
    while (end) {
        end = strchr(end + 1, '/');
        path_set(path, "%.*s/%s", end ? (int)(end - location) : (int)strlen(location), location,
                 file);
        char own[LINE_BYTES];

        if (read_line(path, own))
            memcpy(line, own, sizeof(own));
        else
            write_file(path, line);
    }
}

static void set_v1(const struct plan *p, const struct cgroup_setting *s)
{
    char controller[64], mount[PATH_MAX], location[PATH_MAX], path[PATH_MAX];

    snprintf(controller, sizeof(controller), "%.*s", s->controller_bytes, s->file);
    find_v1(mount, controller);
    path_set(location, "%s/%s/%s", mount, p->parent_cgroup, p->args->id);
    make_path(location, strlen(mount));
    if (strcmp(controller, "cpuset") == 0) {
        inherit(mount, location, "cpuset.cpus");
        inherit(mount, location, "cpuset.mems");
    }
    path_set(path, "%s/%.*s", location, s->file_bytes, s->file);
    write_file(path, s->value);
}

/* "0" is whoever writes it. */
static void join_v1(const struct plan *p, const struct cgroup_setting *s)
{
    char controller[64], mount[PATH_MAX], path[PATH_MAX];

    snprintf(controller, sizeof(controller), "%.*s", s->controller_bytes, s->file);
    find_v1(mount, controller);
    path_set(path, "%s/%s/%s/tasks", mount, p->parent_cgroup, p->args->id);
    write_file(path, "0");
}

static bool has_word(const char *line, const char *word, size_t n)
{
    for (const char *at = line; *at; at += strspn(at, " ")) {
        size_t m = strcspn(at, " ");

        if (m == n && strncmp(at, word, n) == 0)
            return true;
        at += m;
    }
    return false;
}

/* A controller works in a cgroup when all above it hand it down. */
static void hand_down(const char *mount, const char *location, const struct cgroup_setting *s)
{
    char path[PATH_MAX], line[LINE_BYTES], enable[64];
    const char *last = strrchr(location, '/');
    const char *end = location + strlen(mount);

    path_set(path, "%s/cgroup.controllers", mount);
    read_line(path, line);
    if (!has_word(line, s->file, (size_t)s->controller_bytes))
        die("Controller %.*s is unavailable", s->controller_bytes, s->file);
    snprintf(enable, sizeof(enable), "+%.*s", s->controller_bytes, s->file);
    for (; end && end <= last; end = strchr(end + 1, '/')) {
        path_set(path, "%.*s/cgroup.subtree_control", (int)(end - location), location);
        if (!read_line(path, line) || !has_word(line, enable + 1, strlen(enable + 1)))
            write_file(path, enable);
    }
}

static int set_up_v2(const struct plan *p)
{
    const struct args *a = p->args;
    char mount[PATH_MAX], location[PATH_MAX], path[PATH_MAX];
    int fd;

    /* Without settings, a parent that exists is joined as it is. */
    if (a->cgroup_count == 0 && !a->parent_cgroup)
        return -1;
    find_v2(mount);
    path_set(location, "%s/%s", mount, p->parent_cgroup);
    if (a->cgroup_count > 0) {
        path_set(location, "%s/%s/%s", mount, p->parent_cgroup, a->id);
        make_path(location, strlen(mount));
    }
    for (int i = 0; i < a->cgroup_count; i++) {
        hand_down(mount, location, &a->cgroups[i]);
        path_set(path, "%s/%.*s", location, a->cgroups[i].file_bytes, a->cgroups[i].file);
        write_file(path, a->cgroups[i].value);
    }
    fd = open(location, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT && a->cgroup_count == 0)
        return -1;
    if (fd < 0)
        die_os(errno, "Failed to open directory %s", location);
    return fd;
}

int cgroup_set_up(const struct plan *p)
{
    const struct args *a = p->args;

    if (a->cgroup_version == 2)
        return set_up_v2(p);
    for (int i = 0; i < a->cgroup_count; i++)
        set_v1(p, &a->cgroups[i]);
    for (int i = 0; i < a->cgroup_count; i++)
        join_v1(p, &a->cgroups[i]);
    return -1;
}

void cgroup_join(int cgroup_fd)
{
    int fd = openat(cgroup_fd, "cgroup.procs", O_WRONLY | O_CLOEXEC);

    if (fd < 0 || write(fd, "0", 1) != 1)
        die_os(errno, "Failed to write to cgroup.procs");
    close(fd);
}
