#include "jailer/cgroup_tree.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <mntent.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "jailer/die.h"

#define LINE_BYTES 4096

bool cgroup_find_mount(char *out, const char *mounts, const char *type, const char *controller)
{
    FILE *list = setmntent(mounts, "re");
    struct mntent entry, *found;
    char text[LINE_BYTES];

    if (!list)
        die_os(errno, "Failed to open file %s", mounts);
    do
        found = getmntent_r(list, &entry, text, sizeof(text));
    while (found &&
           (strcmp(entry.mnt_type, type) != 0 || (controller && !hasmntopt(&entry, controller))));
    if (found)
        path_set(out, "%s", entry.mnt_dir);
    endmntent(list);
    return found != NULL;
}

void cgroup_make(const char *mount, const char *location)
{
    char at[PATH_MAX];

    for (const char *end = location + strlen(mount); end;) {
        end = strchr(end + 1, '/');
        path_set(at, "%.*s", end ? (int)(end - location) : (int)strlen(location), location);
        if (mkdir(at, 0755) < 0 && errno != EEXIST)
            die_os(errno, "Failed to create directory %s", at);
    }
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
void cgroup_inherit(const char *mount, const char *location, const char *file)
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
            write_once(path, line);
    }
}

static bool has_word(const char *line, const char *word)
{
    size_t n = strlen(word);

    for (const char *at = line; *at; at += strspn(at, " ")) {
        size_t m = strcspn(at, " ");

        if (m == n && strncmp(at, word, n) == 0)
            return true;
        at += m;
    }
    return false;
}

static void enable(const char *path, const char *controller)
{
    char line[LINE_BYTES], change[80];
    int ret;

    if (read_line(path, line) && has_word(line, controller))
        return;
    snprintf(change, sizeof(change), "+%s", controller);
    ret = try_to_write(path, change);
    if (ret < 0)
        die_hint(-ret,
                 ret == -EBUSY ? "a cgroup that has processes of its own can't hand controllers "
                                 "down: move them to a child of it"
                               : NULL,
                 "Failed to write to %s", path);
}

void cgroup_hand_down(const char *mount, const char *location, const char *controller)
{
    char path[PATH_MAX], line[LINE_BYTES];
    const char *last = strrchr(location, '/');
    const char *end = location + strlen(mount);

    path_set(path, "%s/cgroup.controllers", mount);
    read_line(path, line);
    if (!has_word(line, controller))
        die("Controller %s is unavailable", controller);
    /* It works in a cgroup when all above hand it down. */
    for (; end && end <= last; end = strchr(end + 1, '/')) {
        path_set(path, "%.*s/cgroup.subtree_control", (int)(end - location), location);
        enable(path, controller);
    }
}
