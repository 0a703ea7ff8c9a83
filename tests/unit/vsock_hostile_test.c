#include "tests/unit/support/vsock_guest.h"

#include <linux/sockios.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/resource.h>

static void set_up(void)
{
    struct rlimit files;

    signal(SIGPIPE, SIG_IGN);
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    guest_init();
    guest_give(RX_SLOTS);
}

TestSuite(hostile_guest, .init = set_up, .fini = guest_fini);
TestSuite(hostile_host, .init = set_up, .fini = guest_fini);

static void expect_works(void)
{
    struct stream s = open_from_host(777);

    cr_assert_eq(write(s.fd, "ok", 2), 2);
    cr_expect_arr_eq(guest_expect(VIRTIO_VSOCK_OP_RW).data, "ok", 2);
    guest_say(777, s.host_port, VIRTIO_VSOCK_OP_RST, 0);
    close(s.fd);
}

/* Uses up the buffers that the guest has given. */
static void use_up_buffers(struct stream s)
{
    while (rx->taken != rx->offered) {
        cr_assert_eq(write(s.fd, "x", 1), 1);
        guest_expect(VIRTIO_VSOCK_OP_RW);
    }
}

Test(hostile_guest, that_lies_about_a_length_is_not_believed)
{
    struct stream s = open_from_host(52);
    struct virtio_vsock_hdr h = guest_header(52, s.host_port, VIRTIO_VSOCK_OP_RW, 0);
    static const uint32_t lengths[] = { 5, 4097, 0x10000, 0x7fffffff, UINT32_MAX };
    char got[8];

    for (unsigned i = 0; i < sizeof(lengths) / sizeof(*lengths); i++) {
        h.len = lengths[i];
        guest_send_raw(&h, "abcd", 4);
        guest_expect_nothing();
        cr_expect_eq(host_read(s.fd, got, sizeof(got)), -1, "%u", lengths[i]);
    }
    h.len = 3; /* less than there is: that much counts */
    guest_send_raw(&h, "abcd", 4);
    cr_expect_eq(host_read(s.fd, got, sizeof(got)), 3);
}

Test(hostile_guest, that_sends_half_a_header_is_ignored)
{
    ring_buffer(tx, 0, TX_AT, sizeof(struct virtio_vsock_hdr) - 1, 0);
    ring_offer(tx, 0);
    guest_kick(1);
    cr_expect_eq(ring_used_idx(tx), 1);
    expect_works();
}

Test(hostile_guest, that_speaks_for_others_or_to_others_is_ignored)
{
    struct virtio_vsock_hdr h = guest_header(1, 2, VIRTIO_VSOCK_OP_REQUEST, 0);

    h.src_cid = CID + 1;
    guest_send_raw(&h, NULL, 0);
    h = guest_header(1, 2, VIRTIO_VSOCK_OP_REQUEST, 0);
    h.dst_cid = CID;
    guest_send_raw(&h, NULL, 0);
    h.dst_cid = UINT64_C(1) << 32 | VMADDR_CID_HOST;
    guest_send_raw(&h, NULL, 0);
    guest_expect_nothing();
    cr_expect_eq(metrics.vsock.tx_queue_event_fails, 3);
    expect_works();
}

Test(hostile_guest, that_wants_another_socket_type_is_reset)
{
    struct virtio_vsock_hdr h = guest_header(1, 2, VIRTIO_VSOCK_OP_REQUEST, 0);

    h.type = 2; /* seqpacket */
    guest_send_raw(&h, NULL, 0);
    guest_expect(VIRTIO_VSOCK_OP_RST);
}

Test(hostile_guest, that_uses_an_operation_out_of_turn_is_reset)
{
    static const uint16_t ops[] = {
        0, VIRTIO_VSOCK_OP_REQUEST, VIRTIO_VSOCK_OP_RESPONSE, 8, 99, UINT16_MAX
    };

    for (unsigned i = 0; i < sizeof(ops) / sizeof(*ops); i++) {
        struct stream s = open_from_host(52);

        guest_say(52, s.host_port, ops[i], 0);
        guest_expect(VIRTIO_VSOCK_OP_RST);
        cr_expect_eq(g.v.table.count, 0, "operation %u", ops[i]);
        close(s.fd);
    }
}

Test(hostile_guest, that_sends_data_before_it_has_answered_is_reset)
{
    int fd = host_command("CONNECT 52\n");
    uint32_t host_port = guest_expect(VIRTIO_VSOCK_OP_REQUEST).h.src_port;
    char byte;

    guest_send(52, host_port, "x", 1);
    guest_expect(VIRTIO_VSOCK_OP_RST);
    cr_expect_eq(host_read(fd, &byte, 1), 0);
}

Test(hostile_guest, that_speaks_on_no_connection_is_reset_but_not_for_a_reset)
{
    for (uint16_t op = 2; op < 8; op++) {
        guest_say(5, 6, op, 0);
        if (op == VIRTIO_VSOCK_OP_RST)
            guest_expect_nothing();
        else
            guest_expect(VIRTIO_VSOCK_OP_RST);
    }
}

/* Answers are owed for as many packets as there is room for; further packets wait in the ring. */
Test(hostile_guest, that_takes_no_answers_is_not_listened_to_any_more)
{
    struct virtio_vsock_hdr h = guest_header(5, 6, VIRTIO_VSOCK_OP_RW, 0);
    unsigned answers = 0;
    struct packet p;

    while (rx->taken < RX_SLOTS) {
        guest_send_raw(&h, NULL, 0);
        guest_expect(VIRTIO_VSOCK_OP_RST);
    }
    for (h.dst_port = 0; h.dst_port < VSOCK_RESETS_MAX + 40; h.dst_port++)
        guest_send_raw(&h, NULL, 0);
    cr_expect_eq(ring_used_idx(tx), RX_SLOTS + VSOCK_RESETS_MAX);
    guest_give(RX_SLOTS);
    cr_expect_eq(ring_used_idx(tx), RX_SLOTS + VSOCK_RESETS_MAX + 40, "one kick brings it on");
    for (; guest_take(&p); answers++) {
        if (answers < VSOCK_RESETS_MAX) /* the others waited in one buffer */
            cr_expect_eq(p.h.src_port, answers, "each has its own");
        guest_give(1);
    }
    cr_expect_eq(answers, VSOCK_RESETS_MAX + 40, "and nothing is lost");
    cr_expect_eq(ring_used_idx(tx), RX_SLOTS + VSOCK_RESETS_MAX + 40);
}

Test(hostile_guest, that_gives_buffers_too_small_for_a_packet_gets_them_back)
{
    struct stream s = open_from_host(52);

    use_up_buffers(s);
    cr_assert_eq(write(s.fd, "y", 1), 1);
    for (uint16_t i = 0; i < 10; i++) {
        ring_buffer(rx, i, guest_rx_slot(i), sizeof(struct virtio_vsock_hdr), VRING_DESC_F_WRITE);
        ring_offer(rx, i);
    }
    guest_kick(0);
    turn();
    cr_expect_eq(ring_used_idx(rx), RX_SLOTS + 10);
    rx->taken += 10;
    guest_give(1);
    cr_expect_arr_eq(guest_expect(VIRTIO_VSOCK_OP_RW).data, "y", 1);
}

Test(hostile_guest, that_sends_much_has_its_turn_and_no_more)
{
    struct virtio_vsock_hdr h = guest_header(5, 6, VIRTIO_VSOCK_OP_RW, 65536);

    cr_assert_eq(gmem_put(&g.d.mem, gpa(TX_AT), &h), 0);
    ring_buffer(tx, 0, TX_AT, sizeof(h) + 65536, 0);
    for (unsigned i = 0; i < 40; i++)
        ring_offer(tx, 0);
    for (unsigned taken = 16; taken < 40; taken += 16) {
        cr_expect(driver_serve_at(&g.d, 1), "there is more");
        cr_expect_eq(ring_used_idx(tx), taken, "a MiB a turn");
    }
    guest_kick(1);
    cr_expect_eq(ring_used_idx(tx), 40);
}

/* There are no buffers for what the hosts have sent, and then the guest wants none of it. */
Test(hostile_guest, that_loses_interest_in_many_connections_at_once_has_its_turn_and_no_more)
{
    const unsigned count = 200;
    struct virtio_vsock_hdr h = guest_header(0, 1, VIRTIO_VSOCK_OP_SHUTDOWN, 0);
    char name[64];
    int server;

    snprintf(name, sizeof(name), "%s_1", g.path);
    server = host_socket(name, true);
    listen(server, 4096);
    for (uint32_t port = 0; port < count; port++) {
        guest_say(port, 1, VIRTIO_VSOCK_OP_REQUEST, 0);
        guest_expect(VIRTIO_VSOCK_OP_RESPONSE);
        if (rx->offered < count)
            guest_give(1);
    }
    cr_assert_eq(rx->taken, rx->offered);
    for (uint32_t port = 0; port < count; port++)
        cr_assert_eq(write(accept(server, NULL, NULL), "x", 1), 1);
    turn();
    for (uint32_t port = 1; port < count; port++) /* the first stays, and waits for a buffer */
        guest_say(port, 1, VIRTIO_VSOCK_OP_SHUTDOWN, VIRTIO_VSOCK_SHUTDOWN_RCV);
    h.flags = VIRTIO_VSOCK_SHUTDOWN_RCV;
    cr_assert_eq(gmem_put(&g.d.mem, gpa(TX_AT), &h), 0);
    ring_buffer(tx, 0, TX_AT, sizeof(h), 0);
    ring_offer(tx, 0);
    cr_expect(driver_serve_at(&g.d, 1), "128 of them make a turn");
    cr_expect_not(TAILQ_EMPTY(&g.v.table.turns));
    guest_kick(1);
    cr_expect(TAILQ_EMPTY(&g.v.table.turns));
    close(server);
}

/* A queue of 256, of which each entry is the same chain: `empty` empty buffers, and one that is too
 * small for a packet. */
static void offer_useless_buffers(unsigned empty)
{
    reg_write(&g.d, VIRTIO_MMIO_STATUS, 0);
    turn();
    rx->size = 256;
    guest_ready();
    for (unsigned i = 0; i < empty; i++)
        ring_buffer(rx, (uint16_t)i, 0, 0, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT);
    ring_buffer(rx, (uint16_t)empty, RX_AT, 1, VRING_DESC_F_WRITE);
    for (unsigned i = 0; i < 256; i++)
        ring_offer(rx, 0);
}

/* The guest is owed a reset, for which the device looks for a buffer. */
static void expect_buffers_in_turns(unsigned most)
{
    struct virtio_vsock_hdr h = guest_header(5, 6, VIRTIO_VSOCK_OP_RW, 0);
    bool is_more;

    cr_assert_eq(gmem_put(&g.d.mem, gpa(TX_AT), &h), 0);
    ring_buffer(tx, 0, TX_AT, sizeof(h), 0);
    ring_offer(tx, 0);
    do {
        const unsigned before = ring_used_idx(rx);

        is_more = driver_serve_at(&g.d, 1);
        cr_expect_gt(ring_used_idx(rx), before);
        cr_expect_leq(ring_used_idx(rx) - before, most, "in a turn");
    } while (is_more && ring_used_idx(rx) < 256);
    cr_expect_eq(ring_used_idx(rx), 256);
    rx->taken = 256;
    guest_give(1);
    guest_expect(VIRTIO_VSOCK_OP_RST);
}

Test(hostile_guest, whose_buffers_are_of_no_use_has_its_turn_and_no_more)
{
    offer_useless_buffers(0);
    expect_buffers_in_turns(128);
}

Test(hostile_guest, whose_chains_are_long_and_empty_has_its_turn_and_no_more)
{
    offer_useless_buffers(250);
    expect_buffers_in_turns(VIRTQ_TURN_DESCRIPTORS / 251 + 1);
}

/* A read that could fill several buffers finds such a one among them. */
Test(hostile_guest, that_mixes_small_buffers_with_others_loses_no_byte)
{
    struct stream s = open_from_host(52);
    static uint8_t sent[40000];
    struct vring_used_elem elem;
    size_t have = 0;
    uint16_t first;

    for (size_t i = 0; i < sizeof(sent); i++)
        sent[i] = (uint8_t)(i * 11 + i / 256);
    use_up_buffers(s);
    for (size_t done = 0; done < sizeof(sent); done += 10000)
        cr_assert_eq(write(s.fd, sent + done, 10000), 10000);
    turn();
    first = rx->offered;
    for (uint16_t i = 0; i < 36; i++) {
        ring_buffer(rx, (first + i) % RX_SLOTS, guest_rx_slot(first + i),
                    i % 3 == 2 ? 20 : RX_BYTES, VRING_DESC_F_WRITE);
        ring_offer(rx, (first + i) % RX_SLOTS);
    }
    guest_kick(0);
    turn();
    while (ring_take(rx, &elem)) {
        uint16_t i = rx->taken - 1;
        struct packet p;

        cr_expect_eq(elem.id, i % RX_SLOTS, "in order");
        cr_expect_eq(elem.len == 0, (i - first) % 3 == 2);
        if (elem.len == 0)
            continue;
        cr_assert_eq(gmem_read_(&g.d.mem, gpa(guest_rx_slot(elem.id)), &p, RX_BYTES), 0);
        cr_assert_leq(have + p.h.len, sizeof(sent));
        cr_expect_arr_eq(p.data, sent + have, p.h.len);
        have += p.h.len;
    }
    cr_expect_eq(have, sizeof(sent));
}

Test(hostile_guest, that_shuts_down_before_it_has_answered_is_reset)
{
    int fd = host_command("CONNECT 52\n");
    uint32_t host_port = guest_expect(VIRTIO_VSOCK_OP_REQUEST).h.src_port;
    char byte;

    guest_say(52, host_port, VIRTIO_VSOCK_OP_SHUTDOWN, VIRTIO_VSOCK_SHUTDOWN_RCV);
    guest_expect(VIRTIO_VSOCK_OP_RST);
    cr_expect_eq(host_read(fd, &byte, 1), 0);
}

Test(hostile_guest, that_breaks_a_ring_stops_the_device_until_it_resets_it)
{
    struct stream s = open_from_host(52);

    ring_offer(tx, 64);
    guest_kick(1);
    cr_expect(needs_reset(&g.d));
    cr_assert_eq(write(s.fd, "x", 1), 1);
    turn(); /* and the loop rests, though there is something to read */
    reg_write(&g.d, VIRTIO_MMIO_STATUS, 0);
    turn();
    guest_ready();
    guest_give(RX_SLOTS);
    expect_works();
}

Test(hostile_guest, that_opens_connections_for_ever_gets_so_many)
{
    char name[64];
    unsigned open = 0, reset = 0;
    int server, client;
    char byte;

    snprintf(name, sizeof(name), "%s_1", g.path);
    server = host_socket(name, true);
    listen(server, 4096);
    for (uint32_t port = 0; port < VSOCK_CONNECTIONS_MAX + 10; port++) {
        struct packet p;

        guest_say(port, 1, VIRTIO_VSOCK_OP_REQUEST, 0);
        cr_assert(guest_take(&p));
        guest_give(1);
        open += p.h.op == VIRTIO_VSOCK_OP_RESPONSE;
        reset += p.h.op == VIRTIO_VSOCK_OP_RST;
    }
    cr_expect_eq(open, VSOCK_CONNECTIONS_MAX);
    cr_expect_eq(reset, 10);
    client = host_command("CONNECT 52\n");
    cr_expect_eq(host_read(client, &byte, 1), 0, "and a host none");
    close(client);
    close(server);
}

/* What the kernel holds for the sockets of all connections. */
static uint32_t bytes_in_kernel(void)
{
    uint32_t sum = 0;

    for (unsigned i = 0; i < VSOCK_BUCKETS; i++) {
        const struct vsock_conn *c;

        LIST_FOREACH(c, &g.v.table.by_ports[i], by_ports)
        {
            int bytes = 0;

            cr_assert_eq(ioctl(c->stream.fd, SIOCOUTQ, &bytes), 0);
            sum += (uint32_t)bytes;
        }
    }
    return sum;
}

static void send_on(uint32_t port, uint32_t host_port, uint32_t bytes)
{
    static uint8_t data[65536];
    struct packet p;

    guest_send(port, host_port, data, bytes);
    while (guest_take(&p))
        guest_give(1);
}

/* A host reads from as many connections as may be wide, and then no more from any. The guest fills
 * all it can: windows while something can be held, then what the sockets take. */
Test(hostile_guest, that_fills_everything_takes_so_much_of_the_host_and_no_more)
{
    unsigned refused = 0;
    char name[64];
    int server;

    for (uint32_t port = 1; port <= VSOCK_WIDE_MAX; port++) {
        struct stream s = open_from_host(port);
        static uint8_t got[65536];

        guest_give(1);
        send_on(port, s.host_port, 65536);
        for (size_t n = 0; n < sizeof(got); n += (size_t)host_read(s.fd, got, sizeof(got)))
            ;
        for (unsigned i = 0; i < 7; i++)
            send_on(port, s.host_port, 65536);
    }
    cr_expect_eq(g.v.table.total.wide, VSOCK_WIDE_MAX);
    snprintf(name, sizeof(name), "%s_1", g.path);
    server = host_socket(name, true);
    listen(server, 4096);
    for (uint32_t port = 1000; port < 1000 + VSOCK_CONNECTIONS_MAX; port++) {
        bool can_hold = g.v.table.total.held < VSOCK_HELD_MAX;

        guest_say(port, 1, VIRTIO_VSOCK_OP_REQUEST, 0);
        send_on(port, 1, 8000);
        if (can_hold)
            send_on(port, 1, 65000);
        refused += !vsock_table_find(&g.v.table, 1, port);
    }
    cr_expect_eq(refused, VSOCK_WIDE_MAX, "too many");
    cr_expect_eq(g.v.table.count, VSOCK_CONNECTIONS_MAX);
    cr_expect_eq(g.v.table.total.held, VSOCK_HELD_MAX);
    cr_assert(vsock_table_find(&g.v.table, 1, 2000));
    send_on(2000, 1, 65000);
    cr_expect_null(vsock_table_find(&g.v.table, 1, 2000), "nothing more can be held for it");
    cr_expect_leq(bytes_in_kernel(), VSOCK_IN_KERNEL_MAX);
    cr_expect_geq(bytes_in_kernel(), VSOCK_IN_KERNEL_MAX / 4 * 3, "the test fills it");
    close(server);
}

Test(hostile_guest, that_starts_the_same_connection_twice_loses_it)
{
    struct stream s = open_from_guest(1000);

    guest_say(1000, 1, VIRTIO_VSOCK_OP_REQUEST, 0);
    guest_expect(VIRTIO_VSOCK_OP_RST);
    cr_expect_eq(g.v.table.count, 0);
    close(s.fd);
}

static const char *const bad_commands[] = { "CONNECT\n",
                                            "CONNECT 000000000000000000000000",
                                            "CONNECT -1\n",
                                            "CONNECT 52x\n",
                                            "CONNECT 4294967296\n",
                                            "CONNECT52\n\n\n",
                                            "GET / HTTP/1.1\r\n\r\n",
                                            "\n\n\n\n\n\n\n\n\n\n\n",
                                            "CONNECT 000000000000000000000000000052\n" };

Test(hostile_host, with_a_bad_command_is_closed_without_a_word)
{
    for (unsigned i = 0; i < sizeof(bad_commands) / sizeof(*bad_commands); i++) {
        int fd = host_command(bad_commands[i]);
        char byte;

        cr_expect_eq(host_read(fd, &byte, 1), 0, "%s", bad_commands[i]);
        close(fd);
    }
    guest_expect_nothing();
    cr_expect_eq(g.v.table.count, 0);
    expect_works();
}

Test(hostile_host, with_a_nul_in_its_command_is_closed_without_a_word)
{
    static const char command[] = "CONNECT 52\0x\n";
    int fd = host_socket(g.path, false);
    char byte;

    cr_assert_eq(write(fd, command, sizeof(command) - 1), (ssize_t)sizeof(command) - 1);
    cr_expect_eq(host_read(fd, &byte, 1), 0);
    cr_expect_eq(g.v.table.count, 0);
}

/* Also byte by byte; the loop rests in between. */
Test(hostile_host, that_does_not_end_its_command_is_waited_for_as_far_as_a_command_goes)
{
    int fd = host_socket(g.path, false);
    char byte;

    for (unsigned i = 0; i < VSOCK_COMMAND_BYTES_MAX; i++) {
        cr_expect_eq(host_read(fd, &byte, 1), -1, "after %u bytes", i);
        cr_assert_eq(write(fd, "C", 1), 1);
    }
    cr_expect_eq(host_read(fd, &byte, 1), 0);
    fd = host_command("CONN");
    cr_assert_eq(g.v.table.count, 1);
    close(fd);
    turn();
    cr_expect_eq(g.v.table.count, 0, "one that goes is forgotten");
}

Test(hostile_host, that_never_sends_a_command_makes_room_for_one_that_does)
{
    int fds[VSOCK_CONNECTIONS_MAX + 20];
    char byte;

    for (unsigned i = 0; i < sizeof(fds) / sizeof(*fds); i++)
        fds[i] = host_command(i % 2 ? "" : "CONNECT 5"); /* or half of one */
    cr_expect_eq(g.v.table.count, VSOCK_CONNECTIONS_MAX);
    cr_expect_eq(host_read(fds[0], &byte, 1), 0, "the oldest goes first");
    cr_expect_eq(host_read(fds[21], &byte, 1), -1);
    expect_works();
    for (unsigned i = 0; i < sizeof(fds) / sizeof(*fds); i++)
        close(fds[i]);
    turn();
    cr_expect_eq(g.v.table.count, 0);
}

Test(hostile_host, that_sends_much_does_not_keep_others_from_their_turn)
{
    struct stream greedy = open_from_host(1), modest = open_from_host(2);
    static uint8_t flood[60000];
    struct packet p = { 0 };
    unsigned before = 0;

    use_up_buffers(modest);
    cr_assert_eq(write(greedy.fd, flood, sizeof(flood)), (ssize_t)sizeof(flood));
    turn();
    cr_assert_eq(write(modest.fd, "x", 1), 1);
    turn();
    guest_give(RX_SLOTS);
    for (; guest_take(&p) && p.h.dst_port != 2; before += p.h.len)
        ;
    cr_expect_eq(p.h.dst_port, 2);
    cr_expect_leq(before, RX_BYTES, "one read of the greedy one comes before");
}

Test(hostile_host, whose_bytes_the_guest_has_no_buffers_for_lets_the_loop_rest)
{
    struct stream s = open_from_host(52);
    static uint8_t flood[60000];
    unsigned buffers = 0;
    struct packet p;

    for (unsigned i = 0; i < 8; i++) {
        cr_assert_eq(write(s.fd, flood, 7000), 7000);
        turn();
    }
    close(s.fd);
    turn(); /* which fails if it never ends */
    while (guest_take(&p) && p.h.op == VIRTIO_VSOCK_OP_RW)
        buffers++, guest_give(1);
    cr_expect_eq(p.h.op, VIRTIO_VSOCK_OP_SHUTDOWN);
    cr_expect_gt(buffers, 0);
}
