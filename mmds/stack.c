#include "mmds/stack.h"

#include <string.h>

#include "vmm/base/metrics.h"

/* A tick of the clock that numbers connections (RFC 9293, section 3.4.1). */
#define NUMBER_NS 4000u

_Static_assert(sizeof(struct mmds_stack) < MMDS_STACK_BYTES / 8, "most is for requests");

struct mmds_stack *mmds_stack_new(struct mmds_service *service, uint32_t ipv4)
{
    struct mmds_stack *s = calloc(1, sizeof(*s));

    BUG_ON(!s);
    s->address = (struct mmds_address){ { 0x06, 0x01, 0x23, 0x45, 0x67, 0x01 }, ipv4, 80 };
    s->service = service;
    s->budget.left = MMDS_STACK_BYTES - sizeof(*s) - MMDS_ALLOCATION_BYTES;
    s->is_quiet = true;
    return s;
}

void mmds_stack_free(struct mmds_stack *s)
{
    for (unsigned i = 0; s && i < MMDS_CONNECTIONS; i++)
        mmds_connection_close(&s->connections[i], &s->budget);
    free(s);
}

/* A reply too many is lost: the guest asks again. */
static struct mmds_reply *add_reply(struct mmds_stack *s, uint32_t remote)
{
    struct mmds_reply *r;

    if (s->replies_waiting == MMDS_REPLIES) {
        metric_inc(&metrics.mmds.tx_errors);
        return NULL;
    }
    r = &s->replies[(s->first_reply + s->replies_waiting++) % MMDS_REPLIES];
    *r = (struct mmds_reply){ .remote = remote };
    return r;
}

static void reply_arp(struct mmds_stack *s, const struct mmds_ends *ends)
{
    struct mmds_reply *r = add_reply(s, ends->remote);

    if (!r)
        return;
    r->is_arp = true;
    memcpy(r->mac, ends->remote_mac, sizeof(r->mac));
}

static void reply_reset(struct mmds_stack *s, uint32_t remote, uint16_t local_port,
                        const struct mmds_segment *segment)
{
    struct mmds_reply *r = add_reply(s, remote);

    if (!r)
        return;
    memcpy(r->mac, s->guest_mac, sizeof(r->mac));
    r->segment = *segment;
    r->segment.local_port = local_port;
}

/* To a segment that belongs to no connection (RFC 9293, section 3.5.2). */
static void refuse_segment(struct mmds_stack *s, uint32_t remote, const struct mmds_segment *in)
{
    const struct mmds_segment reset = {
        .remote_port = in->remote_port,
        .has_rst = true,
        .has_ack = !in->has_ack,
        .seq = in->has_ack ? in->ack : 0,
        .ack = in->has_ack ? 0 : in->seq + (uint32_t)in->bytes + in->has_syn + in->has_fin,
    };

    if (!in->has_rst)
        reply_reset(s, remote, in->local_port, &reset);
}

static void end_connection(struct mmds_stack *s, struct mmds_connection *c, enum mmds_outcome how)
{
    if (how == MMDS_RESET) {
        const struct mmds_segment reset = mmds_connection_reset(c);

        reply_reset(s, c->remote, s->address.port, &reset);
    }
    mmds_connection_close(c, &s->budget);
    metric_inc(&metrics.mmds.connections_destroyed);
}

static struct mmds_connection *find_connection(struct mmds_stack *s, uint32_t remote, uint16_t port)
{
    for (unsigned i = 0; i < MMDS_CONNECTIONS; i++) {
        struct mmds_connection *c = &s->connections[i];

        if (c->state != MMDS_UNUSED && c->remote == remote && c->remote_port == port)
            return c;
    }
    return NULL;
}

/* A place for a connection, which another may have to leave; NULL: all are at work. */
static struct mmds_connection *make_room(struct mmds_stack *s, uint64_t now_ns)
{
    struct mmds_connection *oldest = &s->connections[0];

    for (unsigned i = 0; i < MMDS_CONNECTIONS; i++) {
        struct mmds_connection *c = &s->connections[i];

        if (c->state == MMDS_UNUSED)
            return c;
        if (c->progress_ns < oldest->progress_ns)
            oldest = c;
    }
    if (now_ns - oldest->progress_ns < MMDS_IDLE_NS)
        return NULL;
    end_connection(s, oldest, MMDS_RESET);
    return oldest;
}

/* Flags of ECN are not looked at: who sends them connects without. */
static void accept_connection(struct mmds_stack *s, uint32_t remote, const struct mmds_segment *in,
                              uint64_t now_ns)
{
    const bool is_syn = in->has_syn && !in->has_ack && !in->has_fin && !in->has_rst;
    struct mmds_connection *c = is_syn ? make_room(s, now_ns) : NULL;

    if (!c) {
        metric_inc(&metrics.mmds.rx_accepted_unusual);
        refuse_segment(s, remote, in);
        return;
    }
    mmds_connection_open(c, in, remote, (uint32_t)(now_ns / NUMBER_NS), now_ns);
    metric_inc(&metrics.mmds.connections_created);
}

static void take_segment(struct mmds_stack *s, uint32_t remote, const struct mmds_segment *in,
                         uint64_t now_ns)
{
    struct mmds_connection *c;
    enum mmds_outcome how;

    if (in->local_port != s->address.port) {
        metric_inc(&metrics.mmds.rx_accepted_err);
        refuse_segment(s, remote, in);
        return;
    }
    metric_inc(&metrics.mmds.rx_count);
    c = find_connection(s, remote, in->remote_port);
    if (!c) {
        accept_connection(s, remote, in, now_ns);
        return;
    }
    how = mmds_connection_take(c, in, s->service, &s->budget, now_ns);
    if (how == MMDS_ODD)
        metric_inc(&metrics.mmds.rx_accepted_unusual);
    else if (how != MMDS_TAKEN)
        end_connection(s, c, how);
}

void mmds_stack_take(struct mmds_stack *s, const uint8_t *frame, size_t n, size_t bytes,
                     uint64_t now_ns)
{
    struct mmds_ends ends;
    struct mmds_segment segment;

    metric_inc(&metrics.mmds.rx_accepted);
    s->is_quiet = false;
    switch (mmds_frame_parse(frame, n, bytes, &ends, &segment)) {
    case MMDS_FRAME_BROKEN: metric_inc(&metrics.mmds.rx_bad_eth); break;
    case MMDS_FRAME_BROKEN_TCP: metric_inc(&metrics.mmds.rx_accepted_err); break;
    case MMDS_FRAME_OTHER: metric_inc(&metrics.mmds.rx_accepted_unusual); break;
    case MMDS_FRAME_ARP_REQUEST:
        memcpy(s->guest_mac, ends.remote_mac, sizeof(s->guest_mac));
        reply_arp(s, &ends);
        break;
    case MMDS_FRAME_TCP:
        memcpy(s->guest_mac, ends.remote_mac, sizeof(s->guest_mac));
        take_segment(s, ends.remote, &segment, now_ns);
        break;
    }
}

static void put_frame(const struct mmds_stack *s, const uint8_t *mac, uint32_t remote,
                      const struct mmds_segment *segment, struct mmds_frame *out)
{
    struct mmds_ends ends = { .local = s->address.ipv4, .remote = remote };

    memcpy(ends.local_mac, s->address.mac, sizeof(ends.local_mac));
    memcpy(ends.remote_mac, mac, sizeof(ends.remote_mac));
    out->header_bytes = segment ? mmds_frame_tcp(out->headers, &ends, segment)
                                : mmds_frame_arp_reply(out->headers, &ends);
    out->payload = segment ? segment->payload : NULL;
    out->bytes = segment ? segment->bytes : 0;
    metric_inc(&metrics.mmds.tx_count);
}

static bool next_of_connection(struct mmds_stack *s, struct mmds_connection *c, size_t room,
                               uint64_t now_ns, struct mmds_frame *out)
{
    struct mmds_segment segment;

    if (c->state == MMDS_UNUSED)
        return false;
    if (mmds_connection_expire(c, now_ns) == MMDS_RESET) {
        end_connection(s, c, MMDS_RESET);
        return false;
    }
    if (!mmds_connection_next(c, room, now_ns, &segment))
        return false;
    segment.local_port = s->address.port;
    put_frame(s, s->guest_mac, c->remote, &segment, out);
    if (mmds_connection_is_over(c))
        end_connection(s, c, MMDS_ENDED);
    return true;
}

static bool next_reply(struct mmds_stack *s, struct mmds_frame *out)
{
    const struct mmds_reply *r = &s->replies[s->first_reply];

    if (s->replies_waiting == 0)
        return false;
    s->first_reply = (s->first_reply + 1) % MMDS_REPLIES;
    s->replies_waiting--;
    put_frame(s, r->mac, r->remote, r->is_arp ? NULL : &r->segment, out);
    return true;
}

bool mmds_stack_next(struct mmds_stack *s, size_t room, uint64_t now_ns, struct mmds_frame *out)
{
    if (next_reply(s, out))
        return true;
    for (unsigned i = 0; i < MMDS_CONNECTIONS; i++) {
        s->turn = (s->turn + 1) % MMDS_CONNECTIONS;
        if (next_of_connection(s, &s->connections[s->turn], room - MMDS_HEADERS_MAX, now_ns, out))
            return true;
    }
    if (next_reply(s, out)) /* to one whose time was up */
        return true;
    s->is_quiet = true;
    return false;
}

uint64_t mmds_stack_deadline(const struct mmds_stack *s)
{
    uint64_t deadline_ns = 0;

    for (unsigned i = 0; i < MMDS_CONNECTIONS; i++) {
        const struct mmds_connection *c = &s->connections[i];

        if (c->state != MMDS_UNUSED && c->deadline_ns != 0 &&
            (deadline_ns == 0 || c->deadline_ns < deadline_ns))
            deadline_ns = c->deadline_ns;
    }
    return deadline_ns;
}
