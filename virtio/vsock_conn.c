#include "virtio/vsock_conn.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "vmm/base/metrics.h"

struct vsock_conn *vsock_conn_new(struct vsock *device, struct loop *loop, int fd,
                                  loop_fn *on_ready, struct vsock_total *total)
{
    struct vsock_conn *c = calloc(1, sizeof(*c));

    BUG_ON(!c);
    c->device = device;
    c->loop = loop;
    c->stream = (struct loop_source){ fd, EPOLLIN, on_ready };
    c->total = total;
    c->window = VSOCK_WINDOW_BYTES;
    c->chains = 1;
    vsock_unix_set_room(fd, false);
    if (loop_add(loop, &c->stream) == 0)
        return c;
    close(fd);
    free(c);
    return NULL;
}

static void drop_held(struct vsock_conn *c)
{
    if (c->held)
        c->total->held -= c->window;
    c->held_bytes = 0;
    free(c->held);
    c->held = NULL;
}

static void close_stream(struct vsock_conn *c)
{
    drop_held(c);
    if (c->stream.fd < 0)
        return;
    loop_remove(c->loop, &c->stream);
    close(c->stream.fd);
    c->stream.fd = -1;
    c->total->wide -= c->is_wide;
}

void vsock_conn_free(struct vsock_conn *c)
{
    close_stream(c);
    free(c);
}

/* The guest wants what the host sends. */
static bool wants_input(const struct vsock_conn *c)
{
    return c->state == VSOCK_OPEN && !(c->guest_shut & VIRTIO_VSOCK_SHUTDOWN_RCV) &&
           !(c->host_shut & VIRTIO_VSOCK_SHUTDOWN_SEND);
}

/* Level-triggered for what is to be done at once. Otherwise edge-triggered, to hear once that the
 * host has gone: that is always reported, and would be again and again. */
void vsock_conn_watch(struct vsock_conn *c)
{
    uint32_t want = 0;

    if (c->stream.fd < 0)
        return;
    if (c->state == VSOCK_COMMAND || (wants_input(c) && !c->is_readable))
        want |= EPOLLIN;
    if (c->held_bytes > 0)
        want |= EPOLLOUT;
    if (!want)
        want = EPOLLET;
    if (want != c->stream.want)
        loop_want(c->loop, &c->stream, want);
}

/* The host takes no more: what is on its way, and what is yet to come, is dropped. */
static void stop_output(struct vsock_conn *c)
{
    c->passed += c->held_bytes;
    drop_held(c);
    c->is_deaf = true;
    c->host_shut |= VIRTIO_VSOCK_SHUTDOWN_RCV;
}

/* The host has all that it gets for now. */
static void end_output(struct vsock_conn *c)
{
    if (c->state == VSOCK_OVER)
        close_stream(c);
    else if (c->guest_shut & VIRTIO_VSOCK_SHUTDOWN_SEND)
        shutdown(c->stream.fd, SHUT_WR);
}

/* The guest is told of room when half of its window would be used up by then, and when the window
 * has become larger. */
static void note_passed(struct vsock_conn *c)
{
    const bool is_due =
        c->passed != c->passed_told && c->from_guest - c->passed_told >= c->window / 2;

    if (c->state == VSOCK_OPEN && (is_due || c->window != c->window_told))
        c->owed |= OWED_CREDIT;
}

/* The host has read, and more than its socket takes at once is there for it. */
static void widen(struct vsock_conn *c)
{
    if (c->is_wide || c->total->wide == VSOCK_WIDE_MAX)
        return;
    c->is_wide = true;
    c->total->wide++;
    vsock_unix_set_room(c->stream.fd, true);
}

/* Gives the host what was held back. */
static void vsock_conn_flush(struct vsock_conn *c)
{
    const uint32_t to_end = c->window - c->held_at;
    const uint32_t first = c->held_bytes < to_end ? c->held_bytes : to_end;
    const struct iovec iov[] = { { c->held + c->held_at, first },
                                 { c->held, c->held_bytes - first } };
    ssize_t sent;

    widen(c);
    sent = writev(c->stream.fd, iov, 2);
    if (sent < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (sent < 0) {
        metric_inc(&metrics.vsock.tx_flush_fails);
        stop_output(c);
    } else {
        c->held_at = (c->held_at + (uint32_t)sent) % c->window;
        c->held_bytes -= (uint32_t)sent;
        c->passed += (uint32_t)sent;
    }
    if (c->held_bytes == 0) {
        drop_held(c);
        if (c->is_wide)
            c->window = VSOCK_WIDE_WINDOW_BYTES;
        end_output(c);
    }
    note_passed(c);
}

void vsock_conn_on_ready(struct vsock_conn *c, uint32_t ready)
{
    if (ready & (EPOLLOUT | EPOLLHUP | EPOLLERR) && c->held_bytes > 0)
        vsock_conn_flush(c);
    if (c->state == VSOCK_REQUESTED && ready & EPOLLHUP)
        vsock_conn_end(c, true);
    if (c->state != VSOCK_OPEN)
        return;
    if (ready & (EPOLLIN | EPOLLHUP | EPOLLERR))
        c->is_readable = true;
    if (ready & EPOLLHUP && !wants_input(c))
        c->host_shut = VSOCK_SHUTDOWN_BOTH;
}

void vsock_conn_accepted(struct vsock_conn *c)
{
    char line[sizeof("OK 4294967295\n")];
    int n = snprintf(line, sizeof(line), "OK %u\n", c->host_port);

    c->state = VSOCK_OPEN;
    /* The first bytes on the socket: there is room, or nobody is there any more. A host that has
     * not heard the answer would wait for ever. */
    if (write(c->stream.fd, line, (size_t)n) != n) {
        metric_inc(&metrics.vsock.tx_write_fails);
        vsock_conn_end(c, true);
    }
}

void vsock_conn_take_credit(struct vsock_conn *c, uint32_t window, uint32_t passed)
{
    c->guest_window = window;
    c->guest_passed = passed;
    if (vsock_conn_room(c) > 0)
        c->has_asked = false;
}

/* What is on its way counts as the guest says it does; one that says nonsense gets nothing. */
uint32_t vsock_conn_room(const struct vsock_conn *c)
{
    uint32_t on_its_way = c->to_guest - c->guest_passed;

    return on_its_way < c->guest_window ? c->guest_window - on_its_way : 0;
}

static int vsock_conn_hold(struct vsock_conn *c, struct chain *chain, uint32_t n)
{
    uint32_t at, first;

    if (n > c->window - c->held_bytes)
        return -1;
    if (!c->held) {
        if (c->window > VSOCK_HELD_MAX - c->total->held)
            return -1;
        c->held = malloc(c->window);
        BUG_ON(!c->held);
        c->held_at = 0;
        c->total->held += c->window;
    }
    at = (c->held_at + c->held_bytes) % c->window;
    first = n < c->window - at ? n : c->window - at;
    if (chain_read_(chain, c->held + at, first) < 0 || chain_read_(chain, c->held, n - first) < 0)
        BUG_ON(true); /* the caller has seen that the chain is that long */
    c->held_bytes += n;
    return 0;
}

int vsock_conn_take_data(struct vsock_conn *c, struct chain *chain, uint32_t n)
{
    ssize_t sent = 0;

    c->from_guest += n;
    if (c->held_bytes == 0 && !c->is_deaf) {
        sent = chain_send(chain, c->stream.fd, n);
        if (sent == -EAGAIN)
            sent = 0;
        if (sent < 0) {
            metric_inc(&metrics.vsock.tx_write_fails);
            stop_output(c);
        }
    }
    if (c->is_deaf) {
        c->passed = c->from_guest;
        return 0;
    }
    c->passed += (uint32_t)sent;
    note_passed(c);
    return (uint32_t)sent < n ? vsock_conn_hold(c, chain, n - (uint32_t)sent) : 0;
}

bool vsock_conn_take_shutdown(struct vsock_conn *c, uint32_t flags)
{
    c->guest_shut |= flags & VSOCK_SHUTDOWN_BOTH;
    if (c->guest_shut == VSOCK_SHUTDOWN_BOTH)
        return true;
    if (c->guest_shut & VIRTIO_VSOCK_SHUTDOWN_RCV)
        shutdown(c->stream.fd, SHUT_RD);
    if (c->held_bytes == 0)
        end_output(c);
    return false;
}

void vsock_conn_end(struct vsock_conn *c, bool must_tell)
{
    c->state = VSOCK_OVER;
    c->owed = must_tell ? OWED_RESET : 0;
    if (c->held_bytes == 0)
        close_stream(c);
}

bool vsock_conn_is_done(const struct vsock_conn *c)
{
    return c->state == VSOCK_OVER && !c->owed && c->held_bytes == 0;
}

uint16_t vsock_conn_next(const struct vsock_conn *c)
{
    if (c->owed & OWED_RESET)
        return VIRTIO_VSOCK_OP_RST;
    if (c->owed & OWED_REQUEST)
        return VIRTIO_VSOCK_OP_REQUEST;
    if (c->owed & OWED_RESPONSE)
        return VIRTIO_VSOCK_OP_RESPONSE;
    if (c->state != VSOCK_OPEN)
        return VIRTIO_VSOCK_OP_INVALID;
    if (c->is_readable && wants_input(c) && (vsock_conn_room(c) > 0 || !c->has_asked))
        return vsock_conn_room(c) > 0 ? VIRTIO_VSOCK_OP_RW : VIRTIO_VSOCK_OP_CREDIT_REQUEST;
    if (c->host_shut & ~c->host_shut_told)
        return VIRTIO_VSOCK_OP_SHUTDOWN;
    if (c->owed & OWED_CREDIT)
        return VIRTIO_VSOCK_OP_CREDIT_UPDATE;
    return VIRTIO_VSOCK_OP_INVALID;
}

/* The host sends no more. Where it takes no more either, it has gone. */
static void end_input(struct vsock_conn *c)
{
    struct pollfd p = { .fd = c->stream.fd };

    c->host_shut |= VIRTIO_VSOCK_SHUTDOWN_SEND;
    if (poll(&p, 1, 0) == 1 && p.revents & POLLHUP)
        c->host_shut = VSOCK_SHUTDOWN_BOTH;
}

uint32_t vsock_conn_read(struct vsock_conn *c, const struct rx_buffers *buffers)
{
    ssize_t got = rx_buffers_read(buffers, c->stream.fd);

    if (got > 0) {
        /* What is left is reported again: the source is level-triggered. */
        c->is_readable = (uint32_t)got == buffers->bytes;
        return (uint32_t)got;
    }
    c->is_readable = false;
    if (got == -EAGAIN)
        return 0;
    if (got < 0)
        metric_inc(&metrics.vsock.rx_read_fails);
    end_input(c);
    return 0;
}

/* A chain that is popped in vain costs some hundred instructions, a read more a thousand. */
void vsock_conn_expect(struct vsock_conn *c, unsigned used, bool was_filled)
{
    const unsigned less = c->chains - (c->chains + 3) / 4;

    if (was_filled)
        c->chains = c->chains < VSOCK_READ_CHAINS / 2 ? 2 * c->chains : VSOCK_READ_CHAINS;
    else if (used > 0)
        c->chains = used > less ? used : less;
}

void vsock_conn_tell(struct vsock_conn *c, struct virtio_vsock_hdr *h, uint16_t op, uint32_t bytes)
{
    h->op = op;
    h->len = bytes;
    h->type = VIRTIO_VSOCK_TYPE_STREAM;
    h->flags = 0;
    h->buf_alloc = c->window;
    h->fwd_cnt = c->passed;
    c->passed_told = c->passed;
    c->window_told = c->window;
    c->to_guest += bytes;
    c->owed &= ~(unsigned)OWED_CREDIT;
    switch (op) {
    case VIRTIO_VSOCK_OP_RST: c->owed &= ~(unsigned)OWED_RESET; break;
    case VIRTIO_VSOCK_OP_REQUEST: c->owed &= ~(unsigned)OWED_REQUEST; break;
    case VIRTIO_VSOCK_OP_RESPONSE: c->owed &= ~(unsigned)OWED_RESPONSE; break;
    case VIRTIO_VSOCK_OP_SHUTDOWN: h->flags = c->host_shut_told = c->host_shut; break;
    case VIRTIO_VSOCK_OP_CREDIT_REQUEST: c->has_asked = true; break;
    default: break;
    }
}
