#include "tests/unit/support/lock.h"
#include "tests/unit/support/nic.h"
#include "tests/unit/support/toggle.h"

#include <stdio.h>
#include <stdlib.h>

TestSuite(net, .init = start_plain, .fini = tear_down);

/* What is given to the host. */

Test(net, transmits_frames_whole_in_any_number_of_buffers)
{
    static const uint32_t sizes[] = { 14, 15, 60, 1514, 4096, 65535 };
    uint16_t sent = 0;

    for (unsigned s = 0; s < sizeof(sizes) / sizeof(*sizes); s++) {
        for (unsigned parts = 1; parts <= 256 && parts <= sizes[s]; parts += 51) {
            make_frame(host_mac, guest_mac, sizes[s], parts);
            offer_tx(0, TX_DATA, sizes[s], parts);
            driver_serve_at(&d, TX);
            expect_wire(sizes[s]);
            cr_assert_eq(ring_used_idx(tx), ++sent);
            cr_expect_eq(ring_used(tx, sent - 1).len, 0);
        }
    }
    cr_expect_eq(METRIC(tx_packets_count), sent);
    cr_expect_eq(METRIC(tx_fails), 0);
    cr_expect_eq(METRIC(tx_spoofed_mac_count), 0);
}

Test(net, drops_what_is_no_frame_and_goes_on)
{
    static const uint32_t wrong[] = { 1, 11, 12, 25, 65563, 100000 };
    uint16_t used = 0;

    make_frame(host_mac, guest_mac, 60, 0);
    for (unsigned i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
        lay_tx(0, TX_DATA, wrong[i], 1);
        driver_serve_at(&d, TX);
        cr_assert_eq(ring_used_idx(tx), ++used, "%u bytes", wrong[i]);
        cr_expect_eq(METRIC(tx_malformed_frames), i + 1, "%u bytes", wrong[i]);
    }
    ring_desc(tx, 0, TX_DATA, 100, VRING_DESC_F_WRITE, 0);
    ring_offer(tx, 0);
    ring_desc(tx, 1, TX_DATA, 100, VRING_DESC_F_NEXT, 2);
    ring_desc(tx, 2, TX_DATA + 100, 1, VRING_DESC_F_WRITE, 0);
    ring_offer(tx, 1);
    offer_tx(3, TX_DATA, 60, 1);
    driver_serve_at(&d, TX);
    expect_wire(60);
    cr_expect_eq(ring_used_idx(tx), used + 3);
    cr_expect_eq(METRIC(tx_malformed_frames), 8);
    cr_expect_eq(METRIC(tx_packets_count), 1);
    cr_expect_not(needs_reset(&d));
}

Test(net, counts_frames_from_another_address_and_sends_them)
{
    make_frame(host_mac, host_mac, 60, 1);
    for (unsigned parts = 1; parts <= 72; parts++) {
        offer_tx(0, TX_DATA, 60, parts);
        driver_serve_at(&d, TX);
        expect_wire(60);
        cr_expect_eq(METRIC(tx_spoofed_mac_count), parts);
    }
}

Test(net_without_mac, takes_any_address, .fini = tear_down)
{
    start((struct options){ .has_no_mac = true });
    cr_expect_not(offered_features(&d) & FEATURE(VIRTIO_NET_F_MAC));
    make_frame(host_mac, host_mac, 60, 1);
    offer_tx(0, TX_DATA, 60, 1);
    driver_serve_at(&d, TX);
    expect_wire(60);
    cr_expect_eq(METRIC(tx_spoofed_mac_count), 0);
}

/* A TCP segment of IPv4, as far as the kernel looks; the checksum is left to the host. */
static void make_segment(uint32_t payload)
{
    static const uint8_t headers[] = {
        0x08, 0x00, 0x45, 0, 0,  0, 0, 0, 0x40, 0, 64, 6, 0, 0,    10,   0, 0, 1, 10, 0, 0,
        2,    0x30, 0x39, 0, 80, 0, 0, 0, 1,    0, 0,  0, 0, 0x50, 0x10, 1, 0, 0, 0,  0, 0,
    };
    uint16_t total = htons((uint16_t)(40 + payload));

    make_frame(host_mac, guest_mac, 54 + payload, 3);
    memcpy(frame + 12, headers, sizeof(headers));
    memcpy(frame + 16, &total, 2);
}

Test(net, hands_a_segmentation_to_the_host)
{
    const struct virtio_net_hdr_mrg_rxbuf header = {
        .hdr = { .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
                 .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
                 .hdr_len = 54,
                 .gso_size = 1448,
                 .csum_start = 34,
                 .csum_offset = 16 },
    };
    struct virtio_net_hdr seen;

    make_segment(60000);
    put_tx(TX_DATA, &header, 60054);
    lay_tx(0, TX_DATA, HEADER + 60054, 17);
    driver_serve_at(&d, TX);
    cr_assert_eq(receive_wire(), 60054);
    memcpy(&seen, got, sizeof(seen));
    cr_expect_eq(seen.gso_type, VIRTIO_NET_HDR_GSO_TCPV4);
    cr_expect_eq(seen.gso_size, 1448);
    cr_expect_eq(memcmp(got + WIRE_HEADER + 54, frame + 54, 60000), 0);
}

Test(net, leaves_a_header_that_lies_to_the_kernel_which_refuses)
{
    static const struct virtio_net_hdr lies[] = {
        { .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 0xffff, .csum_offset = 0xffff },
        { .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 59, .csum_offset = 16 },
        { .gso_type = 0x7f, .gso_size = 100 },
        { .gso_type = VIRTIO_NET_HDR_GSO_TCPV4, .gso_size = 0 },
        { .hdr_len = 0xffff },
    };

    make_frame(host_mac, guest_mac, 60, 2);
    for (unsigned i = 0; i < sizeof(lies) / sizeof(*lies); i++) {
        const struct virtio_net_hdr_mrg_rxbuf header = { .hdr = lies[i] };

        put_tx(TX_DATA, &header, 60);
        lay_tx(0, TX_DATA, HEADER + 60, 1);
        driver_serve_at(&d, TX);
        cr_assert_eq(ring_used_idx(tx), i + 1);
        cr_expect_eq(METRIC(tap_write_fails), i + 1, "lie %u", i);
    }
    offer_tx(0, TX_DATA, 60, 1);
    driver_serve_at(&d, TX);
    expect_wire(60);
    cr_expect_eq(METRIC(tx_packets_count), 1);
}

Test(net, frame_for_an_interface_that_is_down_is_lost_and_counted)
{
    make_frame(host_mac, guest_mac, 60, 2);
    set_link(tap.name, 1500, false);
    offer_tx(0, TX_DATA, 60, 1);
    driver_serve_at(&d, TX);
    cr_expect_eq(ring_used_idx(tx), 1);
    cr_expect_eq(METRIC(tap_write_fails), 1);
    cr_expect_eq(METRIC(tx_fails), 1);
    set_link(tap.name, 1500, true);
    offer_tx(0, TX_DATA, 60, 1);
    driver_serve_at(&d, TX);
    cr_expect_eq(METRIC(tx_packets_count), 1);
}

Test(net, does_a_bounded_number_of_frames_a_turn_with_one_interrupt)
{
    make_frame(host_mac, guest_mac, 60, 2);
    for (uint16_t i = 0; i < 200; i++)
        offer_tx(i, TX_DATA, 60, 1);
    ring_set_used_event(tx, 0);
    driver_interrupts(&d);
    cr_expect(driver_serve_at(&d, TX), "there is more");
    cr_expect_gt(ring_used_idx(tx), 0);
    cr_expect_lt(ring_used_idx(tx), 200);
    cr_expect_eq(driver_interrupts(&d), 1);
    while (driver_serve_at(&d, TX))
        ;
    cr_expect_eq(ring_used_idx(tx), 200);
}

/* What is taken from the host. */

#define GUEST_SEGMENTATION                                                                         \
    (FEATURE(VIRTIO_NET_F_GUEST_TSO4) | FEATURE(VIRTIO_NET_F_GUEST_TSO6) |                         \
     FEATURE(VIRTIO_NET_F_GUEST_UFO) | FEATURE(NET_F_GUEST_USO4) | FEATURE(NET_F_GUEST_USO6))

static void start_small(void)
{
    start((struct options){ .without = GUEST_SEGMENTATION });
}

static void start_unmerged(void)
{
    start((struct options){ .without = FEATURE(VIRTIO_NET_F_MRG_RXBUF) });
}

TestSuite(net_small, .init = start_small, .fini = tear_down);
TestSuite(net_unmerged, .init = start_unmerged, .fini = tear_down);

static void receive_into_shapes(void)
{
    static const uint32_t shapes[][6] = {
        { 2000 },          { 12, 1988 },       { 1, 1999 },
        { 10, 1, 1989 },   { 10, 1, 1, 1988 }, { 1, 1, 1, 1, 1, 1995 },
        { 5, 5, 1, 1989 }, { 10, 1990 },       { 11, 1989 },
    };

    for (unsigned s = 0; s < sizeof(shapes) / sizeof(*shapes); s++) {
        unsigned count = 0;

        while (count < 6 && shapes[s][count])
            count++;
        offer_rx(0, RX_DATA, shapes[s], count);
        make_frame(guest_mac, host_mac, 1000 + s, s);
        send_wire(1000 + s);
        tell_of_frames();
        cr_assert_eq(ring_used_idx(rx), s + 1, "shape %u", s);
        cr_expect_eq(ring_used(rx, s).id, 0);
        cr_expect_eq(ring_used(rx, s).len, HEADER + 1000 + s);
        expect_frame_at(RX_DATA, 1, 1000 + s);
    }
    cr_expect_eq(METRIC(rx_packets_count), sizeof(shapes) / sizeof(*shapes));
}

Test(net_small, receives_into_one_chain_cut_anywhere)
{
    receive_into_shapes();
}

Test(net_unmerged, receives_into_one_chain_cut_anywhere)
{
    receive_into_shapes();
}

/* Chains of `room` bytes until the longest frame fits; then a frame of `bytes`. */
static void merge(uint32_t room, unsigned chains, uint32_t bytes)
{
    unsigned want = (HEADER + bytes + room - 1) / room;

    negotiate(0);
    offer_rx_row(chains, room);
    make_frame(guest_mac, host_mac, bytes, room);
    send_wire(bytes);
    tell_of_frames();
    cr_assert_eq(ring_used_idx(rx), want, "%u bytes in chains of %u", bytes, room);
    for (unsigned i = 0; i < want; i++) {
        cr_expect_eq(ring_used(rx, i).id, i);
        cr_expect_eq(ring_used(rx, i).len,
                     i + 1 < want ? room : HEADER + bytes - (want - 1) * room);
    }
    expect_frame_at(RX_DATA, want, bytes);
}

Test(net, merges_chains_for_a_long_frame_and_says_how_many)
{
    static const uint32_t sizes[] = { 14, 1500, 1514, 3060, 9014, 40000, 65535 };

    for (unsigned i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        merge(1526, 43, sizes[i]);
        merge(4096, 17, sizes[i]);
        merge(257, 256, sizes[i]);
        merge(65562, 1, sizes[i]);
    }
}

Test(net, fills_chains_to_the_last_byte_and_starts_no_other)
{
    for (unsigned chains = 1; chains <= 16; chains++) {
        merge(4096, 17, chains * 4096 - HEADER - 1);
        merge(4096, 17, chains * 4096 - HEADER);
        if (chains < 16)
            merge(4096, 17, chains * 4096 - HEADER + 1);
    }
}

Test(net, leaves_chains_that_no_frame_filled_to_the_next)
{
    negotiate(0);
    offer_rx_row(100, 1526);
    for (unsigned i = 0; i < 50; i++) {
        make_frame(guest_mac, host_mac, 60 + i, i);
        send_wire(60 + i);
        tell_of_frames();
        cr_assert_eq(ring_used_idx(rx), i + 1);
        cr_assert_eq(ring_used(rx, i).id, i);
        expect_frame_at(RX_DATA + i * 1526, 1, 60 + i);
    }
}

Test(net_unmerged, loses_a_frame_longer_than_its_chain_and_goes_on)
{
    offer_rx_row(3, 1526);
    make_frame(guest_mac, host_mac, 1515, 1);
    send_wire(1515);
    make_frame(guest_mac, host_mac, 1514, 2);
    send_wire(1514);
    tell_of_frames();
    cr_assert_eq(ring_used_idx(rx), 1);
    expect_frame_at(RX_DATA, 1, 1514);
    cr_expect_eq(METRIC(rx_fails), 1);
    cr_expect_eq(METRIC(rx_packets_count), 1);
}

Test(net_small, loses_a_frame_longer_than_all_chains_and_goes_on)
{
    offer_rx_row(2, 800);
    make_frame(guest_mac, host_mac, 1600, 1);
    send_wire(1600);
    make_frame(guest_mac, host_mac, 1588, 2);
    send_wire(1588);
    tell_of_frames();
    cr_assert_eq(ring_used_idx(rx), 2);
    expect_frame_at(RX_DATA, 2, 1588);
    cr_expect_eq(METRIC(rx_fails), 1);
}

Test(net, keeps_frames_for_a_guest_that_starves_until_it_offers_buffers)
{
    make_frame(guest_mac, host_mac, 100, 1);
    send_wire(100);
    tell_of_frames();
    cr_expect_eq(METRIC(no_rx_avail_buffer), 1);
    offer_rx_row(42, 1526); /* one short of the longest frame */
    driver_serve_at(&d, RX);
    cr_expect_eq(ring_used_idx(rx), 0);
    cr_expect_eq(METRIC(no_rx_avail_buffer), 2);
    cr_expect_eq(ring_avail_event(rx), 42, "it asks for a kick");
    offer_rx(42, RX_DATA + 42 * 1526, (uint32_t[]){ 1526 }, 1);
    driver_serve_at(&d, RX);
    cr_assert_eq(ring_used_idx(rx), 1);
    expect_frame_at(RX_DATA, 1, 100);
}

/* However many more it offers, before any is used. */
Test(net, small_buffers_must_do_where_no_more_can_be_kept)
{
    const uint32_t room = 16;

    make_frame(guest_mac, host_mac, 60, 1);
    send_wire(60);
    offer_rx_row(200, room);
    tell_of_frames();
    cr_expect_eq(ring_used_idx(rx), 0, "more might come");
    for (uint16_t i = 200; i < 300; i++)
        offer_rx(i % 256, RX_DATA + (uint64_t)room * i, &room, 1);
    driver_serve_at(&d, RX);
    cr_assert_eq(ring_used_idx(rx), 5);
    expect_frame_at(RX_DATA, 5, 60);
    make_frame(guest_mac, host_mac, 5000, 2);
    send_wire(5000);
    tell_of_frames();
    cr_expect_eq(METRIC(rx_fails), 1, "lost, for it is longer than all of them");
    cr_expect_eq(ring_used_idx(rx), 5);
}

Test(net_mtu, keeps_a_frame_until_the_longest_of_the_link_fits, .fini = tear_down)
{
    start((struct options){ .without = GUEST_SEGMENTATION, .mtu = 9000 });
    make_frame(guest_mac, host_mac, 9014, 1);
    send_wire(9014);
    offer_rx_row(5, 1526);
    tell_of_frames();
    cr_expect_eq(ring_used_idx(rx), 0);
    offer_rx(5, RX_DATA + 5 * 1526, (uint32_t[]){ 1526 }, 1);
    driver_serve_at(&d, RX);
    cr_assert_eq(ring_used_idx(rx), 6);
    expect_frame_at(RX_DATA, 6, 9014);
}

/* Of Ethernet without segmentation: 1514 bytes and the header (section 5.1.6.3.1). */
Test(net_small, keeps_a_frame_until_the_longest_fits)
{
    make_frame(guest_mac, host_mac, 60, 1);
    send_wire(60);
    offer_rx_row(1, 1525);
    tell_of_frames();
    cr_expect_eq(ring_used_idx(rx), 0);
    offer_rx(1, RX_DATA + 1525, (uint32_t[]){ HEADER }, 1);
    driver_serve_at(&d, RX);
    cr_assert_eq(ring_used_idx(rx), 1);
    expect_frame_at(RX_DATA, 1, 60);
}

Test(net_small, takes_a_frame_where_the_longest_fits)
{
    make_frame(guest_mac, host_mac, 1514, 1);
    send_wire(1514);
    offer_rx_row(1, 1526);
    tell_of_frames();
    cr_assert_eq(ring_used_idx(rx), 1);
    expect_frame_at(RX_DATA, 1, 1514);
}

Test(net, receives_a_bounded_number_of_frames_a_turn_with_one_interrupt)
{
    struct pollfd p = { .fd = tap.fd, .events = POLLIN };

    offer_rx_row(256, 1000);
    for (unsigned i = 0; i < 150; i++) {
        make_frame(guest_mac, host_mac, 60, i);
        send_wire(60);
    }
    cr_assert_eq(poll(&p, 1, DEADLINE_MS), 1);
    driver_interrupts(&d);
    net.frames.on_ready(&net.frames, EPOLLIN);
    cr_expect_gt(ring_used_idx(rx), 0);
    cr_expect_lt(ring_used_idx(rx), 150);
    cr_expect_eq(driver_interrupts(&d), 1);
    cr_assert_gt(loop_drain(d.transport.notifiers[RX].source.fd), 0, "it asked for another turn");
    while (driver_serve_at(&d, RX))
        ;
    cr_expect_eq(ring_used_idx(rx), 150);
}

/* A queue's worth of one chain, which has 250 empty buffers before the one that is of use. */
static void offer_long_chains(struct ring *r, uint64_t at, uint32_t bytes, uint16_t flags)
{
    for (uint16_t i = 0; i < 250; i++)
        ring_buffer(r, i, 0, 0, flags | VRING_DESC_F_NEXT);
    ring_buffer(r, 250, at, bytes, flags);
    for (unsigned i = 0; i < 256; i++)
        ring_offer(r, 0);
}

#define LONG_CHAINS_A_TURN (VIRTQ_TURN_DESCRIPTORS / 251 + 1)

Test(net, looks_at_a_bounded_number_of_descriptors_a_turn_to_transmit)
{
    const struct virtio_net_hdr_mrg_rxbuf none = { 0 };

    make_frame(host_mac, guest_mac, 60, 1);
    put_tx(TX_DATA, &none, 60);
    offer_long_chains(tx, TX_DATA, HEADER + 60, 0);
    cr_expect(driver_serve_at(&d, TX), "there is more");
    cr_expect_eq(ring_used_idx(tx), LONG_CHAINS_A_TURN);
    while (driver_serve_at(&d, TX))
        ;
    cr_expect_eq(ring_used_idx(tx), 256);
}

/* A frame is not read before the longest fits, and these chains are too short for that. */
Test(net, looks_at_a_bounded_number_of_descriptors_a_turn_to_receive)
{
    unsigned turns = 0;
    bool is_more;

    offer_long_chains(rx, RX_DATA, 512, VRING_DESC_F_WRITE);
    make_frame(guest_mac, host_mac, 400, 1);
    send_wire(400);
    net.tap_is_ready = true;
    do {
        const unsigned before = net.rx.last;

        is_more = driver_serve_at(&d, RX);
        cr_expect_leq(net.rx.last - before, LONG_CHAINS_A_TURN);
        turns++;
    } while (is_more);
    cr_expect_geq(turns, 128 / LONG_CHAINS_A_TURN, "128 of them take the longest frame");
    cr_expect_eq(ring_used_idx(rx), 1);
    cr_expect_eq(METRIC(rx_packets_count), 1);
}

Test(net, looks_a_bounded_number_of_times_a_turn_for_chains_that_come_and_go)
{
    for (unsigned queue = RX; queue <= TX; queue++) {
        negotiate(0);
        net.tap_is_ready = true;
        toggle_start(&d.rings[queue]);
        (void)!driver_serve_at(&d, queue);
        cr_expect_leq(toggle_stop(), 2 * VIRTQ_TURN_DESCRIPTORS + 1, "queue %u", queue);
    }
}

Test(net, receives_while_the_indices_wrap)
{
    const uint32_t room = NET_FRAME_MAX;

    for (unsigned i = 0; i < 70000; i++) {
        offer_rx((uint16_t)(i % 256), RX_DATA, &room, 1);
        make_frame(guest_mac, host_mac, 20, i);
        send_wire(20);
        tell_of_frames();
        cr_assert_eq(ring_used_idx(rx), (uint16_t)(i + 1));
    }
    expect_frame_at(RX_DATA, 1, 20);
    cr_expect_eq(METRIC(rx_packets_count), 70000);
}

Test(net_small, receives_while_its_lists_wrap)
{
    static const uint32_t cut[] = { 300, 300, 300, 300, 400 };
    uint16_t used = 0;

    for (unsigned i = 0; i < 51; i++)
        offer_rx((uint16_t)(5 * i), RX_DATA + 1600 * i, cut, 5);
    for (unsigned i = 0; i < 1000; i++) {
        make_frame(guest_mac, host_mac, 1500, i);
        send_wire(1500);
        tell_of_frames();
        cr_assert_eq(ring_used_idx(rx), ++used);
        expect_frame_at(RX_DATA + 1600 * (i % 51), 1, 1500);
        ring_offer(rx, (uint16_t)(5 * (i % 51)));
    }
}

/* Limits. */

static const struct rate_limits one_then_wait = {
    .has_ops = true, .ops = { .size = 1, .refill_time_ms = 3600 * 1000 }
};
static const struct rate_limits unchanged;
static const struct rate_limits no_limits = { .has_ops = true, .has_bandwidth = true };

/* The host sends `frames`, of which the limit lets one pass. */
static void hold_all_but_one(unsigned frames)
{
    start((struct options){ .rx_limits = one_then_wait });
    offer_rx_row(100, 1526);
    for (unsigned i = 0; i < frames; i++) {
        make_frame(guest_mac, host_mac, 100, i);
        send_wire(100);
    }
    tell_of_frames();
    cr_expect_eq(ring_used_idx(rx), 1);
}

Test(net_rx_limit, holds_a_frame_and_delivers_it_when_there_are_tokens, .fini = tear_down)
{
    struct error e;

    hold_all_but_one(3);
    cr_expect_eq(METRIC(rx_rate_limiter_throttled), 1);
    cr_assert_eq(net_update(&net, &no_limits, &unchanged, &e), 0, "%s", e.msg);
    net.rx_limiter.timer.on_ready(&net.rx_limiter.timer, EPOLLIN);
    cr_assert_eq(ring_used_idx(rx), 3);
    expect_frame_at(RX_DATA + 2 * 1526, 1, 100);
    cr_expect_eq(METRIC(rx_event_rate_limiter_count), 1);
    cr_expect_eq(METRIC(rx_packets_count), 3);
}

Test(net_tx_limit, leaves_frames_in_the_ring_until_there_are_tokens, .fini = tear_down)
{
    struct error e;

    start((struct options){ .tx_limits = one_then_wait });
    make_frame(host_mac, guest_mac, 60, 1);
    for (uint16_t i = 0; i < 3; i++)
        offer_tx(i, TX_DATA, 60, 1);
    driver_serve_at(&d, TX);
    cr_expect_eq(ring_used_idx(tx), 1);
    cr_expect_eq(METRIC(tx_rate_limiter_throttled), 1);
    cr_assert_eq(net_update(&net, &unchanged, &no_limits, &e), 0, "%s", e.msg);
    net.tx_limiter.timer.on_ready(&net.tx_limiter.timer, EPOLLIN);
    cr_expect_eq(ring_used_idx(tx), 3);
    cr_expect_eq(METRIC(tx_rate_limiter_event_count), 1);
    cr_expect_eq(METRIC(tx_packets_count), 3);
    for (unsigned i = 0; i < 3; i++)
        expect_wire(60);
}

static void lift_limits(void)
{
    cr_expect_eq(net_update(&net, &no_limits, &no_limits, &(struct error){ 0 }), 0);
}

Test(net_tx_limit, is_changed_by_one_thread_at_a_time, .fini = tear_down)
{
    start((struct options){ .tx_limits = one_then_wait });
    cr_expect(waits_for(&d.transport.lock, lift_limits));
}

/* Pause, reset, and rings that break the rules. */

Test(net, pause_gives_the_buffers_back_and_resume_takes_them_again)
{
    offer_rx_row(100, 1526);
    driver_serve_at(&d, RX);
    make_frame(guest_mac, host_mac, 100, 1);
    send_wire(100);
    tell_of_frames();
    cr_expect_eq(ring_used_idx(rx), 1);
    virtio_mmio_pause(&d.transport);
    cr_expect_eq(net.dev.queues[RX].state.next_avail, net.dev.queues[RX].state.next_used);
    make_frame(guest_mac, host_mac, 200, 2);
    send_wire(200);
    net.frames.on_ready(&net.frames, EPOLLIN);
    cr_expect_eq(ring_used_idx(rx), 1, "nothing moves while it is paused");
    virtio_mmio_resume(&d.transport);
    driver_serve_at(&d, RX);
    cr_assert_eq(ring_used_idx(rx), 2);
    cr_expect_eq(ring_used(rx, 1).id, 1);
    expect_frame_at(RX_DATA + 1526, 1, 200);
}

Test(net_rx_limit, pause_delivers_a_frame_that_was_held, .fini = tear_down)
{
    hold_all_but_one(2);
    virtio_mmio_pause(&d.transport);
    cr_assert_eq(ring_used_idx(rx), 2);
    expect_frame_at(RX_DATA + 1526, 1, 100);
    cr_expect_eq(net.dev.queues[RX].state.next_avail, 2);
}

Test(net, reset_forgets_the_buffers)
{
    offer_rx_row(100, 1526);
    make_frame(guest_mac, host_mac, 100, 1);
    send_wire(100);
    tell_of_frames();
    negotiate(0);
    send_wire(100);
    tell_of_frames();
    cr_expect_eq(ring_used_idx(rx), 0, "the new ring is empty");
    offer_rx(7, RX_DATA + 0x30000, (uint32_t[]){ NET_FRAME_MAX }, 1);
    driver_serve_at(&d, RX);
    cr_assert_eq(ring_used_idx(rx), 1);
    cr_expect_eq(ring_used(rx, 0).id, 7);
    expect_frame_at(RX_DATA + 0x30000, 1, 100);
}

Test(net_rx_limit, reset_forgets_a_frame_that_was_held, .fini = tear_down)
{
    hold_all_but_one(2);
    negotiate(0);
    virtio_mmio_pause(&d.transport);
    cr_expect_eq(ring_used_idx(rx), 0);
}

Test(net, broken_transmit_ring_needs_a_reset)
{
    ring_desc(tx, 0, TX_DATA, 100, VRING_DESC_F_NEXT, 0);
    ring_offer(tx, 0);
    driver_serve_at(&d, TX);
    cr_expect(needs_reset(&d));
    cr_expect_eq(METRIC(event_fails), 1);
    negotiate(0);
    make_frame(host_mac, guest_mac, 60, 1);
    offer_tx(0, TX_DATA, 60, 1);
    driver_serve_at(&d, TX);
    expect_wire(60);
}

Test(net, broken_receive_ring_needs_a_reset)
{
    offer_rx_row(3, 1526);
    ring_desc(rx, 3, UINT64_C(1) << 40, 1526, VRING_DESC_F_WRITE, 0);
    ring_offer(rx, 3);
    make_frame(guest_mac, host_mac, 60, 1);
    send_wire(60);
    tell_of_frames();
    cr_expect(needs_reset(&d));
    cr_expect_eq(METRIC(event_fails), 1);
    negotiate(0);
    offer_rx_row(43, 1526);
    driver_serve_at(&d, RX);
    cr_assert_eq(ring_used_idx(rx), 1);
    expect_frame_at(RX_DATA, 1, 60);
}

/* Either as the only one or behind others that wait: no pause may then give the wrong one back. */
static void expect_refused_buffer(unsigned before, uint32_t bytes, uint16_t flags)
{
    negotiate(0);
    offer_rx_row(before, 1526);
    ring_desc(rx, 200, RX_DATA, bytes, flags, 0);
    ring_offer(rx, 200);
    net.tap_is_ready = true;
    driver_serve_at(&d, RX);
    cr_expect(needs_reset(&d), "%u bytes behind %u chains", bytes, before);
    cr_expect_eq(ring_used_idx(rx), 0);
}

Test(net, buffer_that_nothing_can_be_received_into_needs_a_reset)
{
    for (unsigned before = 0; before < 3; before++) {
        expect_refused_buffer(before, 11, VRING_DESC_F_WRITE);
        expect_refused_buffer(before, 1526, 0);
    }
    cr_expect_eq(METRIC(rx_fails), 6);
}

/* Features and configuration space. */

Test(net_config, tells_address_and_mtu, .fini = tear_down)
{
    uint8_t mac[6];
    uint16_t mtu = 0;

    start((struct options){ .mtu = 9000 });
    cr_expect(offered_features(&d) & FEATURE(VIRTIO_NET_F_MAC));
    cr_expect(offered_features(&d) & FEATURE(VIRTIO_NET_F_MTU));
    memcpy(mac, d.page + 0x100, sizeof(mac));
    memcpy(&mtu, d.page + 0x100 + 10, sizeof(mtu));
    cr_expect_arr_eq(mac, guest_mac, sizeof(mac));
    cr_expect_eq(mtu, 9000);
}

/* Each bit by its number in the specification (section 5.1.3; UDP segmentation is of version 1.3).
 */
Test(net, offers_what_it_can_and_nothing_else)
{
    static const unsigned bits[] = { 0, 1, 5, 7, 8, 10, 11, 12, 14, 15, 28, 29, 32 };
    uint64_t want = tap.has_uso ? FEATURE(54) | FEATURE(55) | FEATURE(56) : 0;

    for (unsigned i = 0; i < sizeof(bits) / sizeof(*bits); i++)
        want |= FEATURE(bits[i]);
    cr_expect_eq(offered_features(&d), want, "%llx", (unsigned long long)offered_features(&d));
}

/* Each of these makes the host send frames of 64 KiB, which must fit. */
Test(net, waits_for_room_for_what_the_guest_has_segmented)
{
    static const unsigned bits[] = { 7, 8, 10, 54, 55 };
    const uint64_t offered = offered_features(&d);
    uint64_t without = 0;

    for (unsigned i = 0; i < sizeof(bits) / sizeof(*bits); i++)
        without |= FEATURE(bits[i]);
    negotiate(without);
    cr_expect_lt(net.rx_min, 2000);
    for (unsigned i = 0; i < sizeof(bits) / sizeof(*bits); i++) {
        if (!(offered & FEATURE(bits[i])))
            continue;
        negotiate(without & ~FEATURE(bits[i]));
        cr_expect_eq(net.rx_min, NET_FRAME_MAX, "bit %u", bits[i]);
    }
}

Test(net_ended, leaves_nothing_in_the_loop)
{
    struct epoll_event ev;

    start_plain();
    net_fini(&net);
    make_frame(guest_mac, host_mac, 60, 1);
    send_wire(60);
    cr_expect_eq(epoll_wait(d.loop.epoll_fd, &ev, 1, 0), 0);
    net = (struct net){ 0 };
    net_fini(&net);
}

Test(net, offers_no_mtu_without_one)
{
    cr_expect_not(offered_features(&d) & FEATURE(VIRTIO_NET_F_MTU));
}

Test(net, offload_that_lacks_what_it_needs_is_refused_by_a_reset)
{
    const uint64_t without = offered_features(&d) & ~FEATURE(VIRTIO_NET_F_GUEST_CSUM);

    cr_expect_not(driver_start_with(&d, without));
    cr_expect(needs_reset(&d));
    cr_expect_eq(METRIC(activate_fails), 1);
    negotiate(0);
    cr_expect_not(needs_reset(&d));
}

Test(net, takes_udp_segmentation_of_either_family)
{
    negotiate(FEATURE(NET_F_GUEST_USO4));
    cr_expect_not(needs_reset(&d));
    negotiate(FEATURE(NET_F_GUEST_USO6));
    cr_expect_not(needs_reset(&d));
}

Test(net, events_of_the_queues_are_counted_and_no_others)
{
    driver_serve_at(&d, TX);
    driver_serve_at(&d, TX);
    driver_serve_at(&d, RX);
    net.frames.on_ready(&net.frames, EPOLLIN);
    net.tx_limiter.on_refilled(&net.tx_limiter);
    cr_expect_eq(METRIC(tx_queue_event_count), 2);
    cr_expect_eq(METRIC(rx_queue_event_count), 1);
    cr_expect_eq(METRIC(rx_tap_event_count), 1);
}

Test(net, tap_that_goes_is_counted_and_kills_nothing)
{
    char command[64];

    offer_rx_row(100, 1526);
    snprintf(command, sizeof(command), "ip link delete %s", tap.name);
    cr_assert_eq(system(command), 0);
    net.frames.on_ready(&net.frames, EPOLLIN | EPOLLERR);
    cr_expect_eq(METRIC(tap_read_fails), 1);
    cr_expect_not(net.tap_is_ready);
    make_frame(host_mac, guest_mac, 60, 1);
    offer_tx(0, TX_DATA, 60, 1);
    driver_serve_at(&d, TX);
    cr_expect_eq(ring_used_idx(tx), 1);
    cr_expect_eq(METRIC(tap_write_fails), 1);
    cr_expect_not(needs_reset(&d));
}

Test(net, goes_on_in_the_place_of_one_that_was_saved)
{
    struct virtio_mmio_state saved, again;
    struct net_host host;
    struct error e;

    offer_rx_row(100, 1526);
    driver_serve_at(&d, RX);
    make_frame(guest_mac, host_mac, 60, 1);
    send_wire(60);
    tell_of_frames();
    cr_expect_eq(ring_used_idx(&d.rings[RX]), 1);
    virtio_mmio_pause(&d.transport);
    virtio_mmio_get_state(&d.transport, &saved);
    cr_expect_eq(saved.queues[RX].next_avail, 1, "buffers that wait are in the ring");
    host = net.host;
    net_fini(&net);
    cr_assert_eq(net_init(&net, &host, &e), 0, "%s", e.msg);
    driver_restore(&d, &net.dev, &saved);
    virtio_mmio_get_state(&d.transport, &again);
    cr_expect_arr_eq(&again, &saved, sizeof(saved));
    make_frame(guest_mac, host_mac, 4000, 2);
    send_wire(4000);
    tell_of_frames();
    cr_expect_eq(ring_used_idx(&d.rings[RX]), 1, "it is paused");
    virtio_mmio_resume(&d.transport);
    driver_serve_at(&d, RX);
    cr_expect_eq(ring_used_idx(&d.rings[RX]), 4, "features and buffers are as they were");
    expect_frame_at(RX_DATA + 1526, 3, 4000);
    offer_tx(0, TX_DATA, 60, 1);
    driver_serve_at(&d, TX);
    cr_expect_eq(receive_wire(), 60);
}
