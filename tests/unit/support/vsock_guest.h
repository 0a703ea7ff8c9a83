/*
 * A guest's driver of the vsock device with three queues in real guest memory, and the host's
 * programs on real sockets. The test plays both; the device's loop turns when it is told to.
 */
#pragma once

#include <errno.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "tests/unit/support/driver.h"
#include "virtio/vsock.h"
#include "virtio/vsock_unix.h"

#define CID      7u
#define WINDOW   65536u /* that the guest grants */
#define RX_BYTES 4096u
#define RX_AT    0x40000u
#define TX_AT    0x10000u
#define TX_MAX   0x20000u
#define RX_SLOTS 64u

struct packet {
    struct virtio_vsock_hdr h;
    uint8_t data[RX_BYTES];
};

struct guest {
    struct driver d;
    struct vsock v;
    char directory[32], path[48];
    struct vsock_listener listener;
};

static struct guest g;
static struct ring *const rx = &g.d.rings[0], *const tx = &g.d.rings[1];

static inline uint64_t guest_rx_slot(unsigned i)
{
    return RX_AT + (uint64_t)i % RX_SLOTS * RX_BYTES;
}

/* One kick, and the turns that the device asks for after it. */
static inline void guest_kick(unsigned queue)
{
    while (driver_serve_at(&g.d, queue))
        ;
}

/* Gives the device n receive buffers, and kicks. */
static inline void guest_give(unsigned n)
{
    for (; n > 0; n--) {
        uint16_t slot = rx->offered % RX_SLOTS;

        ring_buffer(rx, slot, guest_rx_slot(slot), RX_BYTES, VRING_DESC_F_WRITE);
        ring_offer(rx, slot);
    }
    guest_kick(0);
}

static inline void guest_ready(void)
{
    uint64_t features = offered_features(&g.d) & ~FEATURE(VIRTIO_RING_F_EVENT_IDX);

    cr_assert(driver_start_with(&g.d, features));
}

static inline void guest_init(void)
{
    struct vsock_host host = { .loop = &g.d.loop, .path = g.path, .guest_cid = CID };
    struct error e;

    g = (struct guest){ .directory = "/tmp/vsock-test-XXXXXX" };
    cr_assert(mkdtemp(g.directory));
    snprintf(g.path, sizeof(g.path), "%s/v", g.directory);
    cr_assert_eq(vsock_unix_listen(&g.listener, g.path, &e), 0, "%s", e.msg);
    host.listener = g.listener.fd;
    cr_assert_eq(loop_init(&g.d.loop, &e), 0, "%s", e.msg);
    cr_assert_eq(vsock_init(&g.v, &host, &e), 0, "%s", e.msg);
    driver_init(&g.d, &g.v.dev, 64);
    guest_ready();
}

static inline void guest_fini(void)
{
    char name[64];

    vsock_fini(&g.v);
    driver_fini(&g.d);
    vsock_unix_close(&g.listener, g.path);
    for (unsigned port = 1; port < 4; port++) {
        snprintf(name, sizeof(name), "%s_%u", g.path, port);
        unlink(name);
    }
    rmdir(g.directory);
}

/* Turns the loop until it has nothing to do. */
static inline void turn(void)
{
    struct epoll_event ev;

    for (unsigned i = 0; epoll_wait(g.d.loop.epoll_fd, &ev, 1, 0) == 1; i++) {
        struct loop_source *src = ev.data.ptr;

        cr_assert_lt(i, 100000, "the loop never rests");
        src->on_ready(src, ev.events);
    }
}

/* A packet as the guest means it: `bytes` is what the header says, `there` what follows. */
static inline void guest_send_raw(const struct virtio_vsock_hdr *h, const void *data,
                                  uint32_t there)
{
    cr_assert_leq(there, TX_MAX);
    cr_assert_eq(gmem_put(&g.d.mem, gpa(TX_AT), h), 0);
    if (data)
        cr_assert_eq(gmem_write_(&g.d.mem, gpa(TX_AT + sizeof(*h)), data, there), 0);
    ring_buffer(tx, 0, TX_AT, sizeof(*h), there > 0 ? VRING_DESC_F_NEXT : 0);
    ring_buffer(tx, 1, TX_AT + sizeof(*h), there, 0);
    ring_offer(tx, 0);
    guest_kick(1);
    turn();
}

static inline struct virtio_vsock_hdr guest_header(uint32_t port, uint32_t host_port, uint16_t op,
                                                   uint32_t bytes)
{
    return (struct virtio_vsock_hdr){ .src_cid = CID,
                                      .dst_cid = VMADDR_CID_HOST,
                                      .src_port = port,
                                      .dst_port = host_port,
                                      .len = bytes,
                                      .type = VIRTIO_VSOCK_TYPE_STREAM,
                                      .op = op,
                                      .buf_alloc = WINDOW };
}

static inline void guest_say(uint32_t port, uint32_t host_port, uint16_t op, uint32_t flags)
{
    struct virtio_vsock_hdr h = guest_header(port, host_port, op, 0);

    h.flags = flags;
    guest_send_raw(&h, NULL, 0);
}

static inline void guest_send(uint32_t port, uint32_t host_port, const void *data, uint32_t bytes)
{
    struct virtio_vsock_hdr h = guest_header(port, host_port, VIRTIO_VSOCK_OP_RW, bytes);

    guest_send_raw(&h, data, bytes);
}

/* The next packet for the guest, its buffer not given anew; false where there is none. */
static inline bool guest_take(struct packet *p)
{
    struct vring_used_elem elem;

    turn();
    if (!ring_take(rx, &elem))
        return false;
    cr_assert_geq(elem.len, sizeof(p->h));
    cr_assert_eq(gmem_read_(&g.d.mem, gpa(guest_rx_slot(elem.id)), p, RX_BYTES), 0);
    cr_assert_eq(elem.len, sizeof(p->h) + p->h.len);
    cr_expect_eq(p->h.src_cid, VMADDR_CID_HOST);
    cr_expect_eq(p->h.dst_cid, CID);
    cr_expect_eq(p->h.type, VIRTIO_VSOCK_TYPE_STREAM);
    return true;
}

/* The same, which must be of that operation. */
static inline struct packet guest_expect(uint16_t op)
{
    struct packet p = { 0 };

    cr_assert(guest_take(&p), "no packet, wanted operation %u", op);
    cr_assert_eq(p.h.op, op, "got operation %u, wanted %u", p.h.op, op);
    return p;
}

static inline void guest_expect_nothing(void)
{
    struct packet p;

    cr_expect(!guest_take(&p), "got operation %u", p.h.op);
}

static inline int host_socket(const char *path, bool is_server)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
    cr_assert_eq((is_server ? bind : connect)(fd, (struct sockaddr *)&a, sizeof(a)), 0, "%s: %m",
                 path);
    if (is_server)
        cr_assert_eq(listen(fd, 8), 0);
    return fd;
}

/* A host program that has said which port it wants. */
static inline int host_command(const char *command)
{
    int fd = host_socket(g.path, false);

    cr_assert_eq(write(fd, command, strlen(command)), (ssize_t)strlen(command));
    turn();
    return fd;
}

/* Reads what there is; -1 where there is nothing yet, 0 at the end or after a reset. */
static inline ssize_t host_read(int fd, void *to, size_t n)
{
    ssize_t got;

    turn();
    got = read(fd, to, n);
    return got < 0 && errno == ECONNRESET ? 0 : got;
}

struct stream {
    int fd;
    uint32_t port, host_port;
};

/* A connection of the host's to a port of the guest, open at both ends. */
static inline struct stream open_from_host(uint32_t port)
{
    char command[32], answer[32] = "", wanted[32];
    struct stream s = { .port = port };

    snprintf(command, sizeof(command), "CONNECT %u\n", port);
    s.fd = host_command(command);
    s.host_port = guest_expect(VIRTIO_VSOCK_OP_REQUEST).h.src_port;
    guest_say(port, s.host_port, VIRTIO_VSOCK_OP_RESPONSE, 0);
    snprintf(wanted, sizeof(wanted), "OK %u\n", s.host_port);
    cr_assert_eq(host_read(s.fd, answer, sizeof(answer)), (ssize_t)strlen(wanted));
    cr_assert_str_eq(answer, wanted);
    return s;
}

/* A connection of the guest's to port 1 of the host. */
static inline struct stream open_from_guest(uint32_t port)
{
    char name[64];
    struct stream s = { .port = port, .host_port = 1 };
    int server;

    snprintf(name, sizeof(name), "%s_1", g.path);
    unlink(name);
    server = host_socket(name, true);
    guest_say(port, 1, VIRTIO_VSOCK_OP_REQUEST, 0);
    s.fd = accept4(server, NULL, NULL, SOCK_NONBLOCK);
    cr_assert_geq(s.fd, 0);
    cr_expect_eq(guest_expect(VIRTIO_VSOCK_OP_RESPONSE).h.dst_port, port);
    close(server);
    return s;
}
