/*
 * The device side of virtio-net alone: a driver in this process moves frames through rings in
 * memory, between the device and a tap in a network namespace of its own; the event loop serves
 * them as it would a guest's. No KVM, no guest: what is measured is what the VMM and the host's tap
 * spend. The kick costs one write(2) here, which with a guest is KVM's; the interrupt costs
 * nothing, where it is two ioctls.
 *
 * usage: net_device DIRECTION BYTES BATCH FRAMES
 * DIRECTION is transmit (the host's stack drops what arrives) or receive (the CPU that puts frames
 * on the tap is left out). BYTES are a frame's; those beyond an MTU of 1500 are one TCP segment
 * that nobody has cut up. Prints CPU and wall nanoseconds a frame.
 */
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>

#include "virtio/mmio.h"
#include "virtio/net.h"

#include <linux/if_ether.h>
#include <linux/virtio_mmio.h>

enum { RX, TX };

#define MEMORY_MIB  64
#define RINGS(q)    (0x10000u + 0x10000u * (q))
#define DESC(q)     (RINGS(q) + 0x1000u)
#define AVAIL(q)    (RINGS(q) + 0x3000u)
#define USED(q)     (RINGS(q) + 0x4000u)
#define TABLES      0x100000u
#define TABLE_BYTES 0x200u
#define DATA        0x200000u
#define SLOT_BYTES  0x12000u /* of a frame to transmit */
#define PAGE        0x1000u  /* and of a buffer to receive into */
#define QUEUE_SIZE  VIRTQ_SIZE_MAX
#define DRIVER      (VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER)
#define HEADERS     (ETH_HLEN + sizeof(struct iphdr) + sizeof(struct tcphdr))
#define MSS         1448
#define BATCH_MAX   128

struct bench {
    struct guest_mem mem;
    struct loop loop;
    struct virtio_mmio transport;
    struct net net;
    struct net_tap tap;
    _Alignas(8) uint8_t page[LAYOUT_VIRTIO_STEP];
    int sender; /* a packet socket on the tap */
    unsigned queue;
    uint32_t bytes;
    unsigned batch;
    uint16_t offered, used;
    uint64_t left;     /* frames not yet on their way */
    unsigned awaited;  /* frames on their way */
    uint64_t sent_cpu; /* what putting frames on the tap has cost */
    uint8_t frame[NET_FRAME_MAX];
};

static struct bench bench;

_Noreturn static void die(const char *what)
{
    fprintf(stderr, "net_device: %s\n", what);
    exit(2);
}

static void put(uint64_t at, const void *object, size_t bytes)
{
    if (gmem_write_(&bench.mem, gpa(at), object, bytes) < 0)
        die("beyond the memory");
}

static void get(uint64_t at, void *object, size_t bytes)
{
    if (gmem_read_(&bench.mem, gpa(at), object, bytes) < 0)
        die("beyond the memory");
}

static uint64_t nanoseconds(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* An IPv4 TCP segment for a station that is not the tap, behind a virtio header. */
static void make_frame(void)
{
    const struct virtio_net_hdr_mrg_rxbuf gso = {
        .hdr = { .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
                 .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
                 .hdr_len = HEADERS,
                 .gso_size = MSS,
                 .csum_start = ETH_HLEN + sizeof(struct iphdr),
                 .csum_offset = offsetof(struct tcphdr, check) },
    };
    const struct ethhdr ethernet = { .h_dest = { 6, 0, 0, 0, 0, 1 },
                                     .h_source = { 6, 0, 0, 0, 0, 2 },
                                     .h_proto = htons(ETH_P_IP) };
    const struct iphdr ip = { .version = 4,
                              .ihl = sizeof(ip) / 4,
                              .tot_len = htons((uint16_t)(bench.bytes - ETH_HLEN)),
                              .ttl = 64,
                              .protocol = IPPROTO_TCP,
                              .saddr = htonl(0xc0000201),
                              .daddr = htonl(0xc0000202) };
    const struct tcphdr tcp = { .doff = sizeof(tcp) / 4, .ack = 1 };
    uint8_t *at = bench.frame;

    if (bench.bytes > ETH_FRAME_LEN)
        memcpy(at, &gso, sizeof(gso));
    memcpy(at += NET_HEADER_BYTES, &ethernet, sizeof(ethernet));
    memcpy(at += sizeof(ethernet), &ip, sizeof(ip));
    memcpy(at + sizeof(ip), &tcp, sizeof(tcp));
}

static void put_desc(uint64_t at, uint64_t addr, uint32_t len, unsigned flags, unsigned next)
{
    const struct vring_desc d = { addr, len, (uint16_t)flags, (uint16_t)next };

    put(at, &d, sizeof(d));
}

/* Slot i is a frame; one of several pages has an indirect table, as Linux would make it. */
static void lay_transmit(unsigned i)
{
    const uint64_t data = DATA + (uint64_t)i * SLOT_BYTES, table = TABLES + i * TABLE_BYTES;
    const uint32_t bytes = (uint32_t)NET_HEADER_BYTES + bench.bytes;
    const unsigned pieces = (bytes + PAGE - 1) / PAGE;

    put(data, bench.frame, bytes);
    if (pieces == 1) {
        put_desc(DESC(TX) + sizeof(struct vring_desc) * i, data, bytes, 0, 0);
        return;
    }
    for (unsigned p = 0; p < pieces; p++) {
        const bool is_last = p == pieces - 1;

        put_desc(table + sizeof(struct vring_desc) * p, data + p * PAGE,
                 is_last ? bytes - p * PAGE : PAGE, is_last ? 0 : VRING_DESC_F_NEXT, p + 1);
    }
    put_desc(DESC(TX) + sizeof(struct vring_desc) * i, table,
             (uint32_t)sizeof(struct vring_desc) * pieces, VRING_DESC_F_INDIRECT, 0);
}

static void lay_receive(unsigned i)
{
    put_desc(DESC(RX) + sizeof(struct vring_desc) * i, DATA + (uint64_t)i * PAGE, PAGE,
             VRING_DESC_F_WRITE, 0);
}

static void offer(uint32_t slot)
{
    const uint16_t head = (uint16_t)slot;

    put(AVAIL(bench.queue) + 4 + 2u * (bench.offered % QUEUE_SIZE), &head, sizeof(head));
    bench.offered++;
}

static void kick(void)
{
    const uint64_t one = 1;
    uint16_t no_notify;

    put(AVAIL(bench.queue) + 2, &bench.offered, sizeof(bench.offered));
    get(USED(bench.queue), &no_notify, sizeof(no_notify));
    if (!(no_notify & VRING_USED_F_NO_NOTIFY) &&
        write(bench.transport.notifiers[bench.queue].source.fd, &one, sizeof(one)) != sizeof(one))
        die("a kick failed");
}

static uint32_t next_used(void)
{
    struct vring_used_elem elem;

    get(USED(bench.queue) + 4 + 8u * (bench.used++ % QUEUE_SIZE), &elem, sizeof(elem));
    return elem.id;
}

/* Puts the next frames on the tap. */
static void send_batch(void)
{
    struct iovec piece = { bench.frame, (size_t)NET_HEADER_BYTES - 2 };
    struct iovec pieces[] = { piece, { bench.frame + NET_HEADER_BYTES, bench.bytes } };
    struct mmsghdr frames[BATCH_MAX];
    const uint64_t before = nanoseconds(CLOCK_THREAD_CPUTIME_ID);
    unsigned count = bench.batch;

    if (count > bench.left)
        count = (unsigned)bench.left;
    for (unsigned i = 0; i < count; i++)
        frames[i] = (struct mmsghdr){ .msg_hdr = { .msg_iov = pieces, .msg_iovlen = 2 } };
    if (sendmmsg(bench.sender, frames, count, 0) != (int)count)
        die("the tap does not take a batch");
    bench.left -= count;
    bench.awaited += count;
    bench.sent_cpu += nanoseconds(CLOCK_THREAD_CPUTIME_ID) - before;
}

static void take_received(uint16_t now)
{
    while (bench.used != now) {
        struct virtio_net_hdr_mrg_rxbuf header;
        uint32_t slot = next_used();

        get(DATA + (uint64_t)slot * PAGE, &header, sizeof(header));
        bench.awaited--;
        offer(slot);
        for (unsigned i = 1; i < header.num_buffers; i++)
            offer(next_used());
    }
    kick();
    if (bench.awaited > 0)
        return;
    if (bench.left > 0)
        send_batch();
    else
        loop_stop(&bench.loop, 0);
}

static void take_transmitted(uint16_t now)
{
    const bool is_more = bench.left > 0;

    while (bench.used != now) {
        uint32_t slot = next_used();

        if (bench.left > 0) {
            offer(slot);
            bench.left--;
        }
    }
    if (bench.used == bench.offered)
        loop_stop(&bench.loop, 0);
    else if (is_more)
        kick();
}

static void on_interrupt(const struct kvm_line *line)
{
    uint16_t now;

    (void)line;
    get(USED(bench.queue) + 2, &now, sizeof(now));
    if (bench.queue == RX)
        take_received(now);
    else
        take_transmitted(now);
}

static void set(unsigned offset, uint32_t value)
{
    struct bus_device *bus = &bench.transport.bus;

    bus->ops->write(bus, offset, (const uint8_t *)&value, sizeof(value));
}

static void start_driver(void)
{
    set(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE);
    set(VIRTIO_MMIO_STATUS, DRIVER);
    set(VIRTIO_MMIO_DRIVER_FEATURES,
        1u << VIRTIO_RING_F_INDIRECT_DESC | 1u << VIRTIO_NET_F_CSUM |
            1u << VIRTIO_NET_F_GUEST_CSUM | 1u << VIRTIO_NET_F_GUEST_TSO4 |
            1u << VIRTIO_NET_F_HOST_TSO4 | 1u << VIRTIO_NET_F_MRG_RXBUF);
    set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
    set(VIRTIO_MMIO_DRIVER_FEATURES, 1u << (VIRTIO_F_VERSION_1 - 32));
    set(VIRTIO_MMIO_STATUS, DRIVER | VIRTIO_CONFIG_S_FEATURES_OK);
    for (unsigned q = RX; q <= TX; q++) {
        set(VIRTIO_MMIO_QUEUE_SEL, q);
        set(VIRTIO_MMIO_QUEUE_NUM, QUEUE_SIZE);
        set(VIRTIO_MMIO_QUEUE_DESC_LOW, DESC(q));
        set(VIRTIO_MMIO_QUEUE_AVAIL_LOW, AVAIL(q));
        set(VIRTIO_MMIO_QUEUE_USED_LOW, USED(q));
        set(VIRTIO_MMIO_QUEUE_READY, 1);
    }
    set(VIRTIO_MMIO_STATUS, DRIVER | VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
}

static void write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");

    if (f) {
        fputs(text, f);
        fclose(f);
    }
}

/* Into an empty network, with a tap that says nothing of its own. */
static void set_up_network(struct error *e)
{
    struct ifreq r = { 0 };
    struct sockaddr_ll address = { .sll_family = AF_PACKET };
    const int one = 1, room = 16 << 20;

    if (unshare(geteuid() ? CLONE_NEWUSER | CLONE_NEWNET : CLONE_NEWNET) < 0)
        die("no network namespace");
    write_file("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    if (net_tap_open(&bench.tap, "tap0", e) < 0)
        die(e->msg);
    bench.sender = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    memcpy(r.ifr_name, "tap0", sizeof("tap0"));
    r.ifr_flags = IFF_UP;
    if (bench.sender < 0 || ioctl(bench.sender, SIOCSIFFLAGS, &r) < 0)
        die("the tap does not come up");
    address.sll_ifindex = (int)if_nametoindex("tap0");
    if (bind(bench.sender, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        setsockopt(bench.sender, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room)) < 0 ||
        setsockopt(bench.sender, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof(one)) < 0 ||
        setsockopt(bench.sender, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof(one)) < 0)
        die("no packet socket");
}

static void set_up(struct error *e)
{
    const struct net_host host = { .tap = &bench.tap, .loop = &bench.loop };

    set_up_network(e);
    if (loop_init(&bench.loop, e) < 0 ||
        gmem_init(&bench.mem, MEMORY_MIB, HUGE_PAGES_NONE, e) < 0 ||
        net_init(&bench.net, &host, e) < 0 ||
        virtio_mmio_init(&bench.transport, &bench.net.dev, gpa(LAYOUT_VIRTIO), bench.page,
                         &bench.mem, &bench.loop, e) < 0)
        die(e->msg);
    bench.transport.pulse = on_interrupt;
    make_frame();
    start_driver();
    for (unsigned i = 0; i < QUEUE_SIZE && bench.queue == RX; i++) {
        lay_receive(i);
        offer(i);
    }
    for (unsigned i = 0; i < bench.batch && bench.queue == TX; i++)
        lay_transmit(i);
}

static void serve(uint64_t frames)
{
    bench.left = frames;
    if (bench.queue == RX)
        send_batch();
    else
        for (unsigned i = 0; i < bench.batch && bench.left > 0; i++, bench.left--)
            offer(i);
    kick();
    bench.loop.stopping = 0;
    loop_run(&bench.loop);
}

int main(int argc, char **argv)
{
    struct error e;
    uint64_t frames, cpu, wall;

    if (argc != 5)
        die("DIRECTION BYTES BATCH FRAMES");
    bench.queue = strcmp(argv[1], "transmit") == 0 ? TX : RX;
    bench.bytes = (uint32_t)atoi(argv[2]);
    bench.batch = (unsigned)atoi(argv[3]);
    frames = (uint64_t)atoll(argv[4]);
    if (bench.bytes < HEADERS || bench.bytes > UINT16_MAX || bench.batch == 0 ||
        bench.batch > BATCH_MAX || frames == 0)
        die("BYTES are 54 to 65535, BATCH at most 128");
    set_up(&e);
    serve(bench.batch); /* touches what there is to touch */
    bench.sent_cpu = 0;
    cpu = nanoseconds(CLOCK_PROCESS_CPUTIME_ID);
    wall = nanoseconds(CLOCK_MONOTONIC);
    serve(frames);
    cpu = nanoseconds(CLOCK_PROCESS_CPUTIME_ID) - cpu - bench.sent_cpu;
    wall = nanoseconds(CLOCK_MONOTONIC) - wall - bench.sent_cpu;
    printf("%.1f %.1f\n", (double)cpu / (double)frames, (double)wall / (double)frames);
    return 0;
}
