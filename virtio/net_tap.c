#include "virtio/net_tap.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <string.h>
#include <sys/ioctl.h>

/* Newer than the headers of Linux 6.1. */
#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif
#define USO ((unsigned)(TUN_F_USO4 | TUN_F_USO6))

static int set_interface(int fd, const char *name, int flags, struct ifreq *r)
{
    *r = (struct ifreq){ .ifr_flags = (short)flags };
    memcpy(r->ifr_name, name, strlen(name) + 1);
    return ioctl(fd, TUNSETIFF, r);
}

/* An interface that was made for several queues wants to hear that from whoever attaches. */
static int attach(int fd, const char *name, struct ifreq *r)
{
    const int flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;

    if (set_interface(fd, name, flags, r) == 0)
        return 0;
    if (errno != EINVAL)
        return -1;
    return set_interface(fd, name, flags | IFF_MULTI_QUEUE, r);
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
    fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return fail_os(e, errno, "Open tap device failed: Couldn't open /dev/net/tun");
    if (attach(fd, name, &r) < 0)
        return fail(e, ERR_HOST,
                    "Open tap device failed: Error while creating ifreq structure: %s (os error "
                    "%d). Invalid TUN/TAP Backend provided by %s. Check our documentation on "
                    "setting up the network devices.",
                    os_error_text(errno), errno, name);
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
