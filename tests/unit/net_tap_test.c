#include "virtio/net_tap.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <criterion/criterion.h>

#define BIT(feature) (UINT64_C(1) << (feature))

static struct net_tap tap, other;
static struct error e;

static void own_namespace(void)
{
    if (unshare(CLONE_NEWNET) < 0)
        cr_skip_test("NO TAP WAS OPENED: a network namespace takes root");
    tap.fd = other.fd = -1;
}

static void tear_down(void)
{
    net_tap_close(&tap);
    net_tap_close(&other);
}

TestSuite(net_tap, .init = own_namespace, .fini = tear_down);

/* Whether the namespace has an interface of that name. */
static bool exists(const char *name)
{
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    struct ifreq r = { 0 };
    bool found;

    strcpy(r.ifr_name, name);
    found = ioctl(s, SIOCGIFINDEX, &r) == 0;
    close(s);
    return found;
}

/* As `ip tuntap add` makes it. */
static void make_persistent(const char *name, int flags)
{
    int fd = open("/dev/net/tun", O_RDWR);
    struct ifreq r = { .ifr_flags = (short)flags };

    strcpy(r.ifr_name, name);
    cr_assert_eq(ioctl(fd, TUNSETIFF, &r), 0);
    cr_assert_eq(ioctl(fd, TUNSETPERSIST, 1), 0);
    close(fd);
}

static void expect_flags_and_header(const struct net_tap *t, int flags)
{
    struct ifreq r = { 0 };
    int bytes = 0;

    cr_assert_eq(ioctl(t->fd, TUNGETIFF, &r), 0);
    cr_expect_eq(r.ifr_flags & (IFF_TAP | IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE),
                 flags);
    cr_expect_eq(ioctl(t->fd, TUNGETVNETHDRSZ, &bytes), 0);
    cr_expect_eq(bytes, 12);
    cr_expect(fcntl(t->fd, F_GETFL) & O_NONBLOCK);
    cr_expect(fcntl(t->fd, F_GETFD) & FD_CLOEXEC);
}

static void expect_refused(const char *name, const char *message)
{
    cr_assert_eq(net_tap_open(&other, name, &e), -1);
    cr_expect_str_eq(e.msg, message);
    cr_expect_eq(other.fd, -1, "a failure leaves nothing open");
}

#define NOT_TAKEN(why, name)                                                                       \
    "Open tap device failed: Error while creating ifreq structure: " why                           \
    ". Invalid TUN/TAP Backend provided by " name                                                  \
    ". Check our documentation on setting up the network devices."

Test(net_tap, makes_one_that_is_absent_and_takes_it_along)
{
    cr_assert_eq(net_tap_open(&tap, "tap7", &e), 0, "%s", e.msg);
    cr_expect_str_eq(tap.name, "tap7");
    cr_expect(exists("tap7"));
    expect_flags_and_header(&tap, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR);
    net_tap_close(&tap);
    cr_expect_eq(tap.fd, -1);
    cr_expect_not(exists("tap7"));
}

Test(net_tap, lets_the_kernel_choose_a_name)
{
    cr_assert_eq(net_tap_open(&tap, "", &e), 0, "%s", e.msg);
    cr_assert_eq(net_tap_open(&other, "", &e), 0, "%s", e.msg);
    cr_expect(exists(tap.name));
    cr_expect_str_neq(tap.name, other.name);
}

Test(net_tap, numbers_names_as_the_kernel_does)
{
    cr_assert_eq(net_tap_open(&tap, "vm%d", &e), 0, "%s", e.msg);
    cr_expect_str_eq(tap.name, "vm0");
}

Test(net_tap, attaches_to_a_persistent_one_and_leaves_it_there)
{
    make_persistent("stays", IFF_TAP | IFF_NO_PI);
    for (unsigned i = 0; i < 3; i++) {
        cr_assert_eq(net_tap_open(&tap, "stays", &e), 0, "%s", e.msg);
        expect_flags_and_header(&tap, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR);
        net_tap_close(&tap);
        cr_expect(exists("stays"));
    }
}

Test(net_tap, attaches_to_one_of_several_queues_more_than_once)
{
    make_persistent("many", IFF_TAP | IFF_NO_PI | IFF_MULTI_QUEUE | IFF_VNET_HDR);
    cr_assert_eq(net_tap_open(&tap, "many", &e), 0, "%s", e.msg);
    expect_flags_and_header(&tap, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE);
    cr_assert_eq(net_tap_open(&other, "many", &e), 0, "%s", e.msg);
}

Test(net_tap, refuses_one_that_is_busy)
{
    cr_assert_eq(net_tap_open(&tap, "tap7", &e), 0, "%s", e.msg);
    expect_refused("tap7", NOT_TAKEN("Resource busy (os error 16)", "tap7"));
    cr_expect_eq(e.kind, ERR_HOST);
}

Test(net_tap, refuses_what_is_no_tap)
{
    expect_refused("lo", NOT_TAKEN("Invalid argument (os error 22)", "lo"));
    make_persistent("tun7", IFF_TUN | IFF_NO_PI);
    expect_refused("tun7", NOT_TAKEN("Invalid argument (os error 22)", "tun7"));
}

Test(net_tap, refuses_names_that_no_interface_can_have)
{
    expect_refused("a/b", NOT_TAKEN("Invalid argument (os error 22)", "a/b"));
    expect_refused("..", NOT_TAKEN("Invalid argument (os error 22)", ".."));
    expect_refused("a b", NOT_TAKEN("Invalid argument (os error 22)", "a b"));
}

Test(net_tap, takes_the_longest_name_and_refuses_a_longer_one)
{
    static char endless[5000];

    cr_assert_eq(net_tap_open(&tap, "fifteen_letters", &e), 0, "%s", e.msg);
    cr_expect_str_eq(tap.name, "fifteen_letters");
    expect_refused("sixteen__letters",
                   "Open tap device failed: Invalid network interface name: sixteen__letters: "
                   "longer than 15 bytes");
    cr_expect_eq(e.kind, ERR_INVALID);
    memset(endless, 'x', sizeof(endless) - 1);
    cr_expect_eq(net_tap_open(&other, endless, &e), -1);
}

Test(net_tap, refuses_one_it_may_not_make)
{
    struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];

    /* Another user may not even get that far: on some hosts /dev/net/tun is root's alone. */
    cr_assert_eq(syscall(SYS_capget, &header, data), 0);
    data[CAP_TO_INDEX(CAP_NET_ADMIN)].effective &= ~CAP_TO_MASK(CAP_NET_ADMIN);
    cr_assert_eq(syscall(SYS_capset, &header, data), 0);
    expect_refused("tap7", NOT_TAKEN("Operation not permitted (os error 1)", "tap7"));
}

/* What a guest may accept. The first one is what the others need. */
Test(net_tap, takes_the_offloads_of_any_guest)
{
    static const unsigned features[] = { VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
                                         VIRTIO_NET_F_GUEST_UFO, 54, 55 };

    cr_assert_eq(net_tap_open(&tap, "", &e), 0, "%s", e.msg);
    for (unsigned i = 0; i < 32; i++) {
        uint64_t taken = BIT(VIRTIO_NET_F_GUEST_CSUM) | BIT(VIRTIO_NET_F_MRG_RXBUF);

        for (unsigned k = 0; k < 5; k++)
            if (i & 1u << k && (features[k] < 54 || tap.has_uso))
                taken |= BIT(features[k]);
        cr_expect_eq(net_tap_offload(&tap, taken), 0, "features 0x%lx", taken);
    }
    cr_expect_eq(net_tap_offload(&tap, 0), 0);
    cr_expect_eq(net_tap_offload(&tap, BIT(VIRTIO_NET_F_GUEST_TSO4)), -EINVAL);
}
