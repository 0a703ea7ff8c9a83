#include "vmm/boot/image_guard.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "vmm/base/error.h"

static char path[] = "/tmp/mayfly-image-XXXXXX";
static int fd; /* of an image, for reading */

static void set_up(void)
{
    int writer = mkstemp(path);

    cr_assert_eq(write(writer, "image", 5), 5);
    close(writer);
    fd = open(path, O_RDONLY);
    cr_assert(fd >= 0);
}

static void tear_down(void)
{
    unlink(path);
}

TestSuite(image_guard, .init = set_up, .fini = tear_down);

static void need_leases(void)
{
    struct statfs fs;

    cr_assert_eq(fstatfs(fd, &fs), 0);
    if (fs.f_type != EXT4_SUPER_MAGIC && fs.f_type != TMPFS_MAGIC && fs.f_type != XFS_SUPER_MAGIC)
        cr_skip_test("/tmp is on a file system whose leases are not trusted");
}

/* What a writer gets who does not wait. */
static int writer_gets(int flags)
{
    autofd int writer = open(path, O_WRONLY | O_NONBLOCK | flags);

    return writer < 0 ? errno : 0;
}

Test(image_guard, is_a_lease_until_it_is_given_back)
{
    struct image_source s;
    sigset_t pending;

    need_leases();
    s = image_guard_take(fd);
    cr_expect_eq(s.fd, fd);
    cr_assert_eq(s.guard, IMAGE_LEASED);
    cr_expect_eq(writer_gets(0), EWOULDBLOCK);
    sigpending(&pending);
    cr_expect(sigismember(&pending, SIGIO), "who holds the lease is told, and lives");
    cr_expect_eq(writer_gets(O_TRUNC), EWOULDBLOCK);
    image_guard_give_back(fd);
    cr_expect_eq(writer_gets(0), 0);
    image_guard_give_back(fd);
    image_guard_give_back(-1);
}

Test(image_guard, is_none_where_somebody_writes_or_may)
{
    autofd int memfd = memfd_create("image", MFD_ALLOW_SEALING);
    autofd int zero = open("/dev/zero", O_RDONLY), directory = open("/tmp", O_RDONLY);

    cr_assert(open(path, O_WRONLY) >= 0);
    cr_expect_eq(image_guard_take(fd).guard, IMAGE_LOOSE);
    cr_expect_eq(image_guard_take(memfd).guard, IMAGE_LOOSE);
    cr_expect_eq(image_guard_take(zero).guard, IMAGE_LOOSE);
    cr_expect_eq(image_guard_take(directory).guard, IMAGE_LOOSE);
    cr_expect_eq(image_guard_take(-1).guard, IMAGE_LOOSE);
}

Test(image_guard, is_none_of_another_users_file)
{
    if (getuid() != 0)
        cr_skip_test("needs root, to become another user");
    cr_assert_eq(chmod(path, 0644), 0);
    cr_assert_eq(setresuid(12345, 12345, 12345), 0);
    cr_expect_eq(image_guard_take(fd).guard, IMAGE_LOOSE);
}

Test(image_guard, needs_no_lease_of_a_memfd_that_is_sealed_against_writing_and_shrinking)
{
    static const struct {
        int seals;
        enum image_guard guard;
    } cases[] = {
        { F_SEAL_WRITE | F_SEAL_SHRINK, IMAGE_FIXED },
        { F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL, IMAGE_FIXED },
        { F_SEAL_WRITE | F_SEAL_GROW, IMAGE_LOOSE },
        { F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL, IMAGE_LOOSE },
        { F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK, IMAGE_LOOSE }, /* an older mapping may write */
    };

    for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        autofd int memfd = memfd_create("image", MFD_ALLOW_SEALING);

        cr_assert_eq(ftruncate(memfd, 4096), 0);
        cr_assert_eq(fcntl(memfd, F_ADD_SEALS, cases[i].seals), 0);
        cr_expect_eq(image_guard_take(memfd).guard, cases[i].guard, "case %u", i);
    }
}

static bool set_immutable(bool on)
{
    long flags;

    if (ioctl(fd, FS_IOC_GETFLAGS, &flags) < 0)
        return false;
    flags = on ? flags | FS_IMMUTABLE_FL : flags & ~FS_IMMUTABLE_FL;
    return ioctl(fd, FS_IOC_SETFLAGS, &flags) == 0;
}

Test(image_guard, needs_no_lease_of_an_immutable_file)
{
    enum image_guard found;

    if (!set_immutable(true))
        cr_skip_test("files can't be made immutable here");
    found = image_guard_take(fd).guard;
    cr_assert(set_immutable(false));
    cr_expect_eq(found, IMAGE_FIXED);
    cr_expect_eq(writer_gets(0), 0, "there is no lease");
}
