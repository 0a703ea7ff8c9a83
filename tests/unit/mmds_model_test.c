/*
 * The service and a model of a guest's TCP on a link that loses, repeats and reorders frames, by
 * seeded chance: what the guest reads is what was sent, from the first byte on, until it has all
 * of it or the connection is reset.
 */
#include "tests/unit/support/mmds_guest.h"

#define TICK_NS  (SECOND / 20)
#define FLIGHT   256u
#define READ_MAX 120000u
#define TICKS    20000u

struct conditions {
    unsigned seed, lost, repeated; /* in percent */
    unsigned delay;                /* up to so many ticks, and no two frames the same */
    uint16_t mss, window;
};

struct flying {
    unsigned due;
    size_t n;
    bool is_to_guest;
    uint8_t bytes[2000];
};

struct guest {
    bool is_open, is_reset, is_closed;
    bool has_end;                 /* the service's */
    uint32_t first, acknowledged; /* its SYN's number, and how much of its stream came through */
    uint32_t next;                /* of the service */
    size_t read;
    uint8_t bytes[READ_MAX];
};

static const char requests[] = "GET /d HTTP/1.1\r\n\r\nGET /big HTTP/1.1\r\n\r\n"
                               "GET /nothing HTTP/1.1\r\n\r\nGET /big HTTP/1.1\r\nAccept: "
                               "application/json\r\nConnection: close\r\n\r\n";
#define REQUEST_BYTES ((uint32_t)sizeof(requests) - 1)
#define PORT          30000

static struct conditions conditions;
static struct guest guest;
static struct flying flights[FLIGHT];
static unsigned tick;
static uint64_t random_state;
static uint8_t expected[READ_MAX];
static size_t expected_bytes;

static unsigned random_below(unsigned n)
{
    random_state = random_state * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (unsigned)(random_state >> 33) % n;
}

/* What the answers are, one after the other. */
static void foresee(void)
{
    struct mmds_budget budget = { 1 << 20 };
    struct mmds_answer answer;

    expected_bytes = 0;
    for (const char *at = requests, *end; (end = strstr(at, "\r\n\r\n")); at = end + 4) {
        cr_assert(mmds_service_answer(&service, at, (size_t)(end + 4 - at), now, &budget, &answer));
        memcpy(expected + expected_bytes, answer.memory + answer.begin, answer.bytes);
        expected_bytes += answer.bytes;
        mmds_answer_free(&answer, &budget);
    }
}

static void launch(const uint8_t *bytes, size_t n, bool is_to_guest)
{
    unsigned copies = random_below(100) < conditions.lost ? 0 : 1;

    cr_assert_leq(n, sizeof(flights->bytes));
    copies += random_below(100) < conditions.repeated;
    for (unsigned i = 0; i < FLIGHT && copies > 0; i++) {
        struct flying *f = &flights[i];

        if (f->n)
            continue;
        *f = (struct flying){ tick + random_below(conditions.delay + 1), n, is_to_guest, { 0 } };
        memcpy(f->bytes, bytes, n);
        copies--;
    } /* a link has room for so many; others are lost */
}

static void guest_says(uint32_t offset, unsigned flags, size_t n)
{
    struct mmds_segment s = segment_of(PORT, guest.first + offset, guest.next, flags, "");
    uint8_t frame[2000];

    s.mss = flags & SYN ? conditions.mss : 0;
    s.window = conditions.window;
    if (n) {
        s.payload = (const uint8_t *)requests + offset - 1;
        s.bytes = n;
    }
    launch(frame, make_guest_frame(frame, &s), false);
}

static void guest_hears(const struct mmds_segment *s)
{
    const uint32_t end = REQUEST_BYTES + 1 + guest.has_end; /* SYN, requests, FIN */

    if (s->has_rst) { /* the answer to a late repetition, where all is over */
        guest.is_reset = !guest.has_end;
        guest.is_closed = guest.has_end;
        return;
    }
    if (s->has_syn && !guest.is_open) {
        cr_assert_eq(s->ack, guest.first + 1);
        guest.is_open = true;
        guest.next = s->seq + 1;
    }
    if (!guest.is_open)
        return;
    if (s->ack - guest.first > guest.acknowledged && s->ack - guest.first <= end)
        guest.acknowledged = s->ack - guest.first;
    if (s->seq == guest.next && !s->has_syn) {
        cr_assert_leq(guest.read + s->bytes, expected_bytes);
        cr_assert_arr_eq(s->payload, expected + guest.read, s->bytes);
        guest.read += s->bytes;
        guest.next += (uint32_t)s->bytes + s->has_fin;
        guest.has_end = guest.has_end || s->has_fin;
    }
    if (s->bytes || s->has_fin || s->has_syn)
        guest_says(guest.acknowledged > REQUEST_BYTES + 1 ? guest.acknowledged : 1 + REQUEST_BYTES,
                   ACK, 0);
}

/* Every few ticks: what was not acknowledged goes out again, cut anywhere. */
static void guest_ticks(void)
{
    const uint32_t done = guest.acknowledged > 0 ? guest.acknowledged - 1 : 0;

    if (tick % 4 != 0 || guest.is_reset)
        return;
    if (!guest.is_open) {
        guest_says(0, SYN, 0);
    } else if (done < REQUEST_BYTES) {
        const uint32_t n = 1 + random_below(REQUEST_BYTES - done);

        guest_says(1 + done, ACK, n);
        if (done + n < REQUEST_BYTES)
            guest_says(1 + done + n, ACK, REQUEST_BYTES - done - n);
    } else if (guest.has_end) {
        guest_says(1 + REQUEST_BYTES, ACK | FIN, 0);
    } else if (tick % 100 == 0) { /* is anybody there? */
        guest_says(1 + REQUEST_BYTES, ACK, 0);
    }
}

static void deliver(struct flying *f)
{
    struct mmds_ends ends;
    struct mmds_segment s;
    const size_t n = f->n;

    f->n = 0;
    if (!f->is_to_guest) {
        say_frame(f->bytes, n);
        return;
    }
    cr_assert_eq(mmds_frame_parse(f->bytes, n, n, &ends, &s), MMDS_FRAME_TCP);
    guest_hears(&s);
}

static bool is_over(void)
{
    return guest.is_reset || guest.is_closed ||
           (guest.has_end && guest.acknowledged == REQUEST_BYTES + 2);
}

static void run(const struct conditions *c)
{
    uint8_t frame[2000];
    size_t n;

    conditions = *c;
    random_state = c->seed;
    memset(flights, 0, sizeof(flights));
    guest = (struct guest){ .first = UINT32_MAX - 50 + random_below(100) };
    now = (UINT32_MAX - random_below(40000)) * UINT64_C(4000); /* numbers wrap, ours, too */
    foresee();
    for (tick = 0; tick < TICKS && !is_over(); tick++, now += TICK_NS) {
        guest_ticks();
        for (unsigned i = 0, k = random_below(FLIGHT); i < FLIGHT; i++, k = (k + 1) % FLIGHT)
            if (flights[k].n && flights[k].due <= tick)
                deliver(&flights[k]);
        if (mmds_stack_deadline(stack) && mmds_stack_deadline(stack) <= now)
            mmds_stack_wake(stack);
        while ((n = hear_frame(frame, sizeof(frame))))
            launch(frame, n, true);
    }
    cr_assert(is_over(), "seed %u: %zu of %zu bytes", c->seed, guest.read, expected_bytes);
    cr_assert(guest.is_reset || guest.read == expected_bytes, "seed %u", c->seed);
    for (tick = 0; tick < TICKS && stack->budget.left < whole_budget; tick++, now += TICK_NS) {
        mmds_stack_wake(stack);
        while (hear_frame(frame, sizeof(frame)))
            ;
    }
    cr_assert_eq(stack->budget.left, whole_budget, "seed %u: what it held is given back", c->seed);
}

TestSuite(mmds_model, .init = start_stack, .fini = end_stack);

static void run_seeds(struct conditions c, unsigned seeds, bool may_be_reset)
{
    for (c.seed = 1; c.seed <= seeds; c.seed++) {
        run(&c);
        cr_assert(may_be_reset || !guest.is_reset, "seed %u was reset at %zu", c.seed, guest.read);
        end_stack();
        start_stack();
    }
}

Test(mmds_model, every_byte_arrives_on_a_good_link)
{
    run_seeds((struct conditions){ .mss = 1460, .window = 65535 }, 5, false);
}

Test(mmds_model, every_byte_arrives_in_any_order_and_any_number_of_times)
{
    run_seeds((struct conditions){ .repeated = 20, .delay = 3, .mss = 1460, .window = 8000 }, 30,
              false);
}

Test(mmds_model, every_byte_arrives_when_some_are_lost)
{
    run_seeds((struct conditions){ .lost = 10, .mss = 1460, .window = 8000 }, 30, false);
    run_seeds(
        (struct conditions){ .lost = 10, .repeated = 10, .delay = 2, .mss = 536, .window = 5000 },
        20, false);
}

Test(mmds_model, what_arrives_is_right_when_most_are_lost)
{
    run_seeds(
        (struct conditions){ .lost = 60, .repeated = 10, .delay = 2, .mss = 1460, .window = 65535 },
        60, true);
}
