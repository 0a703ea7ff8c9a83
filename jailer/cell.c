#include "jailer/cell.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "jailer/die.h"

#define MISC_MAJOR    10
#define MEM_MAJOR     1
#define TUN_MINOR     200
#define KVM_MINOR     232
#define URANDOM_MINOR 9

/* Opens one name of the cell. Whoever had the root before may have put a link in the place of
 * anything: none is followed, and the descriptor is what is changed then, so that there is nothing
 * to win by being quick. */
static int open_inside(int at, const char *name, uint64_t flags, uint64_t mode)
{
    const struct open_how how = {
        .flags = flags | O_CLOEXEC,
        .mode = mode,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS,
    };

    return (int)syscall(SYS_openat2, at, name, &how, sizeof(how));
}

/* The directories above the root belong to whoever runs the jailer; only the root itself will be
 * the VMM's, so that it can't put anything in the place of a directory on the way to it. */
static void make_directories(const struct plan *p)
{
    char path[PATH_MAX];

    for (const char *at = p->root + p->root_at; at; at = strchr(at + 1, '/')) {
        const char *end = strchr(at + 1, '/');

        path_set(path, "%.*s", end ? (int)(end - p->root) : (int)strlen(p->root), p->root);
        if (mkdir(path, 0755) < 0 && errno != EEXIST)
            die_os(errno, "Failed to create directory %s", path);
    }
}

static void open_root(struct cell *c, const struct plan *p)
{
    char pid_file[PATH_MAX];

    make_directories(p);
    c->root_fd = open(p->root, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (c->root_fd < 0)
        die_os(errno, "Failed to open directory %s", p->root);
    if (flock(c->root_fd, LOCK_EX | LOCK_NB) < 0)
        die_os(errno, "Another jailer is at work in %s", p->root);
    path_set(pid_file, "%s.pid", p->exec_name);
    c->is_reused = faccessat(c->root_fd, pid_file, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

static void copy_bytes(const struct plan *p, int from, int to, size_t bytes)
{
    while (bytes > 0) {
        ssize_t n = copy_file_range(from, NULL, to, NULL, bytes, 0);

        /* Not between all file systems. */
        if (n < 0 && (errno == EXDEV || errno == EINVAL || errno == EOPNOTSUPP))
            n = syscall(SYS_sendfile, to, from, NULL, bytes);
        if (n <= 0)
            die_os(n < 0 ? errno : EIO, "Failed to copy %s to %s/%s", p->exec_path, p->root,
                   p->exec_name);
        bytes -= (size_t)n;
    }
}

/* Over what an earlier jail left, but never through a link of any kind. */
static void copy_exec(const struct cell *c, const struct plan *p)
{
    int from = open(p->exec_path, O_RDONLY | O_CLOEXEC), to;
    struct stat source, target;

    if (from < 0 || fstat(from, &source) < 0)
        die_os(errno, "Failed to open %s", p->exec_path);
    to = open_inside(c->root_fd, p->exec_name, O_WRONLY | O_CREAT | O_NONBLOCK, 0700);
    if (to < 0 || fstat(to, &target) < 0)
        die_os(errno, "Failed to open %s/%s", p->root, p->exec_name);
    if (!S_ISREG(target.st_mode))
        die("%s/%s is not a file", p->root, p->exec_name);
    if (target.st_nlink > 1)
        die("Detected hard link at: %s/%s", p->root, p->exec_name);
    if (ftruncate(to, 0) < 0)
        die_os(errno, "Failed to write to %s/%s", p->root, p->exec_name);
    copy_bytes(p, from, to, (size_t)source.st_size);
    if (fchown(to, p->args->uid, p->args->gid) < 0)
        die_os(errno, "Failed to change owner for %s/%s", p->root, p->exec_name);
    if (fchmod(to, source.st_mode & 0777) < 0)
        die_os(errno, "Failed to change permissions on %s/%s", p->root, p->exec_name);
    close(from);
    close(to);
}

/* The owner stays, or the VMM could write to every other one's binary. */
static void link_exec(const struct cell *c, const struct plan *p)
{
    unlinkat(c->root_fd, p->exec_name, 0);
    if (linkat(AT_FDCWD, p->exec_path, c->root_fd, p->exec_name, 0) < 0)
        die_os(errno, "Failed to link %s to %s/%s", p->exec_path, p->root, p->exec_name);
}

void cell_make(struct cell *c, const struct plan *p)
{
    *c = (struct cell){ -1, -1, -1, -1, -1, -1, -1, .uffd_minor = -1 };
    open_root(c, p);
    switch (p->args->exec_method) {
    case EXEC_COPY: copy_exec(c, p); break;
    case EXEC_LINK: link_exec(c, p); break;
    case EXEC_BIND: break; /* from inside: cell_furnish() */
    }
}

/* The minor number that the kernel gave /dev/userfaultfd. */
static int find_uffd_minor(void)
{
    char text[4096] = "\n"; /* so that each line begins with a line feed */
    int fd = open("/proc/misc", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text + 1, sizeof(text) - 2);
    char *name;

    close(fd);
    if (n <= 0)
        return -1;
    name = strstr(text, " userfaultfd\n");
    if (!name)
        return -1;
    while (*name != '\n')
        name--;
    return (int)strtol(name, NULL, 10); /* past the line feed and blanks */
}

/* A mount of one file, to be put where it belongs later; -1 if the host has no such file. */
static int detach_mount(const char *path, uint64_t attributes)
{
    struct mount_attr attr = { .attr_set = attributes };
    int fd = open_tree(AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);

    if (fd < 0 && errno == ENOENT)
        return -1;
    if (fd < 0)
        die_os(errno, "Failed to bind mount %s", path);
    if (mount_setattr(fd, "", AT_EMPTY_PATH, &attr, sizeof(attr)) < 0)
        die_os(errno, "Failed to change the mount of %s", path);
    return fd;
}

static void fetch(struct cell *c, const struct plan *p)
{
    if (p->args->exec_method == EXEC_BIND)
        c->exec_fd =
            detach_mount(p->exec_path, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
    if (!p->args->new_user_ns) {
        c->uffd_minor = find_uffd_minor();
        return;
    }
    /* Device nodes can't be made without privileges over the host: its own are lent. */
    c->kvm_fd = detach_mount("/dev/kvm", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);
    c->tun_fd = detach_mount("/dev/net/tun", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);
    c->urandom_fd = detach_mount("/dev/urandom", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);
    c->uffd_fd = detach_mount("/dev/userfaultfd", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);
}

/* An initramfs is mounted on nothing, and what is mounted on nothing can't be pivoted away: a copy
 * of the tree on top of it can. The initramfs stays below, where no path leads. */
static void raise_root(void)
{
    int tree = open_tree(AT_FDCWD, "/", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);

    if (tree < 0 || move_mount(tree, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH) < 0 ||
        fchdir(tree) < 0 || chroot(".") < 0)
        die_os(errno, "Failed to put a mount over the initramfs");
    close(tree);
}

/* The old root comes to lie on top of the new one (pivot_root(2)), so that no directory has to be
 * made for it. */
static bool pivot_to(const char *root)
{
    if (chdir(root) < 0)
        die_os(errno, "Failed to change current directory");
    return syscall(SYS_pivot_root, ".", ".") == 0;
}

static void leave_host_tree(const struct plan *p)
{
    bool is_done = pivot_to(p->root);

    if (!is_done && errno == EINVAL) {
        raise_root();
        is_done = pivot_to(p->root);
    }
    if (!is_done)
        die_os(errno, "Failed to pivot root");
    if (umount2(".", MNT_DETACH) < 0)
        die_os(errno, "Failed to unmount the old jail root");
    if (chdir("/") < 0)
        die_os(errno, "Failed to chdir into chroot directory");
}

void cell_enter(struct cell *c, const struct plan *p)
{
    const struct args *a = p->args;
    int flags =
        CLONE_NEWNS | (a->new_ipc_ns ? CLONE_NEWIPC : 0) | (a->new_uts_ns ? CLONE_NEWUTS : 0);

    if (unshare(flags) < 0)
        die_os(errno, "Failed to unshare into new mount namespace");
    if (mount(NULL, "/", NULL, MS_SLAVE | MS_REC, NULL) < 0)
        die_hint(errno,
                 errno == EINVAL ? "/ is not a mount: this is a chroot, where no jail can be"
                                 : NULL,
                 "Failed to change the propagation type to slave");
    if (mount(p->root, p->root, NULL, MS_BIND | MS_REC, NULL) < 0)
        die_os(errno, "Failed to bind mount the jail root directory");
    fetch(c, p);
    leave_host_tree(p);
}

/* Gives a directory or file of the cell to the VMM's user. */
static void own(const struct plan *p, int fd, const char *path)
{
    if (fchownat(fd, "", p->args->uid, p->args->gid, AT_EMPTY_PATH) < 0)
        die_os(errno, "Failed to change owner for %s", path);
}

/* Returns the directory. `at` is the one above it. */
static int make_directory(const struct plan *p, int at, const char *path)
{
    const char *name = at < 0 ? "." : basename(path);
    int fd;

    if (at >= 0 && mkdirat(at, name, 0700) < 0 && errno != EEXIST)
        die_os(errno, "Failed to create directory %s", path);
    fd = open_inside(at < 0 ? AT_FDCWD : at, name, O_RDONLY | O_DIRECTORY, 0);
    if (fd < 0)
        die_os(errno, "Failed to open directory %s inside the jail", path);
    if (fchmod(fd, 0700) < 0)
        die_os(errno, "Failed to change permissions on %s", path);
    own(p, fd, path);
    return fd;
}

/* Lays a mount over a file, which is made for it. */
static void put_mount(int mount_fd, int at, const char *path)
{
    int fd;

    if (mknodat(at, basename(path), S_IFREG | 0400, 0) < 0 && errno != EEXIST)
        die_os(errno, "Failed to create %s inside the jail", path);
    fd = open_inside(at, basename(path), O_PATH, 0);
    if (fd < 0)
        die_os(errno, "Failed to open %s inside the jail", path);
    if (move_mount(mount_fd, "", fd, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0)
        die_os(errno, "Failed to bind mount %s inside the jail", path);
    close(fd);
    close(mount_fd);
}

struct device {
    const char *path;
    unsigned major;
    int minor;   /* -1: the host has none */
    int lent_fd; /* the host's own node, where we may make none; else -1 */
};

/* Only what was made here changes hands: its directory is the VMM's user's already. */
static void make_node(const struct plan *p, int at, const struct device *d)
{
    const dev_t number = makedev(d->major, (unsigned)d->minor);
    struct stat st;
    int fd;

    if (mknodat(at, basename(d->path), S_IFCHR | 0600, number) < 0)
        die_os(errno, "Failed to create %s via mknod inside the jail", d->path);
    fd = open_inside(at, basename(d->path), O_PATH, 0);
    if (fd < 0 || fstat(fd, &st) < 0)
        die_os(errno, "Failed to open %s inside the jail", d->path);
    if (!S_ISCHR(st.st_mode) || st.st_rdev != number)
        die("%s was put in the place of the device inside the jail", d->path);
    own(p, fd, d->path);
    close(fd);
}

static void put_device(const struct cell *c, const struct plan *p, int at, const struct device *d)
{
    if (d->lent_fd >= 0)
        put_mount(d->lent_fd, at, d->path);
    if (p->args->new_user_ns || d->minor < 0)
        return;
    if (!c->is_reused) /* left by a jailer that did not come to its end */
        unlinkat(at, basename(d->path), 0);
    make_node(p, at, d);
}

void cell_furnish(struct cell *c, const struct plan *p)
{
    const mode_t callers = umask(0);
    const struct device in_dev[] = {
        { "/dev/kvm", MISC_MAJOR, KVM_MINOR, c->kvm_fd },
        { "/dev/urandom", MEM_MAJOR, URANDOM_MINOR, c->urandom_fd },
        { "/dev/userfaultfd", MISC_MAJOR, c->uffd_minor, c->uffd_fd },
    };
    const struct device tun = { "/dev/net/tun", MISC_MAJOR, TUN_MINOR, c->tun_fd };
    int root = make_directory(p, -1, "/");
    int dev = make_directory(p, root, "/dev");
    int net = make_directory(p, dev, "/dev/net");
    char path[PATH_MAX];

    c->run_fd = make_directory(p, root, "/run");
    put_device(c, p, net, &tun);
    for (size_t i = 0; i < sizeof(in_dev) / sizeof(*in_dev); i++)
        put_device(c, p, dev, &in_dev[i]);
    if (c->exec_fd >= 0) {
        path_set(path, "/%s", p->exec_name);
        put_mount(c->exec_fd, root, path);
    }
    umask(callers);
    close(net);
    close(dev);
    close(root);
}

void cell_seal(const struct cell *c, const struct plan *p)
{
    struct mount_attr attr = { .attr_set = MOUNT_ATTR_RDONLY };
    int run;

    if (!p->args->read_only_root)
        return;
    run = open_tree(c->run_fd, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
    if (run < 0 ||
        move_mount(run, "", c->run_fd, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0)
        die_os(errno, "Failed to bind mount /run");
    if (mount_setattr(AT_FDCWD, "/", 0, &attr, sizeof(attr)) < 0)
        die_os(errno, "Failed to make the root read-only");
}
