#include "vmm/boot/image_guard.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "vmm/kvm/guest_mem.h"

static long file_system_of(int fd)
{
    struct statfs fs;

    return fstatfs(fd, &fs) == 0 ? (long)fs.f_type : 0;
}

static bool is_sealed(int fd)
{
    const int needed = F_SEAL_WRITE | F_SEAL_SHRINK;
    int seals = fcntl(fd, F_GET_SEALS);

    return seals >= 0 && (seals & needed) == needed;
}

static bool is_unchangeable(int fd, long file_system)
{
    struct statx st;

    switch (file_system) {
    case CRAMFS_MAGIC:
    case EROFS_SUPER_MAGIC_V1:
    case ISOFS_SUPER_MAGIC:
    case SQUASHFS_MAGIC: return true;
    case TMPFS_MAGIC: return is_sealed(fd);
    default: break;
    }
    return statx(fd, "", AT_EMPTY_PATH, 0, &st) == 0 &&
           st.stx_attributes & (STATX_ATTR_IMMUTABLE | STATX_ATTR_VERITY);
}

/* Not of a network, nor of an overlay, whose lower file has other ways to it. */
static bool is_local(long file_system)
{
    switch (file_system) {
    case BTRFS_SUPER_MAGIC:
    case EXT4_SUPER_MAGIC:
    case F2FS_SUPER_MAGIC:
    case RAMFS_MAGIC:
    case TMPFS_MAGIC:
    case XFS_SUPER_MAGIC: return true;
    default: return false;
    }
}

static bool has_name(int fd)
{
    struct stat st;

    return fstat(fd, &st) == 0 && st.st_nlink > 0;
}

static bool take_lease(int fd)
{
    sigset_t lease;

    sigemptyset(&lease);
    sigaddset(&lease, SIGIO);
    sigprocmask(SIG_BLOCK, &lease, NULL); /* it would end the process */
    return fcntl(fd, F_SETLEASE, F_RDLCK) == 0;
}

struct image_source image_guard_take(int fd)
{
    long file_system = file_system_of(fd);
    struct image_source s = { .fd = fd, .guard = IMAGE_LOOSE };

    if (is_unchangeable(fd, file_system))
        s.guard = IMAGE_FIXED;
    else if (is_local(file_system) && has_name(fd) && take_lease(fd))
        s.guard = IMAGE_LEASED;
    s.bytes = gmem_file_bytes(fd);
    return s;
}

void image_guard_give_back(int fd)
{
    fcntl(fd, F_SETLEASE, F_UNLCK);
}
