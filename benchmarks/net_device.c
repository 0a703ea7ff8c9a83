/*
 * The device side of virtio-net alone, as device.h says: frames move between the device and a tap
 * in a network namespace of its own.
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
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "benchmarks/device.h"
#include "virtio/net.h"

#include <linux/if_ether.h>

enum { RX, TX };

#define TABLES      0x100000u
#define TABLE_BYTES 0x200u
#define DATA        0x200000u
#define SLOT_BYTES  0x12000u /* of a frame to transmit */
#define PAGE        0x1000u  /* and of a buffer to receive into */
#define HEADERS     (ETH_HLEN + sizeof(struct iphdr) + sizeof(struct tcphdr))
#define MSS         1448
#define BATCH_MAX   128

static struct bench bench;
static struct net net;
static struct net_tap tap;
static int sender; /* a packet socket on the tap */
static unsigned queue;
static uint32_t bytes;
static unsigned batch;
static unsigned awaited;  /* frames on their way */
static uint64_t sent_cpu; /* what putting frames on the tap has cost */
static uint8_t frame[NET_FRAME_MAX];

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
                              .tot_len = htons((uint16_t)(bytes - ETH_HLEN)),
                              .ttl = 64,
                              .protocol = IPPROTO_TCP,
                              .saddr = htonl(0xc0000201),
                              .daddr = htonl(0xc0000202) };
    const struct tcphdr tcp = { .doff = sizeof(tcp) / 4, .ack = 1 };
    uint8_t *at = frame;

    if (bytes > ETH_FRAME_LEN)
        memcpy(at, &gso, sizeof(gso));
    memcpy(at += NET_HEADER_BYTES, &ethernet, sizeof(ethernet));
    memcpy(at += sizeof(ethernet), &ip, sizeof(ip));
    memcpy(at + sizeof(ip), &tcp, sizeof(tcp));
}

/* Slot i is a frame; one of several pages has an indirect table, as Linux would make it. */
static void lay_transmit(uint16_t i)
{
    const uint64_t data = DATA + (uint64_t)i * SLOT_BYTES;
    const struct ring table = { .mem = &bench.d.mem, .desc = TABLES + i * TABLE_BYTES };
    const uint32_t length = (uint32_t)NET_HEADER_BYTES + bytes;
    const uint16_t pieces = (uint16_t)((length + PAGE - 1) / PAGE);

    put(&bench, data, frame, length);
    if (pieces == 1) {
        ring_buffer(bench.ring, i, data, length, 0);
        return;
    }
    for (uint16_t p = 0; p < pieces; p++) {
        const bool is_last = p == pieces - 1;

        ring_buffer(&table, p, data + p * PAGE, is_last ? length - p * PAGE : PAGE,
                    is_last ? 0 : VRING_DESC_F_NEXT);
    }
    ring_buffer(bench.ring, i, table.desc, (uint32_t)sizeof(struct vring_desc) * pieces,
                VRING_DESC_F_INDIRECT);
}

static void lay_receive(uint16_t i)
{
    ring_buffer(bench.ring, i, DATA + (uint64_t)i * PAGE, PAGE, VRING_DESC_F_WRITE);
    ring_add(bench.ring, i);
}

static void transmit(uint32_t slot)
{
    ring_add(bench.ring, (uint16_t)slot);
    bench.left--;
}

/* Puts the next frames on the tap. */
static void send_batch(void)
{
    struct iovec piece = { frame, (size_t)NET_HEADER_BYTES - 2 };
    struct iovec pieces[] = { piece, { frame + NET_HEADER_BYTES, bytes } };
    struct mmsghdr frames[BATCH_MAX];
    const uint64_t before = clock_ns(CLOCK_THREAD_CPUTIME_ID);
    unsigned count = batch;

    if (count > bench.left)
        count = (unsigned)bench.left;
    for (unsigned i = 0; i < count; i++)
        frames[i] = (struct mmsghdr){ .msg_hdr = { .msg_iov = pieces, .msg_iovlen = 2 } };
    if (sendmmsg(sender, frames, count, 0) != (int)count)
        die("the tap does not take a batch");
    bench.left -= count;
    awaited += count;
    sent_cpu += clock_ns(CLOCK_THREAD_CPUTIME_ID) - before;
}

/* The buffers of each frame go back to the device. */
static void take_received(void)
{
    struct vring_used_elem elem;

    while (ring_take(bench.ring, &elem)) {
        struct virtio_net_hdr_mrg_rxbuf header;

        if (gmem_get(&bench.d.mem, gpa(DATA + (uint64_t)elem.id * PAGE), &header) < 0)
            die("beyond the memory");
        awaited--;
        ring_add(bench.ring, (uint16_t)elem.id);
        for (unsigned i = 1; i < header.num_buffers && ring_take(bench.ring, &elem); i++)
            ring_add(bench.ring, (uint16_t)elem.id);
    }
    kick(&bench);
    if (awaited > 0)
        return;
    if (bench.left > 0)
        send_batch();
    else
        loop_stop(&bench.d.loop, 0);
}

static void on_interrupt(const struct kvm_line *line)
{
    (void)line;
    if (queue == RX)
        take_received();
    else
        take_and_offer(&bench, transmit);
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
static void set_up_network(void)
{
    struct error e;
    struct ifreq r = { 0 };
    struct sockaddr_ll address = { .sll_family = AF_PACKET };
    const int one = 1, room = 16 << 20;

    if (unshare(geteuid() ? CLONE_NEWUSER | CLONE_NEWNET : CLONE_NEWNET) < 0)
        die("no network namespace");
    write_file("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    if (net_tap_open(&tap, "tap0", &e) < 0)
        die(e.msg);
    sender = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    memcpy(r.ifr_name, "tap0", sizeof("tap0"));
    r.ifr_flags = IFF_UP;
    if (sender < 0 || ioctl(sender, SIOCSIFFLAGS, &r) < 0)
        die("the tap does not come up");
    address.sll_ifindex = (int)if_nametoindex("tap0");
    if (bind(sender, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        setsockopt(sender, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room)) < 0 ||
        setsockopt(sender, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof(one)) < 0 ||
        setsockopt(sender, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof(one)) < 0)
        die("no packet socket");
}

static void set_up(void)
{
    const struct net_host host = { .tap = &tap, .loop = &bench.d.loop };
    const uint64_t features = FEATURE(VIRTIO_RING_F_INDIRECT_DESC) | FEATURE(VIRTIO_NET_F_CSUM) |
                              FEATURE(VIRTIO_NET_F_GUEST_CSUM) | FEATURE(VIRTIO_NET_F_GUEST_TSO4) |
                              FEATURE(VIRTIO_NET_F_HOST_TSO4) | FEATURE(VIRTIO_NET_F_MRG_RXBUF);
    struct error e;

    set_up_network();
    bench_init(&bench);
    if (net_init(&net, &host, &e) < 0)
        die(e.msg);
    bench_start(&bench, &net.dev, queue, features, on_interrupt);
    make_frame();
    for (uint16_t i = 0; i < QUEUE_SIZE && queue == RX; i++)
        lay_receive(i);
    for (uint16_t i = 0; i < batch && queue == TX; i++)
        lay_transmit(i);
}

static void serve(uint64_t frames)
{
    bench.left = frames;
    if (queue == RX)
        send_batch();
    else
        for (unsigned i = 0; i < batch && bench.left > 0; i++)
            transmit(i);
    kick_and_serve(&bench);
}

int main(int argc, char **argv)
{
    struct cost before;
    uint64_t frames;

    if (argc != 5)
        die("DIRECTION BYTES BATCH FRAMES");
    queue = strcmp(argv[1], "transmit") == 0 ? TX : RX;
    bytes = (uint32_t)atoi(argv[2]);
    batch = (unsigned)atoi(argv[3]);
    frames = (uint64_t)atoll(argv[4]);
    if (bytes < HEADERS || bytes > UINT16_MAX || batch == 0 || batch > BATCH_MAX || frames == 0)
        die("BYTES are 54 to 65535, BATCH at most 128");
    set_up();
    serve(batch); /* touches what there is to touch */
    sent_cpu = 0;
    before = cost_now();
    serve(frames);
    print_costs(before, sent_cpu, frames);
    return 0;
}
