/*
 * The vsock device under a hostile driver, with host programs on both sides of its sockets that
 * connect, send, read slowly and leave.
 */
#include "virtio/vsock.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <linux/vm_sockets.h>

#include "tests/fuzz/support/device.h"
#include "virtio/vsock_unix.h"

#define GUEST_CID 3u
#define RX_QUEUE  0
#define TX_QUEUE  1
#define PORT      1u /* of the host that somebody serves */
#define PEERS     8u

static struct vsock vsock;
static char directory[] = "/tmp/mayfly-fuzz-XXXXXX";
static char path[64], served_path[64];
static struct vsock_listener listener = { .fd = -1 }, served;
static int peers[PEERS]; /* host programs' ends; -1: none */

static void remove_directory(void)
{
    unlink(path);
    unlink(served_path);
    rmdir(directory);
}

/* The sockets' files are the same for all inputs. */
static void make_sockets(void)
{
    struct error e;

    if (listener.fd >= 0)
        return;
    MUST(mkdtemp(directory) && atexit(remove_directory) == 0);
    signal(SIGPIPE, SIG_IGN);
    snprintf(path, sizeof(path), "%s/v", directory);
    snprintf(served_path, sizeof(served_path), "%s_%u", path, PORT);
    MUST(vsock_unix_listen(&listener, path, &e) == 0);
    MUST(vsock_unix_listen(&served, served_path, &e) == 0);
}

static uint32_t take_port(struct input *in)
{
    uint8_t how = take8(in);

    if (how >= 0xf0)
        return take32(in);
    return how & 0x80 ? vsock.table.state.last_port - (how & 3) : how & 3;
}

/* A packet of the guest; or none, which leaves only buffers to be written, as the receive queue
 * wants them. */
static uint32_t put_header(struct hostile *h, uint64_t at)
{
    uint8_t how = take8(h->in);
    struct virtio_vsock_hdr p = {
        .src_cid = GUEST_CID,
        .dst_cid = VMADDR_CID_HOST,
        .src_port = take_port(h->in),
        .dst_port = take_port(h->in),
        .len = take_length(h->in),
        .type = VIRTIO_VSOCK_TYPE_STREAM,
        .op = how % 9,
        .flags = how >> 4 & 3,
        .buf_alloc = 512u * take8(h->in),
        .fwd_cnt = take16(h->in),
    };

    if (how & 0x80)
        return 0;
    if (how >= 0x78)
        take_bytes(h->in, &p, sizeof(p));
    poke(&h->d.mem, at, &p, sizeof(p));
    return sizeof(p);
}

static void peer_connect(unsigned i, struct input *in)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    char text[40];
    int n = snprintf(text, sizeof(text), "CONNECT %u\n", take8(in) & 3);

    memcpy(a.sun_path, path, sizeof(path));
    peers[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    MUST(peers[i] >= 0);
    if (take8(in) >= 0xe0)
        take_bytes(in, text, (size_t)n);
    if (connect(peers[i], (struct sockaddr *)&a, sizeof(a)) == 0)
        (void)!write(peers[i], text, (size_t)n);
}

static void peer_leave(unsigned i)
{
    close_fdp(&peers[i]);
    peers[i] = -1;
}

/* What a host program does next. */
static void peer_act(struct hostile *h)
{
    static uint8_t bytes[0x20000];
    uint8_t how = take8(h->in);
    unsigned i = how % PEERS;
    uint32_t n = take_length(h->in) % sizeof(bytes);

    if (peers[i] < 0) {
        if (how & 0x80)
            peer_connect(i, h->in);
        else
            peers[i] = accept4(served.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        return;
    }
    switch (how >> 3 & 7) {
    case 0: peer_leave(i); break;
    case 1: shutdown(peers[i], SHUT_WR); break;
    case 2: shutdown(peers[i], SHUT_RD); break;
    case 3:
    case 4: (void)!read(peers[i], bytes, n); break;
    default: (void)!write(peers[i], bytes, n);
    }
}

/* A packet as a good driver sends it, on a connection that is likely to be there. */
static void say(struct hostile *h)
{
    struct ring *r = &h->d.rings[TX_QUEUE];
    uint8_t how = take8(h->in), head = take8(h->in) & 0xfe;
    struct virtio_vsock_hdr p = {
        .src_cid = GUEST_CID,
        .dst_cid = VMADDR_CID_HOST,
        .src_port = how & 3,
        .dst_port = how & 0x80 ? vsock.table.state.last_port : PORT,
        .type = VIRTIO_VSOCK_TYPE_STREAM,
        .op = 1 + (how >> 2) % 7,
        .flags = how >> 5 & 3,
        .buf_alloc = 0x10000,
    };
    uint64_t at = HEADERS_AT + 64u * (head % 64u);
    uint16_t flags = 0;

    if (p.op == VIRTIO_VSOCK_OP_RW) {
        p.len = take_length(h->in) % 0x4000;
        flags = VRING_DESC_F_NEXT;
        ring_buffer(r, head + 1, DATA_AT, p.len, 0);
    }
    poke(&h->d.mem, at, &p, sizeof(p));
    ring_buffer(r, head, at, sizeof(p), flags);
    poke_avail(r, head);
    driver_notify(&h->d, TX_QUEUE);
}

/* Buffers for the host's packets. */
static void give(struct hostile *h)
{
    struct ring *r = &h->d.rings[RX_QUEUE];
    uint8_t first = take8(h->in), count = take8(h->in) & 0x1f;
    uint32_t bytes = 44 + take_length(h->in) % 0x4000;

    for (; count > 0; count--, first++) {
        ring_buffer(r, first, DATA_AT, bytes, VRING_DESC_F_WRITE);
        poke_avail(r, first);
    }
    driver_notify(&h->d, RX_QUEUE);
}

static void happen(struct hostile *h)
{
    switch (take8(h->in) % 3) {
    case 0: peer_act(h); break;
    case 1: say(h); break;
    default: give(h);
    }
}

static void check_drained(struct hostile *h)
{
    (void)h;
    MUST(vsock.table.count <= VSOCK_CONNECTIONS_MAX);
    MUST(vsock.table.total.held <= VSOCK_HELD_MAX);
    MUST(vsock.reset_count <= VSOCK_RESETS_MAX);
    MUST(vsock.rx.first == vsock.rx.last && vsock.rx.bytes == 0);
}

static const struct hostile_hooks hooks = {
    .header = put_header,
    .event = happen,
    .check_drained = check_drained,
};

/* Nobody waits in a backlog for the next input. */
static void empty_backlog(int fd)
{
    int waiting;

    while ((waiting = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0)
        close(waiting);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct hostile h;
    struct input in = { data, size };
    struct vsock_host host = { .loop = &h.d.loop, .path = path, .guest_cid = GUEST_CID };
    struct error e;

    make_sockets();
    host.listener = listener.fd;
    for (unsigned i = 0; i < PEERS; i++)
        peers[i] = -1;
    hostile_init(&h, &in);
    vsock = (struct vsock){ 0 };
    MUST(vsock_init(&vsock, &host, &e) == 0);
    hostile_run(&h, &vsock.dev, &hooks);
    for (unsigned i = 0; i < PEERS; i++)
        peer_leave(i);
    vsock_fini(&vsock);
    empty_backlog(listener.fd);
    empty_backlog(served.fd);
    loop_fini(&h.d.loop);
    return 0;
}
