#include "virtio/net_tap.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

/* Newer than the headers of Linux 6.1. */
#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif
#define USO ((unsigned)(TUN_F_USO4 | TUN_F_USO6))

#define MACVTAP_PATH "/dev/tap"
#define TAP_FLAGS    (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)

static int set_interface(int fd, const char *name, int flags, struct ifreq *r)
{
    *r = (struct ifreq){ .ifr_flags = (short)flags };
    memcpy(r->ifr_name, name, strlen(name) + 1);
    return ioctl(fd, TUNSETIFF, r);
}

/* An interface that was made for several queues wants to hear that from whoever attaches. */
static int attach(int fd, const char *name, struct ifreq *r)
{
    if (set_interface(fd, name, TAP_FLAGS, r) == 0)
        return 0;
    if (errno != EINVAL)
        return -1;
    return set_interface(fd, name, TAP_FLAGS | IFF_MULTI_QUEUE, r);
}

static int open_chardev(const char *path)
{
    return open(path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
}

static bool is_macvtap_path(const char *name)
{
    const size_t prefix = sizeof(MACVTAP_PATH) - 1;

    return strncmp(name, MACVTAP_PATH, prefix) == 0 && name[prefix] &&
           strspn(name + prefix, "0123456789") == strlen(name + prefix);
}

/* Opens the device of the macvtap of that name, if that is what it is. The device is found by a
 * number that each network namespace gives anew, and its name and number may be those of another
 * one's macvtap: that has another address. -1 with errno. */
static int open_macvtap(const char *name, char path[static IFNAMSIZ])
{
    autofd int s = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    autofd int fd = -1;
    struct ifreq number = { 0 }, address, opened;

    memcpy(number.ifr_name, name, strlen(name) + 1);
    address = number;
    if (s < 0 || ioctl(s, SIOCGIFINDEX, &number) < 0 || ioctl(s, SIOCGIFHWADDR, &address) < 0)
        return -1;
    if (snprintf(path, IFNAMSIZ, MACVTAP_PATH "%d", number.ifr_ifindex) >= IFNAMSIZ)
        return errno = ENOENT, -1;
    fd = open_chardev(path);
    if (fd < 0 || ioctl(fd, SIOCGIFHWADDR, &opened) < 0)
        return -1;
    if (memcmp(&address.ifr_hwaddr, &opened.ifr_hwaddr, sizeof(address.ifr_hwaddr)) != 0)
        return errno = ENODEV, -1;
    return take_fd(&fd);
}

static int refuse_tap(struct error *e, int os_errno, const char *name)
{
    return fail(e, ERR_HOST,
                "Open tap device failed: Error while creating ifreq structure: %s (os error "
                "%d). Invalid TUN/TAP Backend provided by %s. Check our documentation on "
                "setting up the network devices.",
                os_error_text(os_errno), os_errno, name);
}

/* The kernel says EINVAL for an interface of another kind, a macvtap among them. */
static int open_by_name(const char *name, struct ifreq *r, struct error *e)
{
    autofd int fd = open_chardev("/dev/net/tun");
    char path[IFNAMSIZ] = "";
    int why;

    if (fd < 0)
        return fail_os(e, errno, "Open tap device failed: Couldn't open /dev/net/tun");
    if (attach(fd, name, r) == 0)
        return take_fd(&fd);
    why = errno;
    close_fdp(&fd);
    fd = why == EINVAL ? open_macvtap(name, path) : -1;
    if (fd >= 0)
        return take_fd(&fd);
    if (why == EINVAL && (errno == EACCES || errno == EPERM || errno == EBUSY))
        return fail_path(e, errno, path, "Open tap device failed: Couldn't open the macvtap");
    return refuse_tap(e, why, name);
}

/* On a macvtap, the name in the request counts for nothing. */
static int open_macvtap_path(const char *path, struct ifreq *r, struct error *e)
{
    autofd int fd = open_chardev(path);

    if (fd < 0)
        return fail_path(e, errno, path, "Open tap device failed: Couldn't open the macvtap");
    if (set_interface(fd, path, TAP_FLAGS, r) < 0)
        return refuse_tap(e, errno, path);
    return take_fd(&fd);
}

int net_tap_open(struct net_tap *t, const char *name, struct error *e)
{
    autofd int fd = -1;
    int header_bytes = NET_HEADER_BYTES;
    struct ifreq r;

    if (strlen(name) >= IFNAMSIZ)
        return fail(e, ERR_INVALID,
                    "Open tap device failed: Invalid network interface name: %.64s: longer than "
                    "%d bytes",
                    name, IFNAMSIZ - 1);
    fd = is_macvtap_path(name) ? open_macvtap_path(name, &r, e) : open_by_name(name, &r, e);
    if (fd < 0)
        return -1;
    if (ioctl(fd, TUNSETVNETHDRSZ, &header_bytes) < 0)
        return fail_path(e, errno, name,
                         "Open tap device failed: Error while setting size of the vnet header");
    *t = (struct net_tap){ .fd = -1 };
    memcpy(t->name, r.ifr_name, sizeof(t->name));
    t->has_uso = ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | USO) == 0;
    if (ioctl(fd, TUNSETOFFLOAD, 0) < 0)
        return fail_path(e, errno, name,
                         "Open tap device failed: Error while setting the offload flags");
    t->fd = take_fd(&fd);
    return 0;
}

void net_tap_close(struct net_tap *t)
{
    close_fdp(&t->fd);
    t->fd = -1;
}

int net_tap_offload(const struct net_tap *t, uint64_t features)
{
    static const struct {
        unsigned feature, flag;
    } offloads[] = {
        { VIRTIO_NET_F_GUEST_CSUM, TUN_F_CSUM }, { VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4 },
        { VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6 }, { VIRTIO_NET_F_GUEST_UFO, TUN_F_UFO },
        { NET_F_GUEST_USO4, TUN_F_USO4 },        { NET_F_GUEST_USO6, TUN_F_USO6 },
    };
    unsigned flags = 0;

    for (unsigned i = 0; i < sizeof(offloads) / sizeof(*offloads); i++)
        if (features & UINT64_C(1) << offloads[i].feature)
            flags |= offloads[i].flag;
    if ((flags & USO) != USO)
        flags &= ~USO; /* the kernel knows both or none; to a guest it is only an offer */
    return ioctl(t->fd, TUNSETOFFLOAD, flags) < 0 ? -errno : 0;
}
