#include "tests/unit/support/vsock_guest.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/timerfd.h>

#include "tests/unit/support/lock.h"
#include "vmm/base/metrics.h"

#define RCV  VIRTIO_VSOCK_SHUTDOWN_RCV
#define SEND VIRTIO_VSOCK_SHUTDOWN_SEND

static void set_up(void)
{
    signal(SIGPIPE, SIG_IGN);
    guest_init();
    guest_give(RX_SLOTS);
}

TestSuite(vsock, .init = set_up, .fini = guest_fini);

static uint8_t buffer[VSOCK_WINDOW_BYTES + 65536];

static void host_send(int fd, const void *data, size_t n)
{
    cr_assert_eq(write(fd, data, n), (ssize_t)n);
}

/* Reads all that comes, and its end: how many bytes. */
static size_t host_drain(int fd)
{
    size_t total = 0;
    ssize_t n;

    while ((n = host_read(fd, buffer, sizeof(buffer))) > 0)
        total += (size_t)n;
    cr_expect_eq(n, 0, "the end");
    return total;
}

static void expect_closed(int fd)
{
    char byte;

    cr_expect_eq(host_read(fd, &byte, 1), 0);
}

Test(vsock, carries_bytes_both_ways_on_a_connection_of_the_host)
{
    struct stream s = open_from_host(52);
    struct packet p;
    char got[8];

    cr_expect_geq(s.host_port, 1u << 30);
    host_send(s.fd, "ping", 4);
    p = guest_expect(VIRTIO_VSOCK_OP_RW);
    cr_expect_eq(p.h.src_port, s.host_port);
    cr_expect_eq(p.h.dst_port, 52);
    cr_expect_eq(p.h.len, 4);
    cr_expect_arr_eq(p.data, "ping", 4);
    guest_send(52, s.host_port, "pong!", 5);
    cr_assert_eq(host_read(s.fd, got, sizeof(got)), 5);
    cr_expect_arr_eq(got, "pong!", 5);
}

Test(vsock, understands_a_command_that_comes_in_pieces)
{
    static const char *const pieces[] = { "CONNECT", " 5", "2", "\nmore" };
    int fd = host_socket(g.path, false);
    uint32_t host_port;

    for (unsigned i = 0; i < 4; i++) {
        guest_expect_nothing();
        cr_assert_eq(write(fd, pieces[i], strlen(pieces[i])), (ssize_t)strlen(pieces[i]));
    }
    host_port = guest_expect(VIRTIO_VSOCK_OP_REQUEST).h.src_port;
    guest_say(52, host_port, VIRTIO_VSOCK_OP_RESPONSE, 0);
    cr_expect_arr_eq(guest_expect(VIRTIO_VSOCK_OP_RW).data, "more", 4);
    close(fd);
}

Test(vsock, carries_bytes_both_ways_on_a_connection_of_the_guest)
{
    struct stream s = open_from_guest(1000);
    char got[8];

    guest_send(s.port, 1, "hello", 5);
    cr_assert_eq(host_read(s.fd, got, sizeof(got)), 5);
    cr_expect_arr_eq(got, "hello", 5);
    host_send(s.fd, "you", 3);
    cr_expect_arr_eq(guest_expect(VIRTIO_VSOCK_OP_RW).data, "you", 3);
}

Test(vsock, resets_a_request_for_a_port_that_nobody_serves)
{
    struct packet p;

    guest_say(1000, 2, VIRTIO_VSOCK_OP_REQUEST, 0);
    p = guest_expect(VIRTIO_VSOCK_OP_RST);
    cr_expect_eq(p.h.src_port, 2);
    cr_expect_eq(p.h.dst_port, 1000);
}

Test(vsock, fills_many_buffers_with_one_stream_and_keeps_the_order)
{
    struct stream s = open_from_host(52);
    uint8_t sent[40000];
    size_t have = 0;

    for (unsigned i = 0; i < sizeof(sent); i++)
        sent[i] = (uint8_t)(i * 7 + i / 251);
    host_send(s.fd, sent, sizeof(sent));
    while (have < sizeof(sent)) {
        struct packet p = guest_expect(VIRTIO_VSOCK_OP_RW);

        cr_assert_leq(p.h.len, sizeof(sent) - have);
        cr_expect_arr_eq(p.data, sent + have, p.h.len);
        have += p.h.len;
    }
    guest_expect_nothing();
}

/* As where a turn has read all that there was when it had no time to see that. */
Test(vsock, does_not_interrupt_a_guest_for_a_read_that_finds_nothing)
{
    struct stream s = open_from_host(52);
    struct vsock_conn *c = vsock_table_find(&g.v.table, s.host_port, 52);
    const uint16_t used = ring_used_idx(rx);

    driver_interrupts(&g.d);
    c->stream.on_ready(&c->stream, EPOLLIN);
    turn();
    cr_expect_not(c->is_readable);
    cr_expect_eq(driver_interrupts(&g.d), 0);
    cr_expect_eq(ring_used_idx(rx), used);
    host_send(s.fd, "ping", 4);
    guest_expect(VIRTIO_VSOCK_OP_RW);
    cr_expect_eq(driver_interrupts(&g.d), 1);
}

Test(vsock, puts_header_and_data_into_buffers_however_they_are_cut)
{
    struct stream s = open_from_host(52);
    uint8_t sent[1000], bytes[sizeof(struct virtio_vsock_hdr) + sizeof(sent)];
    const uint64_t at = 0x90000;

    for (unsigned i = 0; i < sizeof(sent); i++)
        sent[i] = (uint8_t)(i * 3);
    /* The buffers of before are used up first. */
    for (unsigned i = 1; i < RX_SLOTS; i++) {
        host_send(s.fd, "x", 1);
        guest_expect(VIRTIO_VSOCK_OP_RW);
    }
    host_send(s.fd, sent, sizeof(sent));
    guest_expect_nothing();
    for (uint16_t i = 0; i < 30; i++) /* 3, 1, 7, ... bytes each, the last one takes the rest */
        ring_buffer(rx, i, at + i * 64u, i == 29 ? 4000 : 1 + i * 5 % 9,
                    i == 29 ? VRING_DESC_F_WRITE : VRING_DESC_F_WRITE | VRING_DESC_F_NEXT);
    ring_offer(rx, 0);
    guest_kick(0);
    turn();
    cr_assert_eq(ring_used_idx(rx), RX_SLOTS + 1);
    for (unsigned i = 0, have = 0; i < 30; i++) {
        uint32_t n = i == 29 ? sizeof(bytes) - have : 1 + i * 5 % 9;

        cr_assert_eq(gmem_read_(&g.d.mem, gpa(at + i * 64u), bytes + have, n), 0);
        have += n;
    }
    cr_expect_eq(((struct virtio_vsock_hdr *)bytes)->len, sizeof(sent));
    cr_expect_arr_eq(bytes + sizeof(struct virtio_vsock_hdr), sent, sizeof(sent));
}

Test(vsock, counts_the_guest_s_notifications_and_faults)
{
    struct vsock_metrics *m = &metrics.vsock;
    struct stream s = open_from_host(52);
    const uint64_t rx_before = metric_get(&m->rx_queue_event_count);
    const uint64_t tx_before = metric_get(&m->tx_queue_event_count);

    host_send(s.fd, "x", 1);
    guest_expect(VIRTIO_VSOCK_OP_RW);
    g.v.table.timer.on_ready(&g.v.table.timer, EPOLLIN);
    cr_expect_eq(metric_get(&m->rx_queue_event_count), rx_before,
                 "neither a socket's nor the timer's");
    guest_give(1);
    guest_send(52, s.host_port, "y", 1);
    cr_expect_eq(metric_get(&m->rx_queue_event_count), rx_before + 1);
    cr_expect_eq(metric_get(&m->tx_queue_event_count), tx_before + 1);
    reg_write(&g.d, VIRTIO_MMIO_CONFIG, 1);
    cr_expect_eq(metric_get(&m->cfg_fails), 1);
}

Test(vsock, goes_on_in_the_place_of_one_that_was_saved)
{
    const uint32_t port = open_from_host(52).host_port;
    struct virtio_mmio_state saved, again;
    const struct vsock_state state = g.v.table.state;
    const struct vsock_host host = g.v.host;
    struct error e;

    virtio_mmio_pause(&g.d.transport);
    virtio_mmio_get_state(&g.d.transport, &saved);
    vsock_fini(&g.v);
    g.v = (struct vsock){ 0 };
    cr_assert_eq(vsock_init(&g.v, &host, &e), 0, "%s", e.msg);
    g.v.table.state = state;
    driver_restore(&g.d, &g.v.dev, &saved);
    virtio_mmio_get_state(&g.d.transport, &again);
    cr_expect_arr_eq(&again, &saved, sizeof(saved));
    virtio_mmio_resume(&g.d.transport);
    turn();
    cr_expect_eq(open_from_host(52).host_port, port + 1, "no port is used twice in a row");
}

Test(vsock, counts_an_activation_that_fails)
{
    struct ring nowhere = *rx;

    nowhere.desc = UINT64_C(1) << 40;
    reg_write(&g.d, VIRTIO_MMIO_STATUS, 0);
    cr_assert(driver_negotiate(&g.d, offered_features(&g.d)));
    driver_set_queue(&g.d, &nowhere);
    driver_ok(&g.d);
    cr_expect(reg_read(&g.d, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET);
    cr_expect_eq(metric_get(&metrics.vsock.activate_fails), 1);
}

/* Takes data packets until there are none; how many bytes. */
static size_t take_data(void)
{
    struct packet p;
    size_t total = 0;

    while (guest_take(&p)) {
        if (p.h.op != VIRTIO_VSOCK_OP_RW)
            continue;
        total += p.h.len;
        guest_give(1);
    }
    return total;
}

Test(vsock, sends_no_more_than_the_guest_s_window_and_asks_once)
{
    struct stream s = open_from_host(52);
    struct virtio_vsock_hdr h = guest_header(52, s.host_port, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0);

    host_send(s.fd, buffer, 2 * WINDOW);
    cr_expect_eq(take_data(), WINDOW);
    h.fwd_cnt = 1000;
    guest_send_raw(&h, NULL, 0);
    cr_expect_eq(take_data(), 1000);
    h.fwd_cnt = WINDOW + 1000 + 5; /* more than was sent: nonsense */
    guest_send_raw(&h, NULL, 0);
    cr_expect_eq(take_data(), 0);
    h.fwd_cnt = WINDOW + 1000;
    guest_send_raw(&h, NULL, 0);
    cr_expect_eq(take_data(), WINDOW - 1000);
}

Test(vsock, asks_for_credit_when_there_is_none)
{
    struct stream s = open_from_host(52);
    struct virtio_vsock_hdr h = guest_header(52, s.host_port, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0);

    h.buf_alloc = 0;
    guest_send_raw(&h, NULL, 0);
    host_send(s.fd, "x", 1);
    guest_expect(VIRTIO_VSOCK_OP_CREDIT_REQUEST);
    guest_send_raw(&h, NULL, 0);
    guest_expect_nothing();
    h.buf_alloc = 1;
    guest_send_raw(&h, NULL, 0);
    guest_expect(VIRTIO_VSOCK_OP_RW);
}

/* What the guest has sent on a stream, and knows of the host. */
struct upload {
    struct stream s;
    uint32_t sent, taken, window, read;
};

static uint8_t upload_byte(uint32_t at)
{
    return (uint8_t)(at / 1000 * 7 + at);
}

static void upload_take_credit(struct upload *u)
{
    struct packet p;

    while (guest_take(&p)) {
        cr_assert_eq(p.h.op, VIRTIO_VSOCK_OP_CREDIT_UPDATE);
        u->taken = p.h.fwd_cnt;
        u->window = p.h.buf_alloc;
        guest_give(1);
    }
}

static struct upload open_upload(uint32_t port)
{
    struct upload u = { .s = open_from_host(port) };

    guest_say(port, u.s.host_port, VIRTIO_VSOCK_OP_CREDIT_REQUEST, 0);
    upload_take_credit(&u);
    return u;
}

static void upload_send(struct upload *u, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        buffer[i] = upload_byte(u->sent + i);
    guest_send(u->s.port, u->s.host_port, buffer, n);
    u->sent += n;
    upload_take_credit(u);
}

/* All that the window allows, while the host reads nothing. */
static void upload_fill(struct upload *u)
{
    uint32_t room;

    while ((room = u->window - (u->sent - u->taken)) > 0)
        upload_send(u, room < 65536 ? room : 65536);
}

static void upload_read(struct upload *u)
{
    static uint8_t got[65536];
    ssize_t n;

    while ((n = host_read(u->s.fd, got, sizeof(got))) > 0)
        for (ssize_t i = 0; i < n; i++)
            cr_assert_eq(got[i], upload_byte(u->read++));
    cr_assert_eq(u->read, u->sent);
    upload_take_credit(u);
}

/* Has more for a host that reads than its socket takes at once. */
static struct upload open_wide_upload(uint32_t port)
{
    struct upload u = open_upload(port);

    upload_send(&u, 65536);
    upload_read(&u);
    return u;
}

Test(vsock, tells_the_guest_what_the_host_has_taken)
{
    struct upload u = open_upload(52);
    unsigned packets = 0;

    cr_expect_eq(u.window, VSOCK_WINDOW_BYTES);
    cr_expect_eq(u.taken, 0);
    for (; u.taken == 0; packets++) {
        upload_send(&u, 6000);
        upload_read(&u);
    }
    cr_expect_eq(u.taken, u.sent);
    cr_expect_eq(packets, VSOCK_WINDOW_BYTES / 2 / 6000 + 1, "when half of the window is used up");
    cr_expect_eq(u.window, VSOCK_WINDOW_BYTES, "packets that fit make no connection wide");
}

Test(vsock, holds_what_a_host_does_not_read_as_far_as_the_window_and_no_further)
{
    struct upload u = open_upload(52);

    upload_fill(&u);
    cr_expect_eq(g.v.table.total.held, VSOCK_WINDOW_BYTES);
    upload_read(&u);
    cr_expect_eq(g.v.table.total.held, 0);
    cr_expect_geq(u.taken, u.sent - VSOCK_WINDOW_BYTES / 2);
}

Test(vsock, gives_more_room_where_the_host_reads)
{
    struct upload u = open_wide_upload(52);

    cr_expect_eq(u.window, VSOCK_WIDE_WINDOW_BYTES);
    cr_expect_eq(g.v.table.total.wide, 1);
    for (unsigned i = 0; i < 3; i++) {
        upload_fill(&u);
        cr_expect_eq(g.v.table.total.held, VSOCK_WIDE_WINDOW_BYTES);
        upload_read(&u);
        cr_expect_eq(g.v.table.total.held, 0);
        cr_expect_geq(u.taken, u.sent - VSOCK_WIDE_WINDOW_BYTES / 2);
    }
    guest_say(52, u.s.host_port, VIRTIO_VSOCK_OP_RST, 0);
    cr_expect_eq(g.v.table.total.wide, 0);
}

Test(vsock, gives_more_room_to_so_many_and_to_others_when_they_have_gone)
{
    struct upload u;

    for (uint32_t i = 0; i < VSOCK_WIDE_MAX; i++) {
        u = open_wide_upload(100 + i);
        cr_expect_eq(u.window, VSOCK_WIDE_WINDOW_BYTES);
    }
    u = open_wide_upload(52);
    cr_expect_eq(u.window, VSOCK_WINDOW_BYTES);
    cr_expect_eq(g.v.table.total.wide, VSOCK_WIDE_MAX);
    guest_say(100, 1u << 30, VIRTIO_VSOCK_OP_RST, 0);
    upload_send(&u, 65536 - (u.sent - u.taken));
    upload_read(&u);
    cr_expect_eq(u.window, VSOCK_WIDE_WINDOW_BYTES);
}

Test(vsock, resets_a_guest_that_sends_more_than_its_window)
{
    struct upload u = open_upload(52);

    upload_fill(&u);
    guest_send(52, u.s.host_port, buffer, 65536);
    guest_expect(VIRTIO_VSOCK_OP_RST);
    cr_expect_eq(g.v.table.total.held, VSOCK_WINDOW_BYTES);
    cr_expect_eq(host_drain(u.s.fd), u.sent, "what was held still arrives");
    cr_expect_eq(g.v.table.count, 0);
    cr_expect_eq(g.v.table.total.held, 0);
}

/* What it sends is dropped, and counted as taken: it would wait for ever otherwise. */
Test(vsock, a_guest_that_sends_to_a_host_that_is_deaf_gets_credit)
{
    struct upload u = open_upload(52);

    shutdown(u.s.fd, SHUT_RD);
    for (unsigned i = 0; i < 8; i++) {
        struct packet p;

        guest_send(52, u.s.host_port, buffer, 65536);
        while (guest_take(&p)) {
            cr_assert(p.h.op == VIRTIO_VSOCK_OP_CREDIT_UPDATE || p.h.op == VIRTIO_VSOCK_OP_SHUTDOWN,
                      "operation %u", p.h.op);
            u.taken = p.h.fwd_cnt;
        }
        guest_say(52, u.s.host_port, VIRTIO_VSOCK_OP_CREDIT_REQUEST, 0);
        u.taken = guest_expect(VIRTIO_VSOCK_OP_CREDIT_UPDATE).h.fwd_cnt;
        cr_expect_eq(u.taken, 65536 * (i + 1));
    }
}

/* How connections end. */

Test(vsock, a_host_that_closes_shuts_both_ways_and_the_guest_s_reset_ends_it)
{
    struct stream s = open_from_host(52);

    close(s.fd);
    cr_expect_eq(guest_expect(VIRTIO_VSOCK_OP_SHUTDOWN).h.flags, RCV | SEND);
    guest_say(52, s.host_port, VIRTIO_VSOCK_OP_RST, 0);
    guest_expect_nothing();
    cr_expect_eq(g.v.table.count, 0);
}

Test(vsock, a_host_that_closes_after_its_last_bytes_has_them_delivered_first)
{
    struct stream s = open_from_host(52);

    host_send(s.fd, "last", 4);
    close(s.fd);
    cr_expect_arr_eq(guest_expect(VIRTIO_VSOCK_OP_RW).data, "last", 4);
    cr_expect_eq(guest_expect(VIRTIO_VSOCK_OP_SHUTDOWN).h.flags, RCV | SEND);
}

Test(vsock, a_host_that_has_sent_all_still_receives)
{
    struct stream s = open_from_host(52);
    char got[8];

    shutdown(s.fd, SHUT_WR);
    cr_expect_eq(guest_expect(VIRTIO_VSOCK_OP_SHUTDOWN).h.flags, SEND);
    guest_send(52, s.host_port, "answer", 6);
    cr_assert_eq(host_read(s.fd, got, sizeof(got)), 6);
    close(s.fd);
    cr_expect_eq(guest_expect(VIRTIO_VSOCK_OP_SHUTDOWN).h.flags, RCV | SEND);
}

Test(vsock, a_guest_that_has_sent_all_still_receives)
{
    struct stream s = open_from_host(52);

    guest_say(52, s.host_port, VIRTIO_VSOCK_OP_SHUTDOWN, SEND);
    expect_closed(s.fd);
    host_send(s.fd, "more", 4);
    cr_expect_arr_eq(guest_expect(VIRTIO_VSOCK_OP_RW).data, "more", 4);
    guest_send(52, s.host_port, "x", 1);
    guest_expect(VIRTIO_VSOCK_OP_RST);
}

Test(vsock, a_guest_that_takes_no_more_still_sends)
{
    struct stream s = open_from_host(52);
    char got[8];

    guest_say(52, s.host_port, VIRTIO_VSOCK_OP_SHUTDOWN, RCV);
    cr_expect_eq(write(s.fd, "x", 1), -1);
    cr_expect_eq(errno, EPIPE);
    guest_send(52, s.host_port, "still", 5);
    cr_assert_eq(host_read(s.fd, got, sizeof(got)), 5);
}

Test(vsock, a_guest_that_closes_is_confirmed_by_a_reset)
{
    struct stream s = open_from_host(52);

    guest_send(52, s.host_port, "bye", 3);
    guest_say(52, s.host_port, VIRTIO_VSOCK_OP_SHUTDOWN, RCV | SEND);
    guest_expect(VIRTIO_VSOCK_OP_RST);
    cr_expect_eq(host_drain(s.fd), 3);
    cr_expect_eq(g.v.table.count, 0);
}

Test(vsock, a_guest_that_closes_in_two_steps_is_confirmed_after_the_second)
{
    struct stream s = open_from_host(52);

    guest_say(52, s.host_port, VIRTIO_VSOCK_OP_SHUTDOWN, SEND);
    guest_expect_nothing();
    guest_say(52, s.host_port, VIRTIO_VSOCK_OP_SHUTDOWN, RCV);
    guest_expect(VIRTIO_VSOCK_OP_RST);
    expect_closed(s.fd);
}

Test(vsock, both_sides_may_close_at_once)
{
    struct stream s = open_from_host(52);

    close(s.fd);
    guest_say(52, s.host_port, VIRTIO_VSOCK_OP_SHUTDOWN, RCV | SEND);
    guest_expect(VIRTIO_VSOCK_OP_RST);
    guest_say(52, s.host_port, VIRTIO_VSOCK_OP_RST, 0); /* to the shutdown it has crossed with */
    guest_expect_nothing();
    cr_expect_eq(g.v.table.count, 0);
}

Test(vsock, a_reset_of_the_guest_closes_the_socket)
{
    struct stream s = open_from_host(52);

    guest_say(52, s.host_port, VIRTIO_VSOCK_OP_RST, 0);
    expect_closed(s.fd);
    guest_expect_nothing();
    cr_expect_eq(g.v.table.count, 0);
}

Test(vsock, what_a_guest_sent_before_it_closed_waits_for_a_slow_host)
{
    struct stream s = open_from_host(52);
    size_t sent = 0;

    while (g.v.table.total.held == 0) {
        guest_send(52, s.host_port, buffer, 65536);
        sent += 65536;
    }
    guest_say(52, s.host_port, VIRTIO_VSOCK_OP_SHUTDOWN, RCV | SEND);
    cr_expect_eq(host_drain(s.fd), sent);
    cr_expect_eq(g.v.table.count, 0);
}

Test(vsock, the_ports_of_one_that_waits_for_a_slow_host_are_another_s)
{
    struct stream first = open_from_guest(900), second;
    size_t sent = 0;
    struct packet p = { 0 };
    char byte;

    while (g.v.table.total.held == 0) {
        guest_send(900, 1, buffer, 65536);
        sent += 65536;
    }
    guest_say(900, 1, VIRTIO_VSOCK_OP_SHUTDOWN, RCV | SEND);
    while (p.h.op != VIRTIO_VSOCK_OP_RST)
        cr_assert(guest_take(&p));
    second = open_from_guest(900);
    cr_expect_eq(host_drain(first.fd), sent);
    cr_expect_eq(g.v.table.count, 1);
    guest_send(900, 1, "x", 1);
    cr_expect_eq(host_read(second.fd, &byte, 1), 1);
    close(second.fd);
}

/* Waits until no connection has a deadline. The device's timer may fire more than once before that:
 * it may still be set for a deadline that no longer is. */
static void let_time_pass(void)
{
    struct pollfd p = { .fd = g.v.table.timer.fd, .events = POLLIN };

    cr_assert(!TAILQ_EMPTY(&g.v.table.timed));
    do {
        cr_assert_eq(poll(&p, 1, 120000), 1);
        turn();
    } while (!TAILQ_EMPTY(&g.v.table.timed));
}

Test(vsock, a_guest_that_does_not_confirm_is_reset)
{
    struct stream s = open_from_host(52);
    struct itimerspec set;

    close(s.fd);
    guest_expect(VIRTIO_VSOCK_OP_SHUTDOWN);
    let_time_pass();
    guest_expect(VIRTIO_VSOCK_OP_RST);
    cr_expect_eq(g.v.table.count, 0);
    s = open_from_host(52);
    close(s.fd);
    guest_expect(VIRTIO_VSOCK_OP_SHUTDOWN);
    cr_assert_eq(timerfd_gettime(g.v.table.timer.fd, &set), 0);
    cr_expect(set.it_value.tv_sec > 0 || set.it_value.tv_nsec > 0, "so will the next");
}

static unsigned expected_after(unsigned chains, unsigned used, bool was_filled)
{
    struct vsock_conn c = { .chains = chains };

    vsock_conn_expect(&c, used, was_filled);
    return c.chains;
}

Test(vsock_conn_expect, doubles_to_a_bound_and_gives_up_a_quarter_at_once)
{
    cr_expect_eq(expected_after(1, 1, true), 2);
    cr_expect_eq(expected_after(31, 31, true), 62);
    cr_expect_eq(expected_after(32, 32, true), 64);
    cr_expect_eq(expected_after(64, 64, true), 64);
    cr_expect_eq(expected_after(64, 3, false), 48);
    cr_expect_eq(expected_after(48, 47, false), 47);
    cr_expect_eq(expected_after(5, 1, false), 3);
    cr_expect_eq(expected_after(1, 1, false), 1);
    cr_expect_eq(expected_after(8, 0, false), 8, "there was nothing to read");
}

static void say_that_time_is_up(void)
{
    g.v.table.timer.on_ready(&g.v.table.timer, EPOLLIN);
}

Test(vsock, has_no_reset_while_it_looks_at_its_deadlines)
{
    cr_expect(waits_for(&g.d.transport.lock, say_that_time_is_up));
}

/* Two seconds pass, and the timer fires; but not for the guest. */
Test(vsock, a_guest_that_stands_still_has_all_the_time_for_its_answer)
{
    struct pollfd p = { .fd = g.v.table.timer.fd, .events = POLLIN };
    struct virtio_vsock_hdr asked;
    int fd;

    virtio_mmio_pause(&g.d.transport);
    fd = host_command("CONNECT 52\n");
    cr_assert_eq(poll(&p, 1, 120000), 1);
    turn();
    guest_expect_nothing();
    virtio_mmio_resume(&g.d.transport);
    asked = guest_expect(VIRTIO_VSOCK_OP_REQUEST).h;
    guest_expect_nothing();
    guest_say(52, asked.src_port, VIRTIO_VSOCK_OP_RESPONSE, 0);
    cr_expect_eq(host_read(fd, buffer, 2), 2);
    cr_expect_arr_eq(buffer, "OK", 2);
}

Test(vsock, a_guest_that_does_not_answer_a_request_is_reset)
{
    int fd;

    virtio_mmio_pause(&g.d.transport);
    virtio_mmio_resume(&g.d.transport); /* from here on its time goes on */
    fd = host_command("CONNECT 52\n");
    guest_expect(VIRTIO_VSOCK_OP_REQUEST);
    let_time_pass();
    guest_expect(VIRTIO_VSOCK_OP_RST);
    expect_closed(fd);
}

Test(vsock, a_host_that_goes_before_the_answer_is_taken_back)
{
    int fd = host_command("CONNECT 52\n");

    guest_expect(VIRTIO_VSOCK_OP_REQUEST);
    close(fd);
    guest_expect(VIRTIO_VSOCK_OP_RST);
    cr_expect_eq(g.v.table.count, 0);
}

Test(vsock, a_reset_of_the_device_ends_all_and_the_next_driver_starts_anew)
{
    struct stream s = open_from_host(52), t = open_from_guest(9);

    reg_write(&g.d, VIRTIO_MMIO_STATUS, 0);
    expect_closed(s.fd);
    expect_closed(t.fd);
    cr_expect_eq(g.v.table.count, 0);
    guest_ready();
    guest_give(RX_SLOTS);
    s = open_from_host(53);
    host_send(s.fd, "new", 3);
    cr_expect_arr_eq(guest_expect(VIRTIO_VSOCK_OP_RW).data, "new", 3);
}
