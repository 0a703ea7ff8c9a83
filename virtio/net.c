#include "virtio/net.h"

#include <errno.h>
#include <linux/if_ether.h>
#include <string.h>
#include <sys/timerfd.h>

#include "vmm/base/clock.h"

enum { RX, TX, QUEUES };

/* What one turn may move before others get theirs: about a millisecond of copying. */
#define TURN_FRAMES 64u

/* A frame without segmentation, with its header (section 5.1.6.3.1). */
#define PLAIN_FRAME_MAX 1526u

/* What comes before the payload that an MTU counts. */
#define FRAME_HEADERS ((uint32_t)NET_HEADER_BYTES + ETH_HLEN)

/* How many buffers a frame takes (section 5.1.6.4.1). */
#define NUM_BUFFERS_AT offsetof(struct virtio_net_hdr_mrg_rxbuf, num_buffers)

#define BIT(feature) (UINT64_C(1) << (feature))

/* What leads to frames longer than the link takes. */
#define GUEST_SEGMENTATION                                                                         \
    (BIT(VIRTIO_NET_F_GUEST_TSO4) | BIT(VIRTIO_NET_F_GUEST_TSO6) | BIT(VIRTIO_NET_F_GUEST_UFO) |   \
     BIT(NET_F_GUEST_USO4) | BIT(NET_F_GUEST_USO6))

#define OFFERED                                                                                    \
    (BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_RING_F_EVENT_IDX) | BIT(VIRTIO_RING_F_INDIRECT_DESC) |   \
     BIT(VIRTIO_NET_F_CSUM) | BIT(VIRTIO_NET_F_GUEST_CSUM) | BIT(VIRTIO_NET_F_GUEST_TSO4) |        \
     BIT(VIRTIO_NET_F_GUEST_TSO6) | BIT(VIRTIO_NET_F_GUEST_UFO) | BIT(VIRTIO_NET_F_HOST_TSO4) |    \
     BIT(VIRTIO_NET_F_HOST_TSO6) | BIT(VIRTIO_NET_F_HOST_UFO) | BIT(VIRTIO_NET_F_MRG_RXBUF))
#define OFFERED_WITH_USO (BIT(NET_F_GUEST_USO4) | BIT(NET_F_GUEST_USO6) | BIT(NET_F_HOST_USO))

static struct net *net_of(struct virtio_device *d)
{
    return owner_of(d, struct net, dev);
}

/* Takes what the guest has offered until the longest frame fits. False: the ring is broken. */
static bool net_gather(struct net *n)
{
    struct virtq *q = &n->dev.queues[RX];

    while (n->descriptors > 0) {
        if (n->rx.bytes >= NET_FRAME_MAX || !rx_buffers_has_room(&n->rx))
            return true;
        switch (virtq_pop_in_turn(q, &n->chain, &n->descriptors)) {
        case POP_EMPTY: return true;
        case POP_BROKEN:
            metric_inc(&n->metrics.event_fails);
            virtio_needs_reset(&n->dev, "its receive queue is broken");
            return false;
        case POP_OK: break;
        }
        if (n->chain.readable || n->chain.writable < (uint32_t)NET_HEADER_BYTES) {
            /* No buffer to receive into (section 5.1.6.3.1). To give it back while others wait
             * would leave a gap in what net_drain() undoes. */
            metric_inc(&n->metrics.rx_fails);
            virtio_needs_reset(&n->dev, "a receive buffer is readable or shorter than a header");
            return false;
        }
        rx_buffers_add(&n->rx, &n->chain, NET_FRAME_MAX);
    }
    return true;
}

/* False: a frame has to wait for the next turn, or for the guest, which is asked to notify when it
 * offers more. Buffers of fewer bytes than `least`, and as many as can be kept, must do. */
static bool has_buffers(struct net *n, uint32_t least)
{
    do {
        if (!net_gather(n))
            return false;
        if (n->rx.bytes >= least || !rx_buffers_has_room(&n->rx))
            return true;
    } while (n->descriptors > 0 && virtq_rearm(&n->dev.queues[RX]));
    if (n->descriptors > 0)
        metric_inc(&n->metrics.no_rx_avail_buffer);
    return false;
}

static void report_tap(struct net *n, const char *what, int os_errno)
{
    log_limited(&n->trouble, LOG_ERROR, "Cannot %s the tap %s: %s (os error %d)", what,
                n->host.tap->name, os_error_text(os_errno), os_errno);
}

/* Reads the next frame. False: there is none, or no place for it. */
static bool read_frame(struct net *n)
{
    ssize_t got;

    if (!has_buffers(n, n->rx_min))
        return false;
    got = rx_buffers_read_frame(&n->rx, n->host.tap->fd, !n->may_merge);
    if (got >= NET_HEADER_BYTES) {
        n->held = (uint32_t)got;
        return true;
    }
    if (got >= 0) { /* longer than the buffers: lost, and the next one may fit */
        metric_inc(&n->metrics.rx_fails);
        return true;
    }
    n->tap_is_ready = false;
    if (got != -EAGAIN) {
        metric_inc(&n->metrics.tap_read_fails);
        metric_inc(&n->metrics.rx_fails);
        report_tap(n, "read from", (int)-got);
    }
    return false;
}

/* Wakes the metadata service when it wants to be, or not at all. */
static void set_mmds_timer(struct net *n)
{
    const struct itimerspec when = {
        .it_value = timespec_of(mmds_stack_deadline(n->host.mmds)),
    };

    loop_set_timer(&n->mmds_timer, TFD_TIMER_ABSTIME, &when, NULL);
}

/* The metadata service's next frame into the guest's buffers. False: there is none, or no place for
 * it. */
static bool write_answer(struct net *n)
{
    static const struct virtio_net_hdr_mrg_rxbuf header;
    const uint32_t least = n->rx_min < PLAIN_FRAME_MAX ? n->rx_min : PLAIN_FRAME_MAX;
    struct mmds_frame frame;
    uint32_t room;

    if (n->host.mmds->is_quiet || !has_buffers(n, least))
        return false;
    room = n->may_merge ? n->rx.bytes : rx_buffers_next(&n->rx);
    if (room < sizeof(header) + MMDS_HEADERS_MAX)
        return false;
    if (!mmds_stack_next(n->host.mmds, room - sizeof(header), monotonic_ns(), &frame)) {
        set_mmds_timer(n);
        return false;
    }
    rx_buffers_put(&n->rx, 0, &header, sizeof(header));
    rx_buffers_put(&n->rx, sizeof(header), frame.headers, frame.header_bytes);
    rx_buffers_put(&n->rx, sizeof(header) + frame.header_bytes, frame.payload, frame.bytes);
    n->held = (uint32_t)(sizeof(header) + frame.header_bytes + frame.bytes);
    metric_inc(&metrics.mmds.tx_frames);
    metric_add(&metrics.mmds.tx_bytes, n->held - sizeof(header));
    return true;
}

/* False: there is no frame to be had. */
static bool next_frame(struct net *n)
{
    return (n->host.mmds && write_answer(n)) || (n->tap_is_ready && read_frame(n));
}

static void net_deliver(struct net *n)
{
    struct virtq *q = &n->dev.queues[RX];
    const uint16_t count = (uint16_t)rx_buffers_count(&n->rx, n->held);

    rx_buffers_put(&n->rx, NUM_BUFFERS_AT, &count, sizeof(count));
    rx_buffers_give(&n->rx, q, n->held);
    virtq_publish(q);
    metric_inc(&n->metrics.rx_packets_count);
    metric_inc(&n->metrics.rx_count);
    metric_add(&n->metrics.rx_bytes_count, n->held);
    n->held = 0;
}

/* True: there may be more. */
static bool net_receive(struct net *n)
{
    for (unsigned i = 0; i < TURN_FRAMES; i++) {
        if (n->held == 0 && !next_frame(n))
            return n->descriptors == 0;
        if (n->held == 0)
            continue;
        if (!rate_limiter_take(&n->rx_limiter, n->held)) {
            metric_inc(&n->metrics.rx_rate_limiter_throttled);
            return false;
        }
        net_deliver(n);
    }
    return true;
}

/* Whoever pretends to be another is counted, not stopped: the host's bridge knows better. */
static void check_source(struct net *n)
{
    struct ethhdr ethernet;

    if (n->host.mac && chain_peek(&n->chain, (size_t)NET_HEADER_BYTES, &ethernet) == 0 &&
        memcmp(ethernet.h_source, n->host.mac, NET_MAC_BYTES) != 0)
        metric_inc(&n->metrics.tx_spoofed_mac_count);
}

static void write_frame(struct net *n)
{
    uint32_t bytes = n->chain.readable;
    uint64_t start_us = monotonic_us();
    ssize_t put;

    check_source(n);
    put = chain_send(&n->chain, n->host.tap->fd, bytes);
    if (put < 0) { /* the interface is down or gone, or the header lies */
        metric_inc(&n->metrics.tap_write_fails);
        metric_inc(&n->metrics.tx_fails);
        if (put != -EINVAL) /* which is what the guest has written */
            report_tap(n, "write to", (int)-put);
        return;
    }
    latency_record(&n->metrics.tap_write_agg, start_us);
    metric_inc(&n->metrics.tx_packets_count);
    metric_inc(&n->metrics.tx_count);
    metric_add(&n->metrics.tx_bytes_count, bytes);
}

/* Gives a frame to the metadata service, if it is for that; then it costs its limiter nothing. It
 * is judged by a copy, as the guest can change it all the time. */
static bool take_for_mmds(struct net *n)
{
    struct chain *c = &n->chain;
    const uint32_t readable = c->readable, bytes = readable - (uint32_t)NET_HEADER_BYTES;
    const size_t start = bytes < MMDS_FRAME_START ? bytes : MMDS_FRAME_START;
    const size_t copied = bytes < MMDS_FRAME_MAX ? bytes : MMDS_FRAME_MAX;
    struct virtio_net_hdr_mrg_rxbuf header;
    uint8_t frame[MMDS_FRAME_MAX];

    if (chain_peek_(c, sizeof(header), frame, start) < 0 ||
        !mmds_stack_wants(n->host.mmds, frame, start))
        return false;
    if (chain_get(c, &header) == 0 && chain_read_(c, frame, copied) == 0)
        mmds_stack_take(n->host.mmds, frame, copied, bytes, monotonic_ns());
    rate_limiter_refund(&n->tx_limiter, readable);
    virtio_ask_turn(&n->dev, RX);
    return true;
}

static bool is_frame(const struct chain *c)
{
    return !c->writable && c->readable >= NET_HEADER_BYTES + sizeof(struct ethhdr) &&
           c->readable <= NET_FRAME_MAX;
}

/* False: its limiter lets the frame wait, and calls again. */
static bool transmit_one(struct net *n)
{
    struct virtq *q = &n->dev.queues[TX];

    if (!is_frame(&n->chain)) {
        metric_inc(&n->metrics.tx_malformed_frames);
        metric_inc(&n->metrics.tx_fails);
    } else if (rate_limiter_take(&n->tx_limiter, n->chain.readable)) {
        if (!n->host.mmds || !take_for_mmds(n))
            write_frame(n);
    } else {
        metric_inc(&n->metrics.tx_rate_limiter_throttled);
        virtq_unpop(q);
        return false;
    }
    virtq_push_head(q, n->chain.head, 0);
    return true;
}

/* True: there may be more. */
static bool net_transmit(struct net *n)
{
    struct virtq *q = &n->dev.queues[TX];

    for (unsigned i = 0; i < TURN_FRAMES && n->descriptors > 0; i++) {
        switch (virtq_pop_in_turn(q, &n->chain, &n->descriptors)) {
        case POP_EMPTY:
            if (!virtq_rearm(q))
                return false;
            break;
        case POP_BROKEN:
            metric_inc(&n->metrics.event_fails);
            virtio_needs_reset(&n->dev, "its transmit queue is broken");
            return false;
        case POP_OK:
            if (!transmit_one(n))
                return false;
        }
    }
    return true;
}

static bool net_serve(struct virtio_device *d, unsigned queue)
{
    struct net *n = net_of(d);
    bool is_more;

    n->descriptors = VIRTQ_TURN_DESCRIPTORS;
    is_more = queue == RX ? net_receive(n) : net_transmit(n);
    virtio_signal_used(d, queue);
    return is_more;
}

static void on_frames(struct loop_source *src, uint32_t ready)
{
    struct net *n = owner_of(src, struct net, frames);

    (void)ready;
    metric_inc(&n->metrics.rx_tap_event_count);
    n->tap_is_ready = true;
    virtio_serve(&n->dev, RX);
}

static void on_mmds_timer(struct loop_source *src, uint32_t ready)
{
    struct net *n = owner_of(src, struct net, mmds_timer);

    (void)ready;
    loop_drain(src->fd);
    mmds_stack_wake(n->host.mmds);
    virtio_serve(&n->dev, RX);
}

static void on_rx_refilled(struct rate_limiter *l)
{
    struct net *n = owner_of(l, struct net, rx_limiter);

    metric_inc(&n->metrics.rx_event_rate_limiter_count);
    virtio_serve(&n->dev, RX);
}

static void on_tx_refilled(struct rate_limiter *l)
{
    struct net *n = owner_of(l, struct net, tx_limiter);

    metric_inc(&n->metrics.tx_rate_limiter_event_count);
    virtio_serve(&n->dev, TX);
}

static void net_forget(struct net *n)
{
    rx_buffers_clear(&n->rx);
    n->held = 0;
}

static void net_activate(struct virtio_device *d)
{
    struct net *n = net_of(d);
    const uint64_t acked = virtio_acked(d);

    net_forget(n);
    n->may_merge = acked & BIT(VIRTIO_NET_F_MRG_RXBUF);
    n->rx_min = PLAIN_FRAME_MAX;
    if (acked & BIT(VIRTIO_NET_F_MTU) && n->host.mtu + FRAME_HEADERS > PLAIN_FRAME_MAX)
        n->rx_min = n->host.mtu + FRAME_HEADERS;
    if (acked & GUEST_SEGMENTATION)
        n->rx_min = NET_FRAME_MAX;
    if (!n->may_merge)
        n->rx_min = 1; /* one chain, of whatever length, must do */
    if (net_tap_offload(n->host.tap, acked) < 0) {
        metric_inc(&n->metrics.activate_fails);
        virtio_needs_reset(d, "the tap does not take the offloads");
    }
}

/* A frame that was read is delivered, limits or not; buffers that wait go back to the ring, so that
 * nothing is known here that the guest's memory does not say. */
static void net_drain(struct virtio_device *d)
{
    struct net *n = net_of(d);

    if (n->held) {
        net_deliver(n);
        virtio_signal_used(d, RX);
    }
    rx_buffers_unpop(&n->rx, &d->queues[RX]);
}

static void net_reset(struct virtio_device *d)
{
    net_forget(net_of(d));
}

static const struct virtio_ops net_ops = {
    .name = "net",
    .id = VIRTIO_ID_NET,
    .queue_count = QUEUES,
    .activate = net_activate,
    .serve = net_serve,
    .drain = net_drain,
    .reset = net_reset,
};

static void net_describe(struct net *n)
{
    n->dev.offered = OFFERED;
    if (n->host.tap->has_uso)
        n->dev.offered |= OFFERED_WITH_USO;
    if (n->host.mac) {
        n->dev.offered |= BIT(VIRTIO_NET_F_MAC);
        memcpy(n->config.mac, n->host.mac, NET_MAC_BYTES);
    }
    if (n->host.mtu) {
        n->dev.offered |= BIT(VIRTIO_NET_F_MTU);
        n->config.mtu = n->host.mtu;
    }
}

int net_init(struct net *n, const struct net_host *host, struct error *e)
{
    int ret;

    *n = (struct net){
        .dev = { .ops = &net_ops,
                 .config = &n->config,
                 .config_bytes = offsetof(struct virtio_net_config, mtu) + sizeof(n->config.mtu),
                 .activate_fails = &n->metrics.activate_fails,
                 .cfg_fails = &n->metrics.cfg_fails,
                 .notifications = { &n->metrics.rx_queue_event_count,
                                    &n->metrics.tx_queue_event_count } },
        .host = *host,
    };
    net_describe(n);
    if (rate_limiter_init(&n->rx_limiter, host->loop, monotonic_ns, on_rx_refilled,
                          &host->rx_limits, e) < 0 ||
        rate_limiter_init(&n->tx_limiter, host->loop, monotonic_ns, on_tx_refilled,
                          &host->tx_limits, e) < 0)
        return -1;
    n->mmds_timer.fd = -1;
    if (host->mmds) {
        ret = loop_add_timer(host->loop, &n->mmds_timer, on_mmds_timer);
        if (ret < 0)
            return fail_os(e, -ret, "MMDS: timer");
    }
    n->frames = (struct loop_source){ host->tap->fd, EPOLLIN | EPOLLET, on_frames };
    ret = loop_add(host->loop, &n->frames);
    return ret < 0 ? fail_os(e, -ret, "event loop") : 0;
}

void net_fini(struct net *n)
{
    if (!n->host.loop)
        return;
    loop_remove(n->host.loop, &n->frames);
    loop_remove_timer(n->host.loop, &n->mmds_timer);
    rate_limiter_fini(&n->rx_limiter);
    rate_limiter_fini(&n->tx_limiter);
}

int net_update(struct net *n, const struct rate_limits *rx, const struct rate_limits *tx,
               struct error *e)
{
    if (rate_limiter_prepare(&n->rx_limiter, rx, e) < 0 ||
        rate_limiter_prepare(&n->tx_limiter, tx, e) < 0)
        return -1;
    virtio_lock(&n->dev);
    rate_limiter_update(&n->rx_limiter, rx);
    rate_limiter_update(&n->tx_limiter, tx);
    virtio_unlock(&n->dev);
    return 0;
}
