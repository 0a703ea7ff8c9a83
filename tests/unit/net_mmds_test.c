/* The way of frames between the guest's rings, the metadata service and the tap. */
#include "tests/unit/support/nic.h"

#include <stdio.h>
#include <stdlib.h>

#define SERVICE UINT32_C(0xa9fea9fe)
#define PORT    30000
#define HEADS   54u

static struct mmds_store store;
static struct mmds_service service = { .store = &store };
static uint32_t next_seq, next_ack; /* of the connection */

static void begin(struct options o)
{
    store.text = strdup("{\"d\":\"data\"}");
    o.mmds = mmds_stack_new(&service, SERVICE);
    start(o);
}

static void begin_plain(void)
{
    begin((struct options){ 0 });
}

static void end(void)
{
    struct mmds_stack *stack = net.host.mmds;

    tear_down();
    mmds_stack_free(stack);
    mmds_store_fini(&store);
}

TestSuite(net_mmds, .init = begin_plain, .fini = end);
TestSuite(net_mmds_limits, .fini = end);

/* An ARP request for an address, in `frame`. */
static uint32_t make_arp(uint8_t last)
{
    static const uint8_t request[] = {
        0,    1,    8, 0, 6, 4, 0, 1, 2, 0, 0,    0,    0,    1,
        0xa9, 0xfe, 1, 9, 0, 0, 0, 0, 0, 0, 0xa9, 0xfe, 0xa9,
    };
    const uint16_t type = htons(ETH_P_ARP);

    memset(frame, 0xff, 6);
    memcpy(frame + 6, guest_mac, 6);
    memcpy(frame + 12, &type, 2);
    memcpy(frame + 14, request, sizeof(request));
    frame[41] = last;
    return 42;
}

static uint32_t make_tcp(uint32_t seq, uint32_t ack, bool is_syn, const char *text)
{
    struct mmds_ends ends = { .local = 0xa9fe0109, .remote = SERVICE };
    const struct mmds_segment s = { .local_port = PORT,
                                    .remote_port = 80,
                                    .seq = seq,
                                    .ack = ack,
                                    .has_syn = is_syn,
                                    .has_ack = !is_syn,
                                    .window = 65535,
                                    .mss = is_syn ? 1460 : 0,
                                    .payload = (const uint8_t *)text,
                                    .bytes = strlen(text) };
    uint32_t n;

    memcpy(ends.local_mac, guest_mac, 6);
    memcpy(ends.remote_mac, host_mac, 6); /* a gateway's */
    n = (uint32_t)mmds_frame_tcp(frame, &ends, &s);
    memcpy(frame + n, text, strlen(text));
    return n + (uint32_t)strlen(text);
}

static void transmit(uint32_t bytes, unsigned parts)
{
    const uint16_t sent = ring_used_idx(tx);

    offer_tx(0, TX_DATA, bytes, parts);
    driver_serve_at(&d, TX);
    cr_assert_eq(ring_used_idx(tx), sent + 1);
}

static void serve_rx(void)
{
    while (loop_drain(d.transport.notifiers[RX].source.fd))
        driver_serve_at(&d, RX);
}

/* The frame in the k-th used buffer of those at RX_DATA, in `got`; its bytes. */
static uint32_t take_rx(uint16_t k, uint32_t buffer_bytes)
{
    const struct vring_used_elem used = ring_used(rx, k);
    struct virtio_net_hdr_mrg_rxbuf header;
    uint64_t at = RX_DATA + (uint64_t)used.id * buffer_bytes;

    cr_assert_lt(k, ring_used_idx(rx), "nothing was received");
    cr_assert_eq(gmem_get(&d.mem, gpa(at), &header), 0);
    cr_expect_eq(header.num_buffers, 1);
    header.num_buffers = 0;
    for (unsigned i = 0; i < sizeof(header); i++)
        cr_expect_eq(((uint8_t *)&header)[i], 0, "byte %u", i);
    cr_assert_eq(gmem_read_(&d.mem, gpa(at + HEADER), got, used.len - HEADER), 0);
    return used.len - HEADER;
}

/* Nothing that was sent so far has gone to the tap but this. */
static void expect_only_this_on_wire(void)
{
    make_frame(host_mac, guest_mac, 60, 7);
    transmit(60, 1);
    expect_wire(60);
}

Test(net_mmds, frames_for_it_go_no_further_and_others_do)
{
    static const uint8_t cut[] = { 34, 35, 41 };

    for (unsigned parts = 1; parts <= 40; parts += 13) {
        transmit(make_arp(0xfe), parts);
        transmit(make_tcp(1, 0, true, ""), parts);
    }
    for (unsigned i = 0; i < sizeof(cut); i++) {
        make_tcp(1, 0, true, "");
        transmit(cut[i], 1);
    }
    cr_expect_eq(METRIC(tx_count), 0);
    cr_expect_eq(METRIC(tx_packets_count), 0);
    cr_expect_eq(METRIC(tx_bytes_count), 0);
    cr_expect_eq(metric_get(&metrics.mmds.rx_accepted), 8 + 3);
    expect_only_this_on_wire();
    make_arp(0xfd);
    transmit(42, 1);
    cr_assert_eq(receive_wire(), 42);
    cr_expect_eq(METRIC(tx_count), 2);
}

Test(net_mmds, an_answer_comes_into_a_receive_buffer)
{
    offer_rx_row(4, 2048);
    transmit(make_arp(0xfe), 1);
    serve_rx();
    cr_assert_eq(take_rx(0, 2048), 42);
    cr_expect_eq(memcmp(got, guest_mac, 6), 0);
    cr_expect_eq(got[21], 2);
    cr_expect_eq(METRIC(rx_count), 1);
    cr_expect_eq(METRIC(rx_packets_count), 1);
    cr_expect_eq(METRIC(rx_bytes_count), 54);
    cr_expect_eq(metric_get(&metrics.mmds.tx_frames), 1);
    cr_expect_eq(metric_get(&metrics.mmds.tx_bytes), 42);
}

static void connect_guest(uint16_t k, uint32_t buffer_bytes)
{
    transmit(make_tcp(99, 0, true, ""), 1);
    serve_rx();
    cr_assert_eq(take_rx(k, buffer_bytes), HEADS + 4);
    next_ack =
        ((uint32_t)got[38] << 24 | (uint32_t)got[39] << 16 | (uint32_t)got[40] << 8 | got[41]) + 1;
    next_seq = 100;
    transmit(make_tcp(next_seq, next_ack, false, ""), 1);
}

static void expect_data(uint16_t k, uint32_t buffer_bytes)
{
    cr_assert_eq(take_rx(k, buffer_bytes), HEADS + 115);
    cr_expect_eq(memcmp(got + HEADS + 111, "data", 4), 0);
}

Test(net_mmds, a_request_in_many_descriptors_is_answered)
{
    offer_rx_row(4, 2048);
    connect_guest(0, 2048);
    transmit(make_tcp(next_seq, next_ack, false, "GET /d HTTP/1.1\r\n\r\n"), 50);
    serve_rx();
    expect_data(1, 2048);
}

Test(net_mmds, answers_wait_for_buffers_and_go_before_the_host_s_frames)
{
    offer_rx_row(1, 2048);
    connect_guest(0, 2048);
    transmit(make_tcp(next_seq, next_ack, false, "GET /d HTTP/1.1\r\n\r\n"), 1);
    serve_rx();
    cr_assert_eq(ring_used_idx(rx), 1);
    make_frame(guest_mac, host_mac, 60, 3);
    send_wire(60);
    tell_of_frames();
    cr_assert_eq(ring_used_idx(rx), 1);
    offer_rx_row(40, 2048);
    driver_serve_at(&d, RX);
    expect_data(1, 2048);
    cr_assert_eq(ring_used_idx(rx), 3);
    expect_frame_at(RX_DATA + 2048, 1, 60);
}

Test(net_mmds, a_frame_of_several_buffers_says_how_many)
{
    struct virtio_net_hdr_mrg_rxbuf header;

    free(store.text);
    store.text = malloc(8000);
    memset(store.text, 'b', 8000);
    memcpy(store.text, "{\"d\":\"", 6);
    strcpy(store.text + 7000, "\"}");
    offer_rx_row(60, 600);
    connect_guest(0, 600);
    transmit(make_tcp(next_seq, next_ack, false, "GET /d HTTP/1.1\r\n\r\n"), 1);
    serve_rx();
    cr_assert_eq(gmem_get(&d.mem, gpa(RX_DATA + 600), &header), 0);
    cr_expect_eq(header.num_buffers, 3);
    cr_expect_eq(ring_used(rx, 1).len, 600);
    cr_expect_eq(ring_used(rx, 2).len, 600);
    cr_expect_eq(ring_used(rx, 3).len, HEADER + HEADS + 1460 - 1200);
}

Test(net_mmds, what_is_lost_comes_again_by_the_timer)
{
    offer_rx_row(4, 2048);
    connect_guest(0, 2048);
    transmit(make_tcp(next_seq, next_ack, false, "GET /d HTTP/1.1\r\n\r\n"), 1);
    serve_rx();
    expect_data(1, 2048);
    while (ring_used_idx(rx) < 3) /* the guest does not acknowledge */
        loop_turn(&d.loop, DEADLINE_MS);
    expect_data(2, 2048);
}

Test(net_mmds, while_paused_nothing_is_sent_and_then_the_time_goes_on)
{
    offer_rx_row(4, 2048);
    connect_guest(0, 2048);
    transmit(make_tcp(next_seq, next_ack, false, "GET /d HTTP/1.1\r\n\r\n"), 1);
    serve_rx();
    virtio_mmio_pause(&d.transport);
    loop_turn(&d.loop, DEADLINE_MS); /* the timer */
    cr_assert_eq(ring_used_idx(rx), 2);
    virtio_mmio_resume(&d.transport);
    while (ring_used_idx(rx) < 3)
        loop_turn(&d.loop, DEADLINE_MS);
    expect_data(2, 2048);
}

Test(net_mmds, a_device_that_is_reset_and_started_again_goes_on)
{
    offer_rx_row(4, 2048);
    transmit(make_arp(0xfe), 1);
    negotiate(0); /* with the answer under way */
    offer_rx_row(4, 2048);
    transmit(make_arp(0xfe), 1);
    serve_rx();
    cr_expect_eq(take_rx(0, 2048), 42);
    cr_expect_eq(take_rx(1, 2048), 42);
}

static const struct rate_limits one_then_wait = {
    .has_ops = true, .ops = { .size = 1, .refill_time_ms = 3600 * 1000 }
};

Test(net_mmds_limits, requests_cost_the_transmit_limiter_nothing)
{
    begin((struct options){ .tx_limits = one_then_wait });
    for (unsigned i = 0; i < 10; i++)
        transmit(make_arp(0xfe), 1);
    cr_expect_eq(METRIC(tx_rate_limiter_throttled), 0);
    expect_only_this_on_wire();
    make_arp(0xfe); /* now there is no token to be had */
    offer_tx(0, TX_DATA, 42, 1);
    driver_serve_at(&d, TX);
    cr_expect_eq(METRIC(tx_rate_limiter_throttled), 1);
    cr_expect_eq(metric_get(&metrics.mmds.rx_accepted), 10);
}

Test(net_mmds_limits, answers_pass_the_receive_limiter)
{
    begin((struct options){ .rx_limits = one_then_wait });
    offer_rx_row(4, 2048);
    transmit(make_arp(0xfe), 1);
    transmit(make_arp(0xfe), 1);
    serve_rx();
    cr_expect_eq(ring_used_idx(rx), 1);
    cr_expect_eq(METRIC(rx_rate_limiter_throttled), 1);
}
