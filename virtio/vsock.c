#include "virtio/vsock.h"

#include <errno.h>
#include <linux/vm_sockets.h>
#include <sys/socket.h>

#include "virtio/vsock_unix.h"
#include "vmm/base/metrics.h"

enum { QUEUE_RX, QUEUE_TX, QUEUE_EVENT, QUEUES };

/* What a turn of the event loop moves each way, beside what it looks at
 * (VIRTQ_TURN_DESCRIPTORS). The packet or the read that passes one of the bounds is still carried
 * out, and is the turn's last. A buffer that is of no use counts as a packet, and so does a
 * connection that has nothing any more. */
#define TURN_BYTES   (1u << 20)
#define TURN_PACKETS 128u

/* Connections accepted in one turn. */
#define TURN_ACCEPTS 16

struct turn {
    uint32_t bytes;
    unsigned packets;
    unsigned descriptors;
    unsigned pushed; /* a bit for each queue */
    bool is_broken;
};

static bool vsock_turn_is_over(const struct turn *t)
{
    return t->bytes == 0 || t->packets == 0 || t->descriptors == 0;
}

static void vsock_spend(struct turn *t, uint32_t bytes)
{
    t->bytes -= bytes < t->bytes ? bytes : t->bytes;
    if (t->packets > 0)
        t->packets--;
}

static void vsock_push(struct vsock *v, unsigned queue, struct turn *t)
{
    virtq_push(&v->dev.queues[queue], &v->chain);
    t->pushed |= 1u << queue;
}

static enum pop pop_chain(struct vsock *v, unsigned queue, struct turn *t)
{
    const enum pop popped = virtq_pop_in_turn(&v->dev.queues[queue], &v->chain, &t->descriptors);

    t->is_broken |= popped == POP_BROKEN;
    return popped;
}

/* Takes the next chain of a queue. False: the turn is over, or there is none, and the guest
 * notifies when there is. */
static bool next_chain(struct vsock *v, unsigned queue, struct turn *t)
{
    struct virtq *q = &v->dev.queues[queue];
    enum pop popped;

    if (!q->mem || t->is_broken || vsock_turn_is_over(t))
        return false;
    popped = pop_chain(v, queue, t);
    if (popped == POP_EMPTY && virtq_rearm(q)) /* a guest that takes it back notifies, too */
        popped = pop_chain(v, queue, t);
    return popped == POP_OK;
}

/* Takes a buffer for a packet to the guest, in which more than a header fits. Others go back
 * unused. */
static bool next_buffer(struct vsock *v, struct turn *t)
{
    while (next_chain(v, QUEUE_RX, t)) {
        if (v->chain.writable > sizeof(struct virtio_vsock_hdr))
            return true;
        metric_inc(&metrics.vsock.rx_queue_event_fails);
        vsock_push(v, QUEUE_RX, t);
        vsock_spend(t, 0);
    }
    return false;
}

static void address(const struct vsock *v, struct virtio_vsock_hdr *h, uint32_t host_port,
                    uint32_t guest_port)
{
    *h = (struct virtio_vsock_hdr){
        .src_cid = VMADDR_CID_HOST,
        .dst_cid = v->config.guest_cid,
        .src_port = host_port,
        .dst_port = guest_port,
        .type = VIRTIO_VSOCK_TYPE_STREAM,
    };
}

/* Sends a packet without payload in the buffer just taken. */
static void put_header(struct vsock *v, const struct virtio_vsock_hdr *h, struct turn *t)
{
    if (chain_put(&v->chain, h) < 0)
        BUG_ON(true); /* next_buffer() has looked */
    vsock_push(v, QUEUE_RX, t);
    vsock_spend(t, 0);
    metric_inc(&metrics.vsock.rx_packets_count);
}

static bool send_reset(struct vsock *v, struct turn *t)
{
    const struct vsock_ports *p = &v->resets[v->reset_at];
    struct virtio_vsock_hdr h;

    if (!next_buffer(v, t))
        return false;
    address(v, &h, p->host_port, p->guest_port);
    h.op = VIRTIO_VSOCK_OP_RST;
    put_header(v, &h, t);
    v->reset_at = (v->reset_at + 1) % VSOCK_RESETS_MAX;
    v->reset_count--;
    return true;
}

/* There is room for it: see take_packets(). */
static void owe_reset(struct vsock *v, uint32_t host_port, uint32_t guest_port)
{
    const unsigned at = (v->reset_at + v->reset_count++) % VSOCK_RESETS_MAX;

    v->resets[at] = (struct vsock_ports){ host_port, guest_port };
}

static bool send_control(struct vsock *v, struct vsock_conn *c, uint16_t op, struct turn *t)
{
    struct virtio_vsock_hdr h;

    if (!next_buffer(v, t))
        return false;
    address(v, &h, c->host_port, c->guest_port);
    vsock_conn_tell(c, &h, op, 0);
    put_header(v, &h, t);
    if (op == VIRTIO_VSOCK_OP_SHUTDOWN && h.flags == VSOCK_SHUTDOWN_BOTH)
        vsock_table_start_clock(&v->table, c);
    return true;
}

/* Takes another buffer if one is there. One that is too small waits for its turn in the ring: a
 * buffer never goes back before those that were taken before it. */
static bool vsock_add_buffer(struct vsock *v, uint32_t limit, struct turn *t)
{
    struct virtq *q = &v->dev.queues[QUEUE_RX];

    if (vsock_turn_is_over(t) || pop_chain(v, QUEUE_RX, t) != POP_OK)
        return false;
    if (v->chain.writable > sizeof(struct virtio_vsock_hdr)) {
        rx_buffers_add(&v->rx, &v->chain, limit);
        return true;
    }
    virtq_unpop(q);
    return false;
}

/* Gathers buffers for what the connection is likely to have. False: there is none. */
static bool vsock_gather(struct vsock *v, struct vsock_conn *c, struct turn *t)
{
    uint32_t room = vsock_conn_room(c);

    if (!next_buffer(v, t))
        return false;
    rx_buffers_add(&v->rx, &v->chain, room);
    for (unsigned n = 1; n < c->chains && v->rx.bytes < room && rx_buffers_has_room(&v->rx); n++)
        if (!vsock_add_buffer(v, room - v->rx.bytes, t))
            break;
    return true;
}

/* Gives back the buffers that `bytes` of payload fill, a packet each; returns how many. */
static unsigned push_data(struct vsock *v, struct vsock_conn *c, uint32_t bytes, struct turn *t)
{
    struct virtq *q = &v->dev.queues[QUEUE_RX];
    struct virtio_vsock_hdr h;
    unsigned used = 0;

    address(v, &h, c->host_port, c->guest_port);
    for (; bytes > 0; used++) {
        const uint32_t room = rx_buffers_next(&v->rx);
        const uint32_t part = bytes < room ? bytes : room;

        vsock_conn_tell(c, &h, VIRTIO_VSOCK_OP_RW, part);
        rx_buffers_put(&v->rx, 0, &h, sizeof(h));
        rx_buffers_give(&v->rx, q, part);
        bytes -= part;
    }
    if (used > 0) {
        virtq_publish(q);
        t->pushed |= 1u << QUEUE_RX;
    }
    return used;
}

/* One read from the host. False: there are no buffers. */
static bool send_data(struct vsock *v, struct vsock_conn *c, struct turn *t)
{
    uint32_t room, bytes;
    unsigned used;

    if (!vsock_gather(v, c, t))
        return false;
    room = v->rx.bytes;
    bytes = vsock_conn_read(c, &v->rx);
    used = push_data(v, c, bytes, t);
    rx_buffers_unpop(&v->rx, &v->dev.queues[QUEUE_RX]);
    vsock_conn_expect(c, used, bytes == room);
    vsock_spend(t, bytes);
    metric_add(&metrics.vsock.rx_packets_count, used);
    metric_add(&metrics.vsock.rx_bytes_count, bytes);
    return true;
}

/* One step for a connection. False: there are no buffers. */
static bool serve_conn(struct vsock *v, struct vsock_conn *c, struct turn *t)
{
    const uint16_t op = vsock_conn_next(c);

    if (op == VIRTIO_VSOCK_OP_INVALID) {
        vsock_table_end_turn(&v->table, c);
        vsock_conn_watch(c);
        vsock_spend(t, 0);
        return true;
    }
    if (!(op == VIRTIO_VSOCK_OP_RW ? send_data(v, c, t) : send_control(v, c, op, t)))
        return false;
    vsock_table_end_turn(&v->table, c);
    if (op == VIRTIO_VSOCK_OP_RST)
        vsock_table_detach(&v->table, c);
    else
        vsock_table_give_turn(&v->table, c); /* behind the others */
    return true;
}

/* Gives the guest what there is for it, as far as buffers and turn go. */
static void serve_guest(struct vsock *v, struct turn *t)
{
    struct vsock_conn *c;

    while (!vsock_turn_is_over(t)) {
        if (v->reset_count > 0) {
            if (!send_reset(v, t))
                return;
            continue;
        }
        c = TAILQ_FIRST(&v->table.turns);
        if (!c || !serve_conn(v, c, t))
            return;
    }
}

/* Ends a connection for the guest, telling it. */
static void reset_conn(struct vsock *v, struct vsock_conn *c)
{
    vsock_conn_end(c, true);
    vsock_table_stop_clock(&v->table, c);
    vsock_table_give_turn(&v->table, c);
}

static void report_socket(struct vsock *v, const char *what, int os_errno)
{
    log_limited(&v->trouble, LOG_ERROR, "vsock cannot %s: %s (os error %d)", what,
                os_error_text(os_errno), os_errno);
}

/* The guest makes a connection. That nobody serves the port, or is busy, is between it and them. */
static void take_request(struct vsock *v, const struct virtio_vsock_hdr *h)
{
    int fd = vsock_unix_connect(v->host.path, h->dst_port);
    struct vsock_conn *c = fd < 0 ? NULL : vsock_table_add(&v->table, fd);

    if (fd < 0 && fd != -ENOENT && fd != -ECONNREFUSED && fd != -EAGAIN)
        report_socket(v, "connect to a host's socket", -fd);
    if (!c) {
        owe_reset(v, h->dst_port, h->src_port);
        return;
    }
    c->state = VSOCK_OPEN;
    c->owed = OWED_RESPONSE;
    vsock_table_name(&v->table, c, h->dst_port, h->src_port);
    vsock_conn_take_credit(c, h->buf_alloc, h->fwd_cnt);
    vsock_table_give_turn(&v->table, c);
}

static void take_data(struct vsock *v, struct vsock_conn *c, uint32_t bytes)
{
    if (c->state != VSOCK_OPEN || c->guest_shut & VIRTIO_VSOCK_SHUTDOWN_SEND ||
        vsock_conn_take_data(c, &v->chain, bytes) < 0)
        reset_conn(v, c);
    metric_add(&metrics.vsock.tx_bytes_count, bytes);
}

static void take_reset(struct vsock *v, struct vsock_conn *c)
{
    vsock_conn_end(c, false);
    vsock_table_detach(&v->table, c);
}

/* A packet of a connection that there is. */
static void take_operation(struct vsock *v, struct vsock_conn *c, const struct virtio_vsock_hdr *h)
{
    if (h->op == VIRTIO_VSOCK_OP_RST) {
        take_reset(v, c);
        return;
    }
    if (c->state == VSOCK_OVER)
        return; /* it will hear of that */
    vsock_conn_take_credit(c, h->buf_alloc, h->fwd_cnt);
    switch (h->op) {
    case VIRTIO_VSOCK_OP_RW: take_data(v, c, h->len); break;
    case VIRTIO_VSOCK_OP_CREDIT_UPDATE: break;
    case VIRTIO_VSOCK_OP_CREDIT_REQUEST: c->owed |= OWED_CREDIT; break;
    case VIRTIO_VSOCK_OP_SHUTDOWN:
        if (c->state != VSOCK_OPEN || vsock_conn_take_shutdown(c, h->flags))
            reset_conn(v, c);
        break;
    case VIRTIO_VSOCK_OP_RESPONSE:
        if (c->state == VSOCK_REQUESTED) {
            vsock_table_stop_clock(&v->table, c);
            vsock_conn_accepted(c);
            break;
        }
        reset_conn(v, c);
        break;
    default: reset_conn(v, c);
    }
    vsock_conn_watch(c);
    if (vsock_conn_next(c) != VIRTIO_VSOCK_OP_INVALID)
        vsock_table_give_turn(&v->table, c);
}

/* Only streams, and only between this guest and this host (sections 5.10.4 and 5.10.6). */
static void take_packet(struct vsock *v)
{
    struct virtio_vsock_hdr h;
    struct vsock_conn *c;

    metric_inc(&metrics.vsock.tx_packets_count);
    if (chain_get(&v->chain, &h) < 0 || h.len > v->chain.readable || h.dst_cid != VMADDR_CID_HOST ||
        h.src_cid != v->config.guest_cid) {
        metric_inc(&metrics.vsock.tx_queue_event_fails);
        return;
    }
    c = vsock_table_find(&v->table, h.dst_port, h.src_port);
    if (h.type != VIRTIO_VSOCK_TYPE_STREAM)
        owe_reset(v, h.dst_port, h.src_port);
    else if (c)
        take_operation(v, c, &h);
    else if (h.op == VIRTIO_VSOCK_OP_REQUEST)
        take_request(v, &h);
    else if (h.op != VIRTIO_VSOCK_OP_RST)
        owe_reset(v, h.dst_port, h.src_port);
}

/* Takes what the guest sends, as far as the turn goes. Each packet leads to one answer to a
 * stranger at most, for which there must be room. */
static void take_packets(struct vsock *v, struct turn *t)
{
    v->is_stalled = false;
    while (!vsock_turn_is_over(t)) {
        if (v->reset_count == VSOCK_RESETS_MAX) {
            v->is_stalled = true;
            return;
        }
        if (!next_chain(v, QUEUE_TX, t))
            return;
        vsock_spend(t, v->chain.readable);
        take_packet(v);
        vsock_push(v, QUEUE_TX, t);
    }
}

/* Level-triggered: who connects before the driver is there waits in the backlog. */
static void listen_to_host(struct vsock *v, bool is_listening)
{
    if (is_listening && !v->is_listening)
        is_listening = loop_add(v->host.loop, &v->listening) == 0;
    else if (!is_listening && v->is_listening)
        loop_remove(v->host.loop, &v->listening);
    v->is_listening = is_listening;
}

static void forget_all(struct vsock *v)
{
    v->was_reset = false;
    v->is_stalled = false;
    v->reset_count = 0;
    vsock_table_clear(&v->table);
    listen_to_host(v, false);
}

/* Whether the guest may have packets: it hears before that its connections are gone. */
static bool hears_news(struct vsock *v, struct turn *t)
{
    const struct virtio_vsock_event event = { .id = VIRTIO_VSOCK_EVENT_TRANSPORT_RESET };
    struct virtq *q = &v->dev.queues[QUEUE_EVENT];

    if (v->news == VSOCK_TO_TELL && next_chain(v, QUEUE_EVENT, t)) {
        if (chain_put(&v->chain, &event) < 0)
            metric_inc(&metrics.vsock.ev_queue_event_fails);
        v->news = VSOCK_TOLD;
        v->offered = virtq_await(q);
        vsock_push(v, QUEUE_EVENT, t);
    }
    if (v->news == VSOCK_TOLD && virtq_offered(q) != v->offered)
        v->news = VSOCK_KNOWN;
    return v->news != VSOCK_TOLD;
}

static void end_expired(struct vsock *v)
{
    struct vsock_conn *c;

    v->is_time_up = false;
    while ((c = vsock_table_next_expired(&v->table))) {
        metric_inc(&metrics.vsock.conns_killed);
        reset_conn(v, c);
    }
}

/* Also where a socket has something for the guest, or time is up. A driver that gives buffers is
 * there for the host's connections. */
static bool vsock_serve(struct virtio_device *dev, unsigned queue)
{
    struct vsock *v = owner_of(dev, struct vsock, dev);
    struct turn in = { .bytes = TURN_BYTES,
                       .packets = TURN_PACKETS,
                       .descriptors = VIRTQ_TURN_DESCRIPTORS };
    struct turn out = in;
    bool may_take_more;

    vsock_table_go_on(&v->table);
    if (v->was_reset)
        forget_all(v);
    if (v->is_time_up)
        end_expired(v);
    if (queue == QUEUE_TX || v->is_stalled)
        take_packets(v, &out);
    if (v->news == VSOCK_KNOWN || hears_news(v, &in)) {
        if (queue != QUEUE_TX)
            listen_to_host(v, true);
        serve_guest(v, &in);
    }
    may_take_more = v->is_stalled && v->reset_count < VSOCK_RESETS_MAX;
    if (in.pushed | out.pushed)
        virtio_signal_queues(dev, in.pushed | out.pushed);
    if (in.is_broken || out.is_broken)
        virtio_needs_reset(dev, "a ring is malformed");
    return may_take_more || vsock_turn_is_over(&in) || vsock_turn_is_over(&out);
}

/* A host's command. It is answered when the guest has answered. */
static void take_command(struct vsock *v, struct vsock_conn *c)
{
    uint32_t port;
    int ret = vsock_unix_read_command(c->stream.fd, &c->command, &port);

    if (ret == -EAGAIN)
        return;
    if (ret < 0) {
        vsock_table_remove(&v->table, c);
        return;
    }
    vsock_table_set_idle(&v->table, c, false);
    c->state = VSOCK_REQUESTED;
    c->owed = OWED_REQUEST;
    vsock_table_name(&v->table, c, vsock_table_new_port(&v->table, port), port);
    vsock_table_start_clock(&v->table, c);
    vsock_table_give_turn(&v->table, c);
}

/* What the socket tells is noted; the device takes it up if it may. The connection may be gone
 * after each step. */
static void on_stream(struct loop_source *src, uint32_t ready)
{
    struct vsock_conn *c = owner_of(src, struct vsock_conn, stream);
    struct vsock *v = c->device;

    v->table.current = c;
    if (c->state == VSOCK_COMMAND)
        take_command(v, c);
    else
        vsock_conn_on_ready(c, ready);
    if (v->table.current && vsock_conn_is_done(c))
        vsock_table_remove(&v->table, c);
    if (v->table.current && vsock_conn_next(c) != VIRTIO_VSOCK_OP_INVALID) {
        vsock_table_give_turn(&v->table, c);
        virtio_serve(&v->dev, QUEUE_RX);
    }
    if (v->table.current)
        vsock_conn_watch(c);
    v->table.current = NULL;
}

/* How long to wait before asking a host again that is out of descriptors or memory. */
#define RETRY_MS 100

static void on_host(struct loop_source *src, uint32_t ready)
{
    struct vsock *v = owner_of(src, struct vsock, listening);

    (void)ready;
    for (unsigned i = 0; i < TURN_ACCEPTS; i++) {
        int fd = vsock_unix_accept(src->fd);
        struct vsock_conn *c;

        if (fd == -EAGAIN || fd == -ECONNABORTED || fd == -EINTR)
            return;
        if (fd < 0) {
            metric_inc(&metrics.vsock.muxer_event_fails);
            report_socket(v, "take a host's connection", -fd);
            listen_to_host(v, false);
            vsock_table_ring(&v->table, RETRY_MS);
            return;
        }
        c = vsock_table_add(&v->table, fd);
        if (c)
            vsock_table_set_idle(&v->table, c, true);
    }
}

/* Under the lock no reset comes in between; a driver that is not there has no connections. */
static void on_time(struct loop_source *src, uint32_t ready)
{
    struct vsock_table *t = owner_of(src, struct vsock_table, timer);
    struct vsock *v = owner_of(t, struct vsock, table);

    (void)ready;
    loop_drain(src->fd);
    virtio_lock(&v->dev);
    if (v->was_reset)
        forget_all(v);
    virtio_unlock(&v->dev);
    v->is_time_up = true;
    virtio_serve(&v->dev, QUEUE_RX);
}

/* Nothing is in flight between two turns; but the guest can't do what it has so much time for. */
static void vsock_drain(struct virtio_device *dev)
{
    vsock_table_stand(&owner_of(dev, struct vsock, dev)->table);
}

/* Connections belong to the loop's thread: it ends them, before it does anything else for the
 * device. */
static void vsock_reset(struct virtio_device *dev)
{
    struct vsock *v = owner_of(dev, struct vsock, dev);

    v->was_reset = true;
    v->news = VSOCK_KNOWN;
    vsock_table_ring(&v->table, 0);
}

static const struct virtio_ops vsock_ops = {
    .name = "vsock",
    .id = VIRTIO_ID_VSOCK,
    .queue_count = QUEUES,
    .serve = vsock_serve,
    .drain = vsock_drain,
    .reset = vsock_reset,
};

void vsock_restore(struct vsock *v, const struct vsock_state *state)
{
    v->table.state = *state;
    if (v->dev.queues[QUEUE_EVENT].mem)
        v->news = VSOCK_TO_TELL;
}

int vsock_init(struct vsock *v, const struct vsock_host *host, struct error *e)
{
    v->dev = (struct virtio_device){
        .ops = &vsock_ops,
        .offered = UINT64_C(1) << VIRTIO_F_VERSION_1 | UINT64_C(1) << VIRTIO_F_IN_ORDER |
                   UINT64_C(1) << VIRTIO_RING_F_EVENT_IDX,
        .config = &v->config,
        .config_bytes = sizeof(v->config),
        .activate_fails = &metrics.vsock.activate_fails,
        .cfg_fails = &metrics.vsock.cfg_fails,
        .notifications = { &metrics.vsock.rx_queue_event_count,
                           &metrics.vsock.tx_queue_event_count },
    };
    v->host = *host;
    v->config.guest_cid = host->guest_cid;
    v->rx.header_bytes = sizeof(struct virtio_vsock_hdr);
    v->listening = (struct loop_source){ host->listener, EPOLLIN, on_host };
    return vsock_table_init(&v->table, v, host->loop, on_stream, on_time, e);
}

void vsock_fini(struct vsock *v)
{
    if (v->is_listening)
        listen_to_host(v, false);
    vsock_table_fini(&v->table);
    v->is_listening = false;
}
