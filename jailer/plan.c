#include "jailer/plan.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "jailer/die.h"

static void resolve(char *out, const char *path)
{
    if (!realpath(path, out))
        die_os(errno, "Failed to canonicalize path %s", path);
}

static mode_t type_of(const char *path)
{
    struct stat st;

    if (stat(path, &st) < 0)
        die_os(errno, "Failed to canonicalize path %s", path);
    return st.st_mode & S_IFMT;
}

void plan_make(struct plan *p, const struct args *args)
{
    char base[PATH_MAX];

    *p = (struct plan){ .args = args };
    resolve(p->exec_path, args->exec_file);
    if (type_of(p->exec_path) != S_IFREG)
        die("%s is not a file", p->exec_path);
    p->exec_name = strrchr(p->exec_path, '/') + 1;
    resolve(base, args->chroot_base_dir);
    if (type_of(base) != S_IFDIR)
        die("%s is not a directory", base);
    path_set(p->root, "%s/%s/%s/root", strcmp(base, "/") == 0 ? "" : base, p->exec_name, args->id);
    p->root_at = strcmp(base, "/") == 0 ? 0 : (int)strlen(base);
    p->parent_cgroup = args->parent_cgroup ? args->parent_cgroup : p->exec_name;
}
