#include "vmm/seccomp/landlock.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* As the header of Linux 6.12 has them; an older kernel takes the first members only. */
struct ruleset {
    uint64_t handled_access_fs, handled_access_net, scoped;
};
#define SCOPE_ABSTRACT_UNIX_SOCKET 1u
#define SCOPE_SIGNAL               2u

#define ALLOWED                                                                                    \
    (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_READ_DIR |  \
     LANDLOCK_ACCESS_FS_REMOVE_FILE | LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_MAKE_SOCK)
#define DENIED                                                                                     \
    (LANDLOCK_ACCESS_FS_REMOVE_DIR | LANDLOCK_ACCESS_FS_MAKE_CHAR | LANDLOCK_ACCESS_FS_MAKE_DIR |  \
     LANDLOCK_ACCESS_FS_MAKE_FIFO | LANDLOCK_ACCESS_FS_MAKE_BLOCK | LANDLOCK_ACCESS_FS_MAKE_SYM)

/* A descriptor, or -errno; -ENOSYS where there is no such wall: the kernel is too old, was built or
 * started without, or whoever started us doesn't let us have it. */
static int make_ruleset(const struct ruleset *r, size_t bytes)
{
    int fd = (int)syscall(SYS_landlock_create_ruleset, r, bytes, 0);

    if (fd >= 0)
        return fd;
    return errno == EOPNOTSUPP || errno == E2BIG || errno == EPERM ? -ENOSYS : -errno;
}

static int restrict_self(int ruleset)
{
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
        syscall(SYS_landlock_restrict_self, ruleset, 0) < 0)
        return -errno;
    return 0;
}

int landlock_abi(void)
{
    int abi = (int)syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);

    return abi < 0 ? 0 : abi;
}

int landlock_scope(void)
{
    const struct ruleset r = { .scoped = SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL };
    autofd int ruleset = make_ruleset(&r, sizeof(r));

    if (ruleset < 0)
        return ruleset == -ENOSYS ? 0 : ruleset;
    return restrict_self(ruleset);
}

int landlock_files(void)
{
    const struct ruleset r = { .handled_access_fs = ALLOWED | DENIED };
    autofd int ruleset = make_ruleset(&r, sizeof(r.handled_access_fs));
    autofd int root = -1;
    struct landlock_path_beneath_attr rule = { .allowed_access = ALLOWED };

    if (ruleset < 0)
        return ruleset == -ENOSYS ? 0 : ruleset;
    root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0)
        return -errno;
    rule.parent_fd = root;
    if (syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) < 0)
        return -errno;
    return restrict_self(ruleset);
}
