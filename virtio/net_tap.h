/*
 * The host side of a network device: a TAP interface that speaks virtio's frame header, so that the
 * kernel does what the header asks for and judges what the guest wrote there. Or a macvtap, whose
 * character device takes the same frames and the same calls; it is only opened in another way.
 */
#pragma once

#include <linux/if.h>
#include <linux/virtio_net.h>
#include <stdbool.h>
#include <stdint.h>

#include "vmm/base/error.h"

#define NET_HEADER_BYTES ((int)sizeof(struct virtio_net_hdr_mrg_rxbuf))
/* What a read must have room for: a frame of 64 KiB with its headers (section 5.1.6.3.1). */
#define NET_FRAME_MAX 65562u

/* UDP segmentation (virtio 1.3): newer than the headers of Linux 6.1. */
#define NET_F_GUEST_USO4 54
#define NET_F_GUEST_USO6 55
#define NET_F_HOST_USO   56

struct net_tap {
    int fd;              /* does not block */
    char name[IFNAMSIZ]; /* as the kernel knows it */
    bool has_uso;        /* whether the kernel can segment UDP datagrams (Linux 6.2) */
};

/* Attaches to the interface of that name in the process's network namespace: a persistent one, with
 * one queue or several, or a new one that goes with the descriptor, where the process may make it.
 * An empty name lets the kernel choose. That of a macvtap opens its device, /dev/tapN by the number
 * of the interface, which on a host with several namespaces may be another one's: that is refused.
 * "/dev/tapN" as a name is that device, whosever it is. */
must_check int net_tap_open(struct net_tap *t, const char *name, struct error *e);

/* Closes it; works on one whose fd is -1. */
void net_tap_close(struct net_tap *t);

/* What the guest accepts in frames it receives: bits of the virtio features that it took. 0 or
 * -errno. */
must_check int net_tap_offload(const struct net_tap *t, uint64_t features);
