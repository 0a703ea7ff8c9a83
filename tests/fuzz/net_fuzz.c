/*
 * The network device under a hostile driver, with a host that sends frames of any length and
 * content and reads what comes, or does not. In the tap's place is one end of a pair of sockets,
 * which keeps frames apart as a tap does and lets through what no kernel would send: headers that
 * lie, frames shorter than their header. What a kernel makes of a guest's header is for
 * tests/unit/net_test.c.
 */
#include "virtio/net.h"

#include <errno.h>
#include <linux/if_ether.h>
#include <signal.h>
#include <sys/socket.h>

#include "tests/fuzz/support/device.h"
#include "tests/fuzz/support/limits.h"

#define RX_QUEUE  0
#define TX_QUEUE  1
#define FRAME_MAX (NET_FRAME_MAX + 1000u)

static struct net net;
static int wire; /* the host's end; -1: it is gone */
static bool has_offloads;

/* In virtio/net_tap.c it is an ioctl, which a socket does not know. */
int net_tap_offload(const struct net_tap *t, uint64_t features)
{
    (void)t;
    (void)features;
    return has_offloads ? 0 : -EINVAL;
}

static void take_header(struct input *in, struct virtio_net_hdr_mrg_rxbuf *header)
{
    uint8_t how = take8(in);

    *header = (struct virtio_net_hdr_mrg_rxbuf){
        .hdr = { .flags = how & 3, .gso_type = how >> 2 & 7, .hdr_len = 54, .gso_size = 1448 },
    };
    if (how >= 0xc0)
        take_bytes(in, header, sizeof(*header));
}

/* The start of a frame of the guest; or none, which leaves only buffers to be written, as the
 * receive queue wants them. */
static uint32_t put_header(struct hostile *h, uint64_t at)
{
    struct virtio_net_hdr_mrg_rxbuf header;
    uint8_t how = take8(h->in);

    if (how & 0x80)
        return 0;
    take_header(h->in, &header);
    poke(&h->d.mem, at, &header, sizeof(header));
    return how & 0x40 ? how & 0x1f : sizeof(header) + ETH_HLEN;
}

/* A frame comes from the host. */
static void send_frame(struct hostile *h)
{
    static uint8_t frame[FRAME_MAX];
    uint32_t bytes = take_length(h->in) % FRAME_MAX;
    struct virtio_net_hdr_mrg_rxbuf header;

    take_header(h->in, &header);
    memcpy(frame, &header, sizeof(header));
    for (unsigned n = 1 + take8(h->in) % 32; n > 0; n--)
        (void)!write(wire, frame, bytes);
}

static void read_frames(unsigned count)
{
    uint8_t bytes[1]; /* the rest of a frame is lost */

    while (count-- > 0 && read(wire, bytes, sizeof(bytes)) >= 0)
        ;
}

/* A frame as a good driver sends it, but for its header. */
static void say(struct hostile *h)
{
    struct ring *r = &h->d.rings[TX_QUEUE];
    uint8_t head = take8(h->in) & 0xfe;
    uint64_t at = HEADERS_AT + 64u * (head % 64u);
    struct virtio_net_hdr_mrg_rxbuf header;

    take_header(h->in, &header);
    poke(&h->d.mem, at, &header, sizeof(header));
    ring_buffer(r, head, at, sizeof(header), VRING_DESC_F_NEXT);
    ring_buffer(r, head + 1, DATA_AT, ETH_HLEN + take_length(h->in) % 0x4000, 0);
    poke_avail(r, head);
    driver_notify(&h->d, TX_QUEUE);
}

/* Buffers for the host's frames, most of them one after the other as they are. */
static void give(struct hostile *h)
{
    struct ring *r = &h->d.rings[RX_QUEUE];
    uint8_t first = take8(h->in), count = take8(h->in);
    uint32_t bytes = take_length(h->in) % 0x8000;

    for (; count > 0; count--, first++) {
        ring_buffer(r, first, DATA_AT, (uint32_t)NET_HEADER_BYTES + bytes, VRING_DESC_F_WRITE);
        poke_avail(r, first);
    }
    driver_notify(&h->d, RX_QUEUE);
}

/* A PATCH of the interface. */
static void update(struct hostile *h)
{
    static const struct rate_limits unchanged;
    struct rate_limits rx = take_limits(h->in), tx = take_limits(h->in);
    uint8_t how = take8(h->in);
    struct error e;

    MUST(net_update(&net, how & 1 ? &rx : &unchanged, how & 2 ? &tx : &unchanged, &e) == 0);
}

/* The list of receive buffers is what its chains say. */
static void check_lists(void)
{
    const struct rx_buffers *rx = &net.rx;
    uint32_t bytes = 0;
    unsigned buffers = 0;

    MUST(rx->first <= rx->last && rx->last <= sizeof(rx->chains) / sizeof(*rx->chains));
    for (unsigned i = rx->first; i < rx->last; i++) {
        bytes += rx->chains[i].bytes;
        buffers += rx->chains[i].buffers;
    }
    MUST(bytes == rx->bytes && buffers == rx->end - rx->begin && net.held <= bytes);
    for (unsigned i = rx->begin; i < rx->end; i++)
        bytes -= (uint32_t)rx->buffers[i].iov_len;
    MUST(bytes == 0);
}

static void happen(struct hostile *h)
{
    uint8_t how = take8(h->in);

    switch (how % 8) {
    case 0:
    case 1: send_frame(h); break;
    case 2: say(h); break;
    case 3:
    case 4: give(h); break;
    case 5: read_frames(how); break;
    case 6: update(h); break;
    default:
        if (how >= 0xf0) {
            close_fdp(&wire);
            wire = -1;
        }
        has_offloads = how < 0x80;
    }
    check_lists();
}

static void check_drained(struct hostile *h)
{
    (void)h;
    check_lists();
    MUST(net.held == 0 && net.rx.bytes == 0 && net.rx.first == net.rx.last);
}

static const struct hostile_hooks hooks = {
    .header = put_header,
    .event = happen,
    .check_drained = check_drained,
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t mac[NET_MAC_BYTES] = { 2, 0, 0, 0, 0, 1 };
    static struct hostile h;
    struct input in = { data, size };
    uint8_t how = take8(&in);
    int ends[2];
    struct net_tap tap = { .has_uso = how & 1 };
    struct net_host host = { .tap = &tap, .mac = how & 2 ? mac : NULL, .loop = &h.d.loop };
    struct error e;

    signal(SIGPIPE, SIG_IGN);
    MUST(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) == 0);
    tap.fd = ends[0];
    wire = ends[1];
    has_offloads = true;
    hostile_init(&h, &in);
    if (how & 4)
        host.mtu = take16(&in);
    if (how & 8) {
        host.rx_limits = take_limits(&in);
        host.tx_limits = take_limits(&in);
    }
    MUST(net_init(&net, &host, &e) == 0);
    hostile_run(&h, &net.dev, &hooks);
    net_fini(&net);
    close_fdp(&tap.fd);
    close_fdp(&wire);
    loop_fini(&h.d.loop);
    return 0;
}
