/*
 * The metadata service's stack under a hostile guest: frames of any content, and segments that are
 * nearly right, while time passes and buffers come and go.
 */
#include "mmds/stack.h"

#include "tests/fuzz/support/input.h"

#define SERVICE UINT32_C(0xa9fea9fe)
#define PORTS   40u

static const char *const texts[] = {
    "GET /d HTTP/1.1\r\n\r\n",
    "GET /big HTTP/1.0\r\n\r\n",
    "GET / HTTP/1.1\r\nAccept: application/json\r\n\r\n",
    "PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 6\r\n\r\n",
    "GET /nothing HTTP/1.1\r\nConnection: close\r\n\r\nGET /d HTTP/1.1\r\n\r\n",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "\r\n\r\n",
};

static struct mmds_stack *stack;
static size_t whole_budget;
static uint64_t now;

static uint16_t sum_of(const uint8_t *at, size_t n, uint32_t sum)
{
    for (size_t i = 0; i < n; i++)
        sum += i % 2 ? at[i] : (uint32_t)at[i] << 8;
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

static void check_connection(const struct mmds_connection *c, size_t *held)
{
    if (c->state == MMDS_UNUSED) {
        MUST(!c->request && !c->answer.memory);
        return;
    }
    MUST(c->request_bytes <= MMDS_WINDOW && (c->request || c->request_bytes == 0));
    MUST(c->next - c->first <= c->sent - c->first && c->sent - c->first <= c->end + 1 - c->first);
    if (c->request)
        *held += MMDS_WINDOW + MMDS_ALLOCATION_BYTES;
    if (c->answer.memory) {
        MUST(c->end - c->first <= c->answer.bytes);
        *held += c->answer.allocated + MMDS_ALLOCATION_BYTES;
    }
}

static void check_stack(void)
{
    size_t held = 0;

    for (unsigned i = 0; i < MMDS_CONNECTIONS; i++)
        check_connection(&stack->connections[i], &held);
    MUST(stack->budget.left + held == whole_budget);
    MUST(whole_budget + sizeof(*stack) <= MMDS_STACK_BYTES);
}

static void check_frame(const struct mmds_frame *f, size_t room)
{
    static uint8_t frame[70000];
    const size_t n = f->header_bytes + f->bytes;

    MUST(n <= room && f->header_bytes <= MMDS_HEADERS_MAX);
    memcpy(frame, f->headers, f->header_bytes);
    if (f->bytes)
        memcpy(frame + f->header_bytes, f->payload, f->bytes);
    if (frame[13] == 6) {
        MUST(n == 42);
        return;
    }
    MUST((size_t)(frame[16] << 8 | frame[17]) == n - 14);
    MUST(sum_of(frame + 14, 20, 0) == 0xffff);
    MUST(sum_of(frame + 26, n - 26, 6 + (uint32_t)(n - 34)) == 0xffff);
}

static void hear(struct input *in, unsigned count)
{
    const size_t room = MMDS_HEADERS_MAX + take16(in);
    struct mmds_frame f;

    while (count-- > 0 && mmds_stack_next(stack, room, now, &f))
        check_frame(&f, room);
}

/* A copy that ends where its memory does. */
static void say(const uint8_t *frame, size_t copied, size_t bytes)
{
    uint8_t *copy = malloc(copied ? copied : 1);

    MUST(copy);
    memcpy(copy, frame, copied);
    if (mmds_stack_wants(stack, copy, copied))
        mmds_stack_take(stack, copy, copied, bytes, now);
    free(copy);
}

static void say_anything(struct input *in)
{
    uint8_t frame[256];
    const size_t n = take8(in), more = take8(in) & 0x80 ? take16(in) : 0;

    take_bytes(in, frame, n);
    say(frame, n, n + more);
}

static void say_segment(struct input *in)
{
    static const struct mmds_ends ends = { .local = 0xa9fe0109, .remote = SERVICE };
    const uint8_t flags = take8(in), which = take8(in), text = take8(in);
    const struct mmds_connection *c = &stack->connections[which % MMDS_CONNECTIONS];
    struct mmds_segment s = {
        .local_port = c->state == MMDS_UNUSED ? 1000 + which % PORTS : c->remote_port,
        .remote_port = flags == 0xff ? 81 : 80,
        .seq = c->received + (uint32_t)(int8_t)take8(in),
        .ack = (flags & 0x40 ? c->next : c->first) +
               (uint32_t)(int16_t)(flags & 0x80 ? take16(in) : 0),
        .has_syn = flags & 1,
        .has_ack = flags & 2,
        .has_fin = (flags & 0xc) == 4,
        .has_rst = (flags & 0xc) == 8,
        .window = flags & 0x10 ? take16(in) : 65535,
        .mss = flags & 1 ? (uint16_t)(MMDS_MSS_MIN + take16(in)) : 0,
    };
    uint8_t frame[MMDS_HEADERS_MAX + 256];
    size_t n;

    if (flags & 0x20) {
        s.payload = (const uint8_t *)texts[text % (sizeof(texts) / sizeof(*texts))];
        s.bytes = strlen((const char *)s.payload);
    }
    n = mmds_frame_tcp(frame, &ends, &s);
    if (s.bytes)
        memcpy(frame + n, s.payload, s.bytes);
    say(frame, n + s.bytes, n + s.bytes);
}

static void wait_a_while(struct input *in)
{
    const uint64_t deadline = mmds_stack_deadline(stack);

    now += take8(in) * UINT64_C(10000000);
    if (deadline && deadline > now)
        now = deadline;
    mmds_stack_wake(stack);
}

/* Whatever it holds, it has given all of it back when nobody says anything any more. */
static void check_end(void)
{
    struct mmds_frame f;

    for (unsigned i = 0; i < 1000 && stack->budget.left < whole_budget; i++) {
        bool is_waiting = mmds_stack_deadline(stack) != 0;

        while (mmds_stack_next(stack, 70000, now, &f))
            check_frame(&f, 70000);
        if (!is_waiting && mmds_stack_deadline(stack) == 0)
            break; /* a request that is not whole may take its time */
        now = mmds_stack_deadline(stack) ? mmds_stack_deadline(stack) : now;
        mmds_stack_wake(stack);
    }
    for (unsigned i = 0; i < MMDS_CONNECTIONS; i++)
        MUST(!stack->connections[i].answer.memory);
    check_stack();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char json[1600];
    struct mmds_store store = { .text = json };
    struct mmds_service service = { .store = &store, .needs_token = size % 2 };
    struct input in = { data, size };

    if (!*json) {
        memset(json, 'b', sizeof(json));
        memcpy(json, "{\"big\":\"", 8);
        strcpy(json + sizeof(json) - 20, "\",\"d\":\"data\"}");
    }
    now = (uint64_t)take32(&in) << 12;
    stack = mmds_stack_new(&service, SERVICE);
    whole_budget = stack->budget.left;
    while (in.left > 0) {
        switch (take8(&in) % 8) {
        case 0: say_anything(&in); break;
        case 1: wait_a_while(&in); break;
        case 2: hear(&in, take8(&in) % 32); break;
        case 3: hear(&in, 1); break;
        default: say_segment(&in);
        }
        check_stack();
    }
    if (size % 16 == 0)
        check_end();
    mmds_stack_free(stack);
    return 0;
}
