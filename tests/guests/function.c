/*
 * The guest of examples/functions where no Linux runs: what handler.sh does there. It has a disk,
 * an interface with the metadata service, and a vsock, on which it serves port 8000, one call at a
 * time. What it is sent, up to its end, it writes to its disk. It answers with its name, which is
 * what the metadata service has at /name, a number that no clone shares, how often its disk was
 * written, and the text that is there then, in capitals.
 * A call of "crash" resets the guest, one of "hang" is not answered.
 */
#include "runtime/virtio.h"

#include <linux/virtio_vsock.h>

#include "runtime/block.h"
#include "runtime/boot.h"
#include "runtime/interrupts.h"
#include "runtime/power.h"
#include "runtime/report.h"

#define PORT     8000
#define HOST_CID 2u
#define BUFFERS  16u
#define SLOTS    4u
#define VMGENID  0xdfff0ul
#define WAITS    10u /* of some seconds each, for the metadata service */

enum { NET = 1, BLOCK = 2, VSOCK = 19 }; /* device IDs */
enum { RX, TX };

/* A device of which each buffer is a page; one is sent at a time. */
struct link {
    struct driver device;
    struct ring queues[3];
    uint8_t *pages, *out;
};

struct packet {
    struct virtio_vsock_hdr header;
    char payload[4096 - sizeof(struct virtio_vsock_hdr)];
};

static struct driver disk;
static struct link net, vsock;
static struct {
    uint64_t writes;
    char text[SECTOR - sizeof(uint64_t)]; /* zeroes behind it */
} * sector;
static struct virtio_vsock_hdr caller; /* its last header; op 0: nobody calls */

/* --- links --- */

static bool find(uint32_t id, struct driver *d)
{
    for (unsigned slot = 0; slot < SLOTS; slot++)
        if (virtio_find(slot, d) && reg_read(d, VIRTIO_MMIO_DEVICE_ID) == id)
            return true;
    return false;
}

static void offer(struct link *l, uint32_t i)
{
    ring_lay(&l->queues[RX], (uint16_t)i, l->pages + 4096 * i, 4096, VRING_DESC_F_WRITE);
    ring_offer(&l->queues[RX], (uint16_t)i);
    reg_write(&l->device, VIRTIO_MMIO_QUEUE_NOTIFY, RX);
}

static bool link_start(struct link *l, uint32_t id, uint16_t queues)
{
    if (!find(id, &l->device))
        return false;
    virtio_reset(&l->device);
    if (!virtio_negotiate(&l->device, 0))
        return false;
    for (uint16_t i = 0; i < queues; i++) {
        virtq_init(&l->queues[i], i, BUFFERS);
        driver_set_queue(&l->device, &l->queues[i]);
    }
    driver_ok(&l->device);
    l->pages = alloc_pages(BUFFERS);
    l->out = alloc_pages(1);
    for (uint32_t i = 0; i < BUFFERS; i++)
        offer(l, i);
    return true;
}

static void link_send(struct link *l, uint32_t bytes)
{
    struct ring *q = &l->queues[TX];
    struct vring_used_elem used;

    ring_lay(q, 0, l->out, bytes, 0);
    ring_offer(q, 0);
    reg_write(&l->device, VIRTIO_MMIO_QUEUE_NOTIFY, TX);
    if (!wait_until(ring_take(q, &used)))
        give_up("what_is_sent_is_taken", "a queue stays full");
}

/* --- the metadata service: one TCP connection over a link that loses nothing --- */

enum { HEADERS = 12 + 14 + 20 + 20, FIN = 1, SYN = 2, RST = 4, PSH = 8, ACK = 16 };

static uint32_t tcp_seq, tcp_ack;
static uint16_t tcp_port = 1024;

static void put16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static void put32(uint8_t *at, uint32_t value)
{
    put16(at, value >> 16);
    put16(at + 2, value);
}

static uint32_t get32(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

/* The service looks at no checksum of a guest's. */
static void tcp_send(uint8_t flags, const char *text)
{
    static const uint8_t ethernet[] = { 6, 1, 0x23, 0x45, 0x67, 1, 6, 0, 0, 0, 0, 1, 8, 0 },
                         ipv4[] = { 0x45, 0, 0,   0,   0, 0, 0,   0,   64,  6,
                                    0,    0, 169, 254, 0, 2, 169, 254, 169, 254 };
    const uint32_t bytes = (uint32_t)strlen(text);
    uint8_t *ip = net.out + 12 + 14, *tcp = ip + 20;

    memset(net.out, 0, HEADERS);
    memcpy(net.out + 12, ethernet, sizeof(ethernet));
    memcpy(ip, ipv4, sizeof(ipv4));
    put16(ip + 2, 40 + bytes);
    put16(tcp, tcp_port);
    put16(tcp + 2, 80);
    put32(tcp + 4, tcp_seq);
    put32(tcp + 8, tcp_ack);
    tcp[12] = 5 << 4;
    tcp[13] = flags;
    put16(tcp + 14, 2048);
    memcpy(tcp + 20, text, bytes);
    link_send(&net, HEADERS + bytes);
    tcp_seq += bytes + ((flags & (SYN | FIN)) != 0);
}

/* Appends what a frame brings of the connection to `text`. True: this is its end. */
static bool tcp_take(const uint8_t *frame, char *text, size_t size)
{
    const uint8_t *ip = frame + 12 + 14, *tcp = ip + 20;
    const uint32_t header = (uint32_t)(tcp[12] >> 4) * 4, flags = tcp[13],
                   bytes = (uint32_t)(ip[2] << 8 | ip[3]) - 20 - header;
    const size_t length = strlen(text);

    if (frame[12 + 12] != 8 || frame[12 + 13] != 0 || get32(ip + 12) != 0xa9fea9fe ||
        (tcp[2] << 8 | tcp[3]) != tcp_port)
        return false;
    if ((flags & SYN) != 0) {
        tcp_ack = get32(tcp + 4) + 1;
        tcp_send(PSH | ACK, "GET /name HTTP/1.0\r\n\r\n");
        return false;
    }
    if (bytes > 0 && get32(tcp + 4) == tcp_ack && length + bytes < size) {
        memcpy(text + length, tcp + header, bytes);
        tcp_ack += bytes;
    }
    if ((flags & FIN) != 0)
        tcp_ack++;
    if (bytes > 0 || (flags & FIN) != 0)
        tcp_send((flags & FIN) != 0 ? FIN | ACK : ACK, "");
    return (flags & (FIN | RST)) != 0;
}

/* What the metadata service has at /name: the last line of its answer. */
static const char *own_name(void)
{
    static char text[1024];
    const char *line = text;
    struct vring_used_elem used;
    bool is_over = false;

    memset(text, 0, sizeof(text));
    tcp_port++;
    tcp_seq = tcp_ack = 0;
    tcp_send(SYN, "");
    for (unsigned i = 0; !is_over && i < WAITS; i++)
        while (!is_over && wait_until(ring_take(&net.queues[RX], &used))) {
            is_over = tcp_take(net.pages + 4096 * used.id, text, sizeof(text));
            offer(&net, used.id);
        }
    for (const char *at = text; *at != '\0'; at++)
        if (*at == '\n')
            line = at + 1;
    return line;
}

/* --- calls --- */

static void say(uint16_t op, uint32_t flags, uint32_t bytes)
{
    struct packet *p = (struct packet *)vsock.out;

    p->header = (struct virtio_vsock_hdr){ .src_cid = caller.dst_cid,
                                           .dst_cid = HOST_CID,
                                           .src_port = caller.dst_port,
                                           .dst_port = caller.src_port,
                                           .len = bytes,
                                           .type = VIRTIO_VSOCK_TYPE_STREAM,
                                           .op = op,
                                           .flags = flags,
                                           .buf_alloc = sizeof(p->payload) };
    link_send(&vsock, (uint32_t)sizeof(p->header) + bytes);
}

static char *append(char *to, const char *text)
{
    memcpy(to, text, strlen(text));
    return to + strlen(text);
}

static char *append_number(char *to, uint64_t value)
{
    for (int shift = 60; shift >= 0; shift -= 4)
        *to++ = "0123456789abcdef"[value >> shift & 15];
    return to;
}

static void answer(const char *request)
{
    const volatile uint64_t *generation = (const volatile uint64_t *)VMGENID;
    char *begin = ((struct packet *)vsock.out)->payload, *at = append(begin, own_name());

    (void)block_do(&disk, BLOCK_IN, 0, sector, SECTOR);
    sector->writes++;
    memset(sector->text, 0, sizeof(sector->text));
    memcpy(sector->text, request, strlen(request));
    (void)block_do(&disk, BLOCK_OUT, 0, sector, SECTOR);
    memset(sector, 0, SECTOR);
    if (block_do(&disk, BLOCK_IN, 0, sector, SECTOR) != BLOCK_OK)
        give_up("the_disk_works", "no sector");
    at = append(append_number(append(at, " "), generation[0]), " ");
    at = append(append_number(at, sector->writes), " ");
    for (const char *c = sector->text; *c != '\0'; c++)
        *at++ = *c >= 'a' && *c <= 'z' ? (char)(*c - 'a' + 'A') : *c;
    say(VIRTIO_VSOCK_OP_RW, 0, (uint32_t)(at - begin));
}

static void take(const struct packet *p)
{
    static char request[sizeof(sector->text)];
    const size_t length = strlen(request);

    if (p->header.op == VIRTIO_VSOCK_OP_REQUEST) {
        caller = p->header;
        memset(request, 0, sizeof(request));
        say(caller.dst_port == PORT ? VIRTIO_VSOCK_OP_RESPONSE : VIRTIO_VSOCK_OP_RST, 0, 0);
    }
    if (p->header.op == VIRTIO_VSOCK_OP_RW && length + p->header.len < sizeof(request))
        memcpy(request + length, p->payload, p->header.len);
    if (p->header.op != VIRTIO_VSOCK_OP_SHUTDOWN ||
        (p->header.flags & VIRTIO_VSOCK_SHUTDOWN_SEND) == 0)
        return;
    if (strlen(request) == 5 && memcmp(request, "crash", 5) == 0)
        power_off();
    if (strlen(request) == 4 && memcmp(request, "hang", 4) == 0)
        return;
    if (request[0] != '\0') /* else it was only asked whether we are here */
        answer(request);
    say(VIRTIO_VSOCK_OP_SHUTDOWN, VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND, 0);
}

void guest_main(void)
{
    struct vring_used_elem used;

    sector = alloc_pages(1);
    if (!expect(find(BLOCK, &disk) && virtio_start(&disk, 0, 16), "the_disk_starts") ||
        !expect(link_start(&net, NET, 2), "the_interface_starts") ||
        !expect(link_start(&vsock, VSOCK, 3), "the_vsock_starts"))
        return;
    print("serving\n");
    for (;;) {
        if (!wait_until(ring_take(&vsock.queues[RX], &used)))
            continue;
        take((const struct packet *)(vsock.pages + 4096 * used.id));
        offer(&vsock, used.id);
    }
}
