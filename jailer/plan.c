#include "jailer/plan.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "jailer/die.h"
#include "jailer/program.h"

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

unsigned long plan_mount_flags(const char *path)
{
    char at[PATH_MAX];
    struct statvfs fs;

    path_set(at, "%s", path);
    while (statvfs(at, &fs) < 0) {
        char *slash = strrchr(at, '/');

        if (!slash || slash == at)
            return statvfs("/", &fs) < 0 ? 0 : fs.f_flag;
        *slash = '\0';
    }
    return fs.f_flag;
}

/* A cell on a mount without device nodes, or without programs, would be found out late, and in
 * words about something else. A bind mount brings the flags of where it is from. */
static void check_mounts(const struct plan *p)
{
    const char *program = p->args->exec_method == EXEC_BIND ? p->exec_path : p->root;

    if (plan_mount_flags(p->root) & ST_NODEV && !p->args->new_user_ns)
        die("%s is on a file system that is mounted nodev: /dev/kvm could not be opened there",
            p->root);
    if (plan_mount_flags(program) & ST_NOEXEC)
        die("%s is on a file system that is mounted noexec: the VMM could not be executed there",
            program);
}

/* What the caller has put into the cell may be all that the program needs. */
static void check_program(const struct plan *p)
{
    char needed[PATH_MAX], inside[PATH_MAX];

    if (!program_interpreter(needed, p->exec_path))
        return;
    path_set(inside, "%s/%s", p->root, needed);
    if (access(inside, F_OK) < 0)
        die("%s is a script or dynamically linked: it needs %s, which is not in the jail",
            p->exec_path, needed);
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
    check_mounts(p);
    check_program(p);
}
