/*
 * The network device (virtio 1.2, section 5.1) on a tap: one receive and one transmit queue.
 *
 * Guest and tap both speak frames with the virtio header in front. So they go straight between the
 * guest's pages and the tap: nothing is copied or parsed here. A header that lies is refused by the
 * kernel, as any tap user's is. A turn moves a bounded number of frames, and the guest is
 * interrupted once for all of them.
 *
 * Frames for the metadata service, where the interface has one, leave the way before the tap. They
 * are copied first. Its answers go to the guest before frames of the tap, through the limiter as
 * those; where there are no buffers they wait for the guest to offer some.
 *
 * Beside the transport's and the limiters' states, a guest can observe what follows from the tap,
 * the host's configuration and the features (the metadata service is not part of it). A drained
 * device holds no frame and no buffer.
 */
#pragma once

#include <linux/virtio_net.h>
#include <stdbool.h>

#include "mmds/stack.h"
#include "virtio/device.h"
#include "virtio/net_tap.h"
#include "virtio/rate_limiter.h"
#include "virtio/rx_buffers.h"
#include "vmm/base/log.h"
#include "vmm/base/metrics.h"

#define NET_MAC_BYTES 6u

/* What a device works on; all borrowed. */
struct net_host {
    struct net_tap *tap;
    const uint8_t *mac; /* NET_MAC_BYTES; NULL: the guest chooses */
    uint16_t mtu;       /* 0: not told */
    struct rate_limits rx_limits, tx_limits;
    struct mmds_stack *mmds; /* answers the frames for its address itself; NULL: none do */
    struct loop *loop;
};

struct net {
    struct virtio_device dev;
    struct net_host host;
    struct virtio_net_config config; /* section 5.1.4; little-endian, as x86 is */
    struct rate_limiter rx_limiter, tx_limiter;
    struct loop_source frames;     /* the tap's */
    struct loop_source mmds_timer; /* where there is a host.mmds */
    bool tap_is_ready;             /* it may have a frame; loop thread only */
    bool may_merge;                /* a frame may take several chains */
    uint32_t rx_min;               /* bytes that must be offered before a frame is read */
    uint32_t held; /* bytes of a frame that is there and waits for its limiter; or 0 */
    struct rx_buffers rx;
    struct log_limit trouble; /* with the tap */
    struct chain chain;       /* under way */
    unsigned descriptors;     /* that this turn may still look at */
    struct net_metrics metrics;
};

/* What fails is for want of descriptors or such on the host; then net_fini() all the same. */
must_check int net_init(struct net *n, const struct net_host *host, struct error *e);

/* Lets go of what it borrowed; only for a device whose VM never ran. Works on a zeroed object. */
void net_fini(struct net *n);

/* Changes limits as rate_limiter_update() does, with the guest running or not. All or, on failure
 * (-1), nothing. Loop thread. */
must_check int net_update(struct net *n, const struct rate_limits *rx, const struct rate_limits *tx,
                          struct error *e);
