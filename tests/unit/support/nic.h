/*
 * A network device on a tap in a network namespace of the test's own, driven as a guest's driver
 * would. The other end is `wire`, a packet socket on the tap that speaks the frame header too.
 */
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "tests/unit/support/driver.h"

/* <net/if.h> and <linux/if.h> agree only in this order. */
#include "virtio/net.h"

#define RX             0u
#define TX             1u
#define TX_DATA        0x80000u
#define RX_DATA        0x20000u
#define HEADER         12u
#define WIRE_HEADER    10u /* without num_buffers */
#define ETHERTYPE_TEST 0x88b5
#define MTU_MAX        65521
#define FRAME_ROOM     (NET_FRAME_MAX + 64)
#define DEADLINE_MS    10000

static const uint8_t guest_mac[6] = { 2, 0, 0, 0, 0, 1 }, host_mac[6] = { 2, 0, 0, 0, 0, 2 };
static struct net_tap tap;
static struct net net;
static struct driver d;
static struct ring *const rx = &d.rings[RX], *const tx = &d.rings[TX];
static int wire;
static uint8_t frame[FRAME_ROOM], got[FRAME_ROOM];

struct options {
    uint64_t without; /* features that are offered and not taken */
    struct rate_limits rx_limits, tx_limits;
    bool has_no_mac;
    uint16_t mtu;
    struct mmds_stack *mmds;
};

static inline void own_namespace(void)
{
    int fd;

    if (unshare(CLONE_NEWNET) < 0)
        cr_skip_test("NO FRAME WAS MOVED: a network namespace takes root");
    fd = open("/proc/sys/net/ipv6/conf/default/disable_ipv6", O_WRONLY);
    if (fd >= 0) /* or the kernel would speak on the wire */
        cr_assert_eq(write(fd, "1", 1), 1);
    close(fd);
}

static inline void set_link(const char *name, int mtu, bool is_up)
{
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    struct ifreq r = { .ifr_mtu = mtu };

    strcpy(r.ifr_name, name);
    cr_assert_eq(ioctl(s, SIOCSIFMTU, &r), 0);
    r.ifr_flags = is_up ? IFF_UP : 0;
    cr_assert_eq(ioctl(s, SIOCSIFFLAGS, &r), 0);
    close(s);
}

static inline void open_wire(void)
{
    struct sockaddr_ll at = { .sll_family = AF_PACKET,
                              .sll_protocol = htons(ETH_P_ALL),
                              .sll_ifindex = (int)if_nametoindex(tap.name) };
    int one = 1;

    wire = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    cr_assert_geq(wire, 0);
    cr_assert_eq(setsockopt(wire, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof(one)), 0);
    cr_assert_eq(setsockopt(wire, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof(one)), 0);
    cr_assert_eq(bind(wire, (struct sockaddr *)&at, sizeof(at)), 0);
}

static inline void negotiate(uint64_t without)
{
    cr_assert(driver_start_with(&d, offered_features(&d) & ~without));
}

static inline void start(struct options o)
{
    struct net_host host = { .tap = &tap,
                             .mac = o.has_no_mac ? NULL : guest_mac,
                             .mtu = o.mtu,
                             .rx_limits = o.rx_limits,
                             .tx_limits = o.tx_limits,
                             .mmds = o.mmds,
                             .loop = &d.loop };
    struct error e;

    own_namespace();
    cr_assert_eq(net_tap_open(&tap, "wire0", &e), 0, "%s", e.msg);
    set_link(tap.name, MTU_MAX, true);
    open_wire();
    cr_assert_eq(loop_init(&d.loop, &e), 0, "%s", e.msg);
    cr_assert_eq(net_init(&net, &host, &e), 0, "%s", e.msg);
    driver_init(&d, &net.dev, 256);
    negotiate(o.without);
}

static inline void start_plain(void)
{
    start((struct options){ 0 });
}

static inline void tear_down(void)
{
    driver_fini(&d);
    net_fini(&net);
    net_tap_close(&tap);
    close(wire);
}

/* An Ethernet frame of `bytes` whose content depends on `seed`, in `frame`. */
static inline void make_frame(const uint8_t *to, const uint8_t *from, uint32_t bytes, unsigned seed)
{
    const uint16_t type = htons(ETHERTYPE_TEST);

    memcpy(frame, to, 6);
    memcpy(frame + 6, from, 6);
    memcpy(frame + 12, &type, 2);
    for (uint32_t i = 14; i < bytes; i++)
        frame[i] = (uint8_t)(seed * 31 + i * 7 + i / 256);
}

static inline uint64_t count_of(const metric *m)
{
    return metric_get(m);
}
#define METRIC(name) count_of(&net.metrics.name)

/* Lays `bytes` of header and frame, as they lie at TX_DATA, out in `parts` descriptors. */
static inline void lay_tx(uint16_t first, uint64_t at, uint32_t bytes, unsigned parts)
{
    uint32_t done = 0;

    for (unsigned k = 0; k < parts; k++) {
        bool is_last = k + 1 == parts;
        uint32_t n = is_last ? bytes - done : bytes / parts;

        ring_buffer(tx, (uint16_t)(first + k), at + done, n, is_last ? 0 : VRING_DESC_F_NEXT);
        done += n;
    }
    ring_offer(tx, first);
}

static inline void put_tx(uint64_t at, const struct virtio_net_hdr_mrg_rxbuf *header,
                          uint32_t bytes)
{
    cr_assert_eq(gmem_put(&d.mem, gpa(at), header), 0);
    cr_assert_eq(gmem_write_(&d.mem, gpa(at + HEADER), frame, bytes), 0);
}

/* The frame in `frame`, without offloads, offered. */
static inline void offer_tx(uint16_t first, uint64_t at, uint32_t bytes, unsigned parts)
{
    const struct virtio_net_hdr_mrg_rxbuf none = { 0 };

    put_tx(at, &none, bytes);
    lay_tx(first, at, HEADER + bytes, parts);
}

/* What arrives on the wire next, with its header, in `got`; without the header its bytes. */
static inline ssize_t receive_wire(void)
{
    struct pollfd p = { .fd = wire, .events = POLLIN };
    ssize_t n;

    cr_assert_eq(poll(&p, 1, DEADLINE_MS), 1, "no frame on the wire");
    n = recv(wire, got, sizeof(got), 0);
    cr_assert_geq(n, WIRE_HEADER);
    return n - WIRE_HEADER;
}

static inline void expect_wire(uint32_t bytes)
{
    cr_assert_eq(receive_wire(), bytes);
    cr_expect_eq(memcmp(got + WIRE_HEADER, frame, bytes), 0, "a frame of %u bytes", bytes);
}

/* Sends `frame` from the host. */
static inline void send_wire(uint32_t bytes)
{
    struct iovec parts[] = { { (uint8_t[WIRE_HEADER]){ 0 }, WIRE_HEADER }, { frame, bytes } };

    cr_assert_eq(writev(wire, parts, 2), WIRE_HEADER + bytes);
}

/* The loop hears of frames on the tap. */
static inline void tell_of_frames(void)
{
    struct pollfd p = { .fd = tap.fd, .events = POLLIN };

    cr_assert_eq(poll(&p, 1, DEADLINE_MS), 1, "no frame on the tap");
    net.frames.on_ready(&net.frames, EPOLLIN);
    while (loop_drain(d.transport.notifiers[RX].source.fd))
        driver_serve_at(&d, RX);
}

/* A chain of writable buffers of these sizes at `at`. */
static inline void offer_rx(uint16_t first, uint64_t at, const uint32_t *sizes, unsigned count)
{
    for (unsigned k = 0; k < count; k++) {
        bool is_last = k + 1 == count;

        ring_buffer(rx, (uint16_t)(first + k), at, sizes[k],
                    VRING_DESC_F_WRITE | (is_last ? 0 : VRING_DESC_F_NEXT));
        at += sizes[k];
    }
    ring_offer(rx, first);
}

/* `count` chains of one buffer of `bytes` each, side by side from RX_DATA on. */
static inline void offer_rx_row(unsigned count, uint32_t bytes)
{
    for (unsigned i = 0; i < count; i++)
        offer_rx((uint16_t)i, RX_DATA + (uint64_t)i * bytes, &bytes, 1);
}

/* Whether guest memory at `at` holds a header that says `buffers`, and `frame`. */
static inline void expect_frame_at(uint64_t at, unsigned buffers, uint32_t bytes)
{
    struct virtio_net_hdr_mrg_rxbuf header;

    cr_assert_eq(gmem_get(&d.mem, gpa(at), &header), 0);
    cr_expect_eq(header.num_buffers, buffers, "num_buffers %u", header.num_buffers);
    cr_assert_eq(gmem_read_(&d.mem, gpa(at + HEADER), got, bytes), 0);
    cr_expect_eq(memcmp(got, frame, bytes), 0, "a frame of %u bytes", bytes);
}
