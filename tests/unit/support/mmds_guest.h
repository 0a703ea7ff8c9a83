/* A guest's end of the metadata service's stack: what it says and hears, frame by frame, and a
 * clock that only the test moves. */
#pragma once

#include "mmds/stack.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#define SERVICE    UINT32_C(0xa9fea9fe)
#define GUEST      UINT32_C(0xa9fe0109)
#define SECOND     UINT64_C(1000000000)
#define FRAME_ROOM 65550u

enum { SYN = 1, ACK = 2, FIN = 4, RST = 8 };

static const struct mmds_ends from_guest = {
    { 6, 0, 0xac, 0x1e, 0, 2 }, { 6, 1, 0x23, 0x45, 0x67, 1 }, GUEST, SERVICE
};
static struct mmds_store store;
static struct mmds_service service;
static struct mmds_stack *stack;
static size_t whole_budget;
static uint64_t now = 1000 * SECOND;
static uint8_t heard_frame[FRAME_ROOM];
static struct mmds_segment heard;

static inline void start_stack(void)
{
    store.text = malloc(51200);
    memset(store.text, 'b', 51200);
    memcpy(store.text, "{\"big\":\"", 8);
    strcpy(store.text + 50000, "\",\"d\":\"data\"}");
    service = (struct mmds_service){ .store = &store };
    mmds_tokens_init(&service.tokens);
    stack = mmds_stack_new(&service, SERVICE);
    whole_budget = stack->budget.left;
}

static inline void end_stack(void)
{
    mmds_stack_free(stack);
    mmds_store_fini(&store);
}

static inline void say_frame(const uint8_t *frame, size_t n)
{
    cr_assert(mmds_stack_wants(stack, frame, n));
    mmds_stack_take(stack, frame, n < MMDS_FRAME_MAX ? n : MMDS_FRAME_MAX, n, now);
    cr_assert_leq(stack->budget.left, whole_budget);
}

static inline size_t make_guest_frame(uint8_t *out, const struct mmds_segment *s)
{
    const size_t n = mmds_frame_tcp(out, &from_guest, s);

    if (s->bytes)
        memcpy(out + n, s->payload, s->bytes);
    return n + s->bytes;
}

static inline struct mmds_segment segment_of(uint16_t port, uint32_t seq, uint32_t ack,
                                             unsigned flags, const char *text)
{
    return (struct mmds_segment){
        .local_port = port,
        .remote_port = 80,
        .seq = seq,
        .ack = ack,
        .has_syn = flags & SYN,
        .has_ack = flags & ACK,
        .has_fin = flags & FIN,
        .has_rst = flags & RST,
        .window = 65535,
        .payload = (const uint8_t *)text,
        .bytes = strlen(text),
    };
}

static inline void say_segment(const struct mmds_segment *s)
{
    static uint8_t frame[FRAME_ROOM];

    say_frame(frame, make_guest_frame(frame, s));
}

static inline void say(uint16_t port, uint32_t seq, uint32_t ack, unsigned flags, const char *text)
{
    const struct mmds_segment s = segment_of(port, seq, ack, flags, text);

    say_segment(&s);
}

/* The next frame for the guest, as it is sent. 0: none. */
static inline size_t hear_frame(uint8_t *out, size_t room)
{
    struct mmds_frame f;

    if (!mmds_stack_next(stack, room, now, &f))
        return 0;
    cr_assert_leq(f.header_bytes + f.bytes, room);
    memcpy(out, f.headers, f.header_bytes);
    if (f.bytes)
        memcpy(out + f.header_bytes, f.payload, f.bytes);
    return f.header_bytes + f.bytes;
}

/* The next segment, in `heard`. */
static inline bool hear(void)
{
    const size_t n = hear_frame(heard_frame, sizeof(heard_frame));
    struct mmds_ends ends;

    if (n == 0)
        return false;
    cr_assert_eq(mmds_frame_parse(heard_frame, n, n, &ends, &heard), MMDS_FRAME_TCP);
    cr_assert_eq(ends.remote, SERVICE);
    return true;
}

static inline unsigned heard_flags(void)
{
    return (heard.has_syn ? SYN : 0) | (heard.has_ack ? ACK : 0) | (heard.has_fin ? FIN : 0) |
           (heard.has_rst ? RST : 0);
}

/* What comes next is a segment with those flags and no payload. */
#define EXPECT_SEGMENT(port, flags)                                                                \
    do {                                                                                           \
        cr_assert(hear(), "nothing came");                                                         \
        cr_assert_eq(heard_flags(), (unsigned)(flags), "flags %u", heard_flags());                 \
        cr_assert_eq(heard.local_port, (port));                                                    \
        cr_assert_eq(heard.bytes, 0);                                                              \
    } while (0)
#define EXPECT_SILENCE() cr_assert_not(hear(), "flags %u", heard_flags())

/* A connection of that port, whose next byte of the guest is 1001; the service's next one. */
static inline uint32_t open_port(uint16_t port, uint16_t mss, uint16_t window)
{
    struct mmds_segment s = segment_of(port, 1000, 0, SYN, "");

    s.mss = mss;
    s.window = window;
    say_segment(&s);
    EXPECT_SEGMENT(port, SYN | ACK);
    cr_assert_eq(heard.ack, 1001);
    s = segment_of(port, 1001, heard.seq + 1, ACK, "");
    s.window = window;
    say_segment(&s);
    EXPECT_SILENCE();
    return s.ack;
}
