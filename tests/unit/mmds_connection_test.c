#include "tests/unit/support/mmds_guest.h"

#define GET_D     "GET /d HTTP/1.1\r\n\r\n"
#define GET_BIG   "GET /big HTTP/1.1\r\n\r\n"
#define D_BYTES   115u
#define BIG_BYTES 50107u

TestSuite(mmds_connection, .init = start_stack, .fini = end_stack);

static void expect_forgotten(void)
{
    cr_expect_eq(stack->budget.left, whole_budget);
    for (unsigned i = 0; i < MMDS_CONNECTIONS; i++)
        cr_expect_eq(stack->connections[i].state, MMDS_UNUSED, "%u", i);
    cr_expect_eq(mmds_stack_deadline(stack), 0);
}

/* Moves the clock to when the stack wants to be woken. */
static void wait_for_deadline(void)
{
    EXPECT_SILENCE();
    cr_assert_gt(mmds_stack_deadline(stack), now);
    now = mmds_stack_deadline(stack);
    mmds_stack_wake(stack);
}

Test(mmds_connection, a_syn_is_answered_with_the_guest_s_segment_size)
{
    static const uint16_t asked[] = { 0, 99, 100, 536, 1460, 65495, 65496 };
    static const uint16_t told[] = { 536, 536, 100, 536, 1460, 65495, 536 };

    for (unsigned i = 0; i < sizeof(asked) / sizeof(*asked); i++) {
        struct mmds_segment s = segment_of((uint16_t)(30000 + i), 7, 0, SYN, "");

        s.mss = asked[i];
        say_segment(&s);
        EXPECT_SEGMENT(30000 + i, SYN | ACK);
        cr_expect_eq(heard.ack, 8);
        cr_expect_eq(heard.window, 2500);
        cr_expect_eq(heard.mss, told[i], "%u", asked[i]);
    }
}

Test(mmds_connection, a_syn_s_other_flags_and_data_do_not_matter)
{
    uint8_t frame[100];
    struct mmds_segment s = segment_of(30003, 5, 0, SYN, "x");
    size_t n = make_guest_frame(frame, &s);

    frame[14 + 20 + 13] |= 0xc0 | 0x28; /* ECE, CWR, URG, PSH */
    say_frame(frame, n);
    EXPECT_SEGMENT(30003, SYN | ACK);
    cr_expect_eq(heard.ack, 6, "its data come again");
}

Test(mmds_connection, what_belongs_to_none_is_reset_as_the_protocol_wants_it)
{
    struct mmds_segment s = segment_of(30000, 5, 0, SYN, "");

    s.remote_port = 81;
    say_segment(&s);
    EXPECT_SEGMENT(30000, RST | ACK);
    cr_expect(heard.seq == 0 && heard.ack == 6 && heard.remote_port == 81);
    say(30001, 5, 0x1234, ACK, "");
    EXPECT_SEGMENT(30001, RST);
    cr_expect_eq(heard.seq, 0x1234);
    say(30002, 5, 0, FIN, "abc");
    EXPECT_SEGMENT(30002, RST | ACK);
    cr_expect_eq(heard.ack, 9);
    say(30002, 5, 9, SYN | ACK, "");
    EXPECT_SEGMENT(30002, RST);
    say(30002, 5, 0, SYN | FIN, "");
    EXPECT_SEGMENT(30002, RST | ACK);
    cr_expect_eq(heard.ack, 7);
    say(30002, 5, 0, RST, "");
    say(30002, 5, 0, RST | SYN, "");
    EXPECT_SILENCE();
    expect_forgotten();
}

Test(mmds_connection, the_31st_is_refused_until_one_has_been_idle)
{
    for (uint16_t i = 0; i < MMDS_CONNECTIONS; i++) {
        (void)open_port((uint16_t)(20000 + i), 1460, 65535);
        now += SECOND / 10;
    }
    say(21000, 5, 0, SYN, "");
    EXPECT_SEGMENT(21000, RST | ACK);
    cr_expect_eq(heard.ack, 6);
    now += 7 * SECOND + SECOND / 5;
    say(20000, 1001, stack->connections[0].next, ACK, "G"); /* the oldest is at work */
    EXPECT_SEGMENT(20000, ACK);
    say(21000, 5, 0, SYN, "");
    EXPECT_SEGMENT(20001, RST);
    EXPECT_SEGMENT(21000, SYN | ACK);
    say(21001, 5, 0, SYN, "");
    EXPECT_SEGMENT(20002, RST);
    EXPECT_SEGMENT(21001, SYN | ACK);
    say(20001, 1001, 77, ACK, "");
    EXPECT_SEGMENT(20001, RST);
    cr_expect_eq(heard.seq, 77);
}

Test(mmds_connection, a_request_may_come_a_byte_at_a_time)
{
    const uint32_t first = open_port(30000, 1460, 65535);
    const char *request = GET_D;

    for (uint32_t i = 0; request[i]; i++) {
        const char byte[2] = { request[i] };

        say(30000, 1001 + i, first, ACK, byte);
        cr_assert(hear());
        cr_expect_eq(heard.ack, 1002 + i);
        cr_expect_eq(heard.bytes, request[i + 1] ? 0 : D_BYTES);
        cr_expect_eq(heard.window, request[i + 1] ? 2499 - i : 2500);
        EXPECT_SILENCE();
    }
    say(30000, 1001 + sizeof(GET_D) - 1, first + D_BYTES, ACK, "");
    EXPECT_SILENCE();
    cr_expect_eq(stack->budget.left, whole_budget);
}

Test(mmds_connection, requests_in_a_row_are_answered_one_after_the_other)
{
    uint32_t first = open_port(30000, 1460, 65535);

    say(30000, 1001, first, ACK, GET_D GET_D);
    for (unsigned i = 0; i < 2; i++) {
        cr_assert(hear());
        cr_expect_eq(heard.seq, first);
        cr_expect_eq(heard.bytes, D_BYTES);
        EXPECT_SILENCE();
        first += D_BYTES;
        say(30000, 1001 + 2 * (sizeof(GET_D) - 1), first, ACK, "");
    }
    EXPECT_SILENCE();
}

Test(mmds_connection, what_comes_early_late_or_twice_is_taken_once)
{
    const uint32_t first = open_port(30000, 1460, 65535);

    say(30000, 1005, first, ACK, "/d HTTP/1.1\r\n\r\n");
    EXPECT_SEGMENT(30000, ACK);
    cr_expect_eq(heard.ack, 1001);
    say(30000, 1001, first, ACK, "GET ");
    EXPECT_SEGMENT(30000, ACK);
    cr_expect_eq(heard.ack, 1005);
    say(30000, 1001, first, ACK, "GET ");
    EXPECT_SEGMENT(30000, ACK);
    say(30000, 1003, first, ACK, "T /d HTTP/1.1\r\n\r\n");
    cr_assert(hear());
    cr_expect_eq(heard.bytes, D_BYTES);
    say(30000, 1001 + sizeof(GET_D) - 1 + 1, first + D_BYTES + 1, ACK, ""); /* of the future */
    EXPECT_SILENCE();
    cr_expect_lt(stack->budget.left, whole_budget, "the answer is kept");
}

/* All that a guest hears of an answer, which it acknowledges segment by segment. */
static uint32_t hear_all(uint16_t port, uint32_t seq, uint32_t first, uint16_t mss, uint16_t window)
{
    uint32_t total = 0;

    while (hear()) {
        struct mmds_segment s = segment_of(port, seq, heard.seq + (uint32_t)heard.bytes, ACK, "");

        cr_assert_eq(heard.seq, first + total);
        cr_assert(heard.bytes > 0 && heard.bytes <= mss && heard.bytes <= window);
        cr_assert_eq(heard_frame[14 + 20 + 13] & 8, total + heard.bytes == BIG_BYTES ? 8 : 0,
                     "PSH");
        total += (uint32_t)heard.bytes;
        s.window = window;
        say_segment(&s);
    }
    return total;
}

Test(mmds_connection, an_answer_keeps_to_the_guest_s_segments_and_window)
{
    static const uint16_t sizes[][2] = { { 300, 600 },    { 100, 65535 },   { 1460, 100 },
                                         { 1460, 65535 }, { 65495, 65535 }, { 8960, 20000 } };

    for (uint16_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        const uint16_t port = 30000 + i, mss = sizes[i][0], window = sizes[i][1];
        const uint32_t first = open_port(port, mss, window);
        struct mmds_segment s = segment_of(port, 1001, first, ACK, GET_BIG);

        s.window = window;
        say_segment(&s);
        cr_expect_eq(hear_all(port, 1001 + sizeof(GET_BIG) - 1, first, mss, window), BIG_BYTES);
    }
    cr_expect_eq(stack->budget.left, whole_budget);
}

Test(mmds_connection, a_guest_that_never_acknowledges_is_given_up)
{
    const uint32_t first = open_port(30000, 1460, 65535);
    const uint64_t start = now;
    unsigned times = 0;

    say(30000, 1001, first, ACK, GET_BIG);
    while (hear() && !heard.has_rst) {
        uint32_t next = first;

        do { /* each time from the first byte on */
            cr_assert_eq(heard.seq, next);
            next += (uint32_t)heard.bytes;
        } while (hear());
        cr_expect_eq(next - first, BIG_BYTES);
        times++;
        wait_for_deadline();
    }
    cr_expect(heard.has_rst);
    cr_expect_eq(times, MMDS_RESENDS + 1);
    cr_expect(now - start > 5 * SECOND && now - start < 20 * SECOND);
    EXPECT_SILENCE();
    expect_forgotten();
}

Test(mmds_connection, only_what_was_sent_is_waited_for)
{
    const uint32_t first = open_port(30000, 1460, 65535);

    say(30000, 1001, first, ACK, GET_D); /* and there are no buffers to answer it */
    cr_expect_eq(mmds_stack_deadline(stack), 0);
    now += 1000 * SECOND;
    cr_assert(hear());
    cr_expect(heard.bytes == D_BYTES && !heard.has_rst);
}

Test(mmds_connection, a_closed_window_is_probed_for_as_long_as_the_guest_answers)
{
    const uint32_t first = open_port(30000, 1460, 0);
    struct mmds_segment s = segment_of(30000, 1001, first, ACK, GET_BIG);
    const uint64_t start = now;

    s.window = 0;
    say_segment(&s);
    EXPECT_SEGMENT(30000, ACK);
    s = segment_of(30000, heard.ack, first, ACK, "");
    s.window = 0;
    while (now - start < 60 * SECOND) {
        wait_for_deadline();
        cr_assert(hear());
        cr_expect(heard.bytes == 1 && heard.seq == first);
        say_segment(&s);
    }
    s.window = 65535;
    say_segment(&s);
    cr_assert(hear());
    cr_expect_eq(heard.seq, first + 1);
    s.ack = first; /* the probe was lost */
    say_segment(&s);
    while (hear())
        ;
    wait_for_deadline();
    cr_expect_eq(hear_all(30000, s.seq, first, 1460, 65535), BIG_BYTES);
}

Test(mmds_connection, a_closed_window_is_given_up_when_nobody_answers)
{
    const uint32_t first = open_port(30000, 1460, 0);
    struct mmds_segment s = segment_of(30000, 1001, first, ACK, GET_D);
    unsigned probes = 0;

    s.window = 0;
    say_segment(&s);
    EXPECT_SEGMENT(30000, ACK);
    for (;; probes++) {
        wait_for_deadline();
        cr_assert(hear());
        if (heard.has_rst)
            break;
        cr_assert_eq(heard.bytes, 1);
    }
    cr_expect_eq(probes, MMDS_RESENDS);
    expect_forgotten();
}

Test(mmds_connection, the_guest_s_end_comes_behind_its_answers)
{
    const uint32_t first = open_port(30000, 1460, 65535);
    const uint32_t end = 1001 + sizeof(GET_D) - 1 + 1;

    say(30000, 1001, first, ACK | FIN, GET_D);
    cr_assert(hear());
    cr_expect(heard.bytes == D_BYTES && heard.ack == end && !heard.has_fin);
    say(30000, end, first + D_BYTES, ACK, "");
    EXPECT_SEGMENT(30000, ACK | FIN);
    cr_expect_eq(heard.seq, first + D_BYTES);
    wait_for_deadline();
    EXPECT_SEGMENT(30000, ACK | FIN);
    say(30000, end, first + D_BYTES + 1, ACK, "");
    EXPECT_SILENCE();
    expect_forgotten();
}

Test(mmds_connection, half_a_request_before_the_end_is_forgotten)
{
    const uint32_t first = open_port(30000, 1460, 65535);

    say(30000, 1001, first, ACK | FIN, "GET /d");
    EXPECT_SEGMENT(30000, ACK | FIN);
    cr_expect_eq(heard.ack, 1008);
    say(30000, 1008, first + 1, ACK, "");
    EXPECT_SILENCE();
    expect_forgotten();
}

Test(mmds_connection, nothing_is_taken_behind_the_guest_s_end)
{
    const uint32_t first = open_port(30000, 1460, 65535);
    const uint32_t end = 1001 + sizeof(GET_D) - 1 + 1;

    say(30000, 1001, first, ACK | FIN, GET_D);
    cr_assert(hear());
    say(30000, end, first, ACK | FIN, GET_D);
    EXPECT_SEGMENT(30000, ACK);
    cr_expect_eq(heard.ack, end);
}

Test(mmds_connection, our_end_waits_for_the_guest_s_for_a_while)
{
    static const char request[] = "GET /d HTTP/1.0\r\n\r\n";
    const uint32_t next = 1001 + sizeof(request) - 1;

    for (unsigned late = 0; late < 2; late++) {
        uint32_t first = open_port(30000, 1460, 65535);

        say(30000, 1001, first, ACK, request);
        cr_assert(hear());
        first += (uint32_t)heard.bytes;
        EXPECT_SEGMENT(30000, ACK | FIN);
        say(30000, next, first + 1, ACK, "more"); /* is taken and not answered */
        EXPECT_SEGMENT(30000, ACK);
        cr_expect_eq(heard.ack, next + 4);
        cr_expect_eq(stack->budget.left, whole_budget);
        if (late) {
            wait_for_deadline();
            EXPECT_SEGMENT(30000, RST);
            cr_expect_eq(heard.seq, first + 1);
        } else {
            say(30000, next + 4, first + 1, ACK | FIN, "");
            EXPECT_SEGMENT(30000, ACK);
            cr_expect_eq(heard.ack, next + 5);
        }
        EXPECT_SILENCE();
        expect_forgotten();
    }
}

Test(mmds_connection, a_request_without_an_end_is_refused_and_its_rest_swallowed)
{
    const uint32_t first = open_port(30000, 1460, 65535);
    static char piece[1251];

    memset(piece, 'a', 1250);
    say(30000, 1001, first, ACK, piece);
    EXPECT_SEGMENT(30000, ACK);
    cr_expect_eq(heard.window, 1250);
    say(30000, 2251, first, ACK, piece);
    cr_assert(hear());
    cr_expect(heard.bytes > 100 && memcmp(heard.payload, "HTTP/1.1 431 ", 13) == 0);
    EXPECT_SEGMENT(30000, ACK | FIN);
    say(30000, 3501, heard.seq + 1, ACK, piece);
    EXPECT_SEGMENT(30000, ACK);
    cr_expect_eq(heard.ack, 4751);
    cr_expect_eq(stack->budget.left, whole_budget);
}

Test(mmds_connection, one_of_2500_bytes_is_served_and_more_than_the_window_is_not_taken)
{
    const uint32_t first = open_port(30000, 1460, 65535);
    static char request[3001];

    memset(request, 'a', 3000);
    memcpy(request, "GET /d HTTP/1.1\r\nX: ", 20);
    memcpy(request + 2496, "\r\n\r\n", 4);
    say(30000, 1001, first, ACK, request);
    cr_assert(hear());
    cr_expect_eq(heard.ack, 3501);
    cr_expect_eq(heard.bytes, D_BYTES);
}

Test(mmds_connection, a_reset_must_be_in_the_window)
{
    const uint32_t first = open_port(30000, 1460, 65535);

    say(30000, 1000, 0, RST, "");
    say(30000, 1001 + 2501, 0, RST, "");
    EXPECT_SILENCE();
    say(30000, 1001, first, ACK, "G");
    EXPECT_SEGMENT(30000, ACK);
    say(30000, 1002, 0, RST, "");
    EXPECT_SILENCE();
    expect_forgotten();
}

Test(mmds_connection, a_syn_that_comes_again_is_answered_again)
{
    say(30000, 1000, 0, SYN, "");
    EXPECT_SEGMENT(30000, SYN | ACK);
    const uint32_t first = heard.seq;
    now += SECOND / 10;
    say(30000, 1000, 0, SYN, "");
    EXPECT_SEGMENT(30000, SYN | ACK);
    cr_expect_eq(heard.seq, first);
    say(30000, 1001, first + 1, ACK, "");
    say(30000, 1000, 0, SYN, ""); /* late */
    EXPECT_SEGMENT(30000, ACK);
    cr_expect_eq(heard.ack, 1001);
    say(30000, 7777, 0, SYN, ""); /* of a guest that forgot, and resets what it does not know */
    EXPECT_SEGMENT(30000, ACK);
    say(30000, heard.ack, 0, RST, "");
    expect_forgotten();
}

Test(mmds_connection, a_handshake_that_stops_is_given_up)
{
    unsigned times = 1;

    say(30000, 1000, 0, SYN, "");
    EXPECT_SEGMENT(30000, SYN | ACK);
    for (;; times++) {
        wait_for_deadline();
        cr_assert(hear());
        if (heard.has_rst)
            break;
        cr_expect_eq(heard_flags(), SYN | ACK);
    }
    cr_expect_eq(times, MMDS_RESENDS + 1);
    expect_forgotten();
}

/* Whatever they ask for: an answer has nearly the size of half of it. */
Test(mmds_connection, what_all_connections_hold_is_bounded)
{
    unsigned resets = 0, answers = 0;
    uint32_t first[MMDS_CONNECTIONS];
    size_t least = whole_budget;

    cr_expect_leq(whole_budget + sizeof(*stack), MMDS_STACK_BYTES);
    for (unsigned i = 0; i < MMDS_CONNECTIONS; i++)
        first[i] = open_port((uint16_t)(30000 + i), 1460, 0);
    for (unsigned i = 0; i < MMDS_CONNECTIONS; i++) {
        struct mmds_segment s =
            segment_of((uint16_t)(30000 + i), 1001, first[i], ACK, i % 3 ? "GET /d" : GET_BIG);

        s.window = 0;
        say_segment(&s);
        cr_assert(hear());
        resets += heard.has_rst;
        answers += !heard.has_rst && i % 3 == 0;
        least = stack->budget.left < least ? stack->budget.left : least;
    }
    cr_expect_eq(answers, 2);
    cr_expect_geq(resets, 8);
    cr_expect_lt(least, 30000);
    for (unsigned i = 0; i < MMDS_CONNECTIONS; i++)
        say((uint16_t)(30000 + i), 1030, 0, RST, "");
    while (hear())
        ;
    expect_forgotten();
}

Test(mmds_connection, replies_that_nobody_takes_are_bounded)
{
    unsigned count = 0;

    for (unsigned i = 0; i < 1000; i++)
        say((uint16_t)(1000 + i), 5, 9, ACK, "");
    for (; hear(); count++)
        cr_assert(heard.has_rst && heard.local_port == 1000 + count);
    cr_expect_eq(count, MMDS_REPLIES);
}

Test(mmds_connection, segments_fit_where_there_is_little_room)
{
    const uint32_t first = open_port(30000, 1460, 65535);
    uint8_t out[100];
    size_t n;
    uint32_t next = first;

    say(30000, 1001, first, ACK, GET_D);
    while ((n = hear_frame(out, sizeof(out))) > 54)
        next += (uint32_t)n - 54;
    cr_expect_eq(next - first, D_BYTES);
}
