#include "mmds/frame.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#define SERVICE UINT32_C(0xa9fea9fe)

static const struct mmds_ends ours = {
    { 6, 1, 0x23, 0x45, 0x67, 1 }, { 6, 0, 0xac, 0x1e, 0, 2 }, SERVICE, 0xa9fe0109
};

/* Of a guest with that MAC address at 169.254.1.9. */
static const uint8_t arp_request[42] = {
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 6, 0, 0xac, 0x1e, 0,    2,    8,    6,
    0,    1,    8,    0,    6,    4,    0, 1, 6,    0,    0xac, 0x1e, 0,    2,
    0xa9, 0xfe, 1,    9,    0,    0,    0, 0, 0,    0,    0xa9, 0xfe, 0xa9, 0xfe,
};
/* A SYN from port 0x7533, MSS 1460, with checksums that are wrong. */
static const uint8_t syn[58] = {
    6,    1,    0x23, 0x45, 0x67, 1,    6, 0,  0xac, 0x1e, 0, 2,    8,    0, 0x45,
    0,    0,    44,   0,    0,    0,    0, 64, 6,    1,    2, 0xa9, 0xfe, 1, 9,
    0xa9, 0xfe, 0xa9, 0xfe, 0x75, 0x33, 0, 80, 0,    0,    0, 5,    0,    0, 0,
    0,    0x60, 2,    0xff, 0xff, 3,    4, 0,  0,    2,    4, 5,    0xb4,
};

static struct mmds_ends ends;
static struct mmds_segment segment;

/* Parses a copy that ends where its memory does. */
static enum mmds_frame_kind parse(const uint8_t *frame, size_t n, size_t bytes)
{
    static uint8_t *copy;

    free(copy);
    copy = malloc(n);
    memcpy(copy, frame, n);
    return mmds_frame_parse(copy, n, bytes, &ends, &segment);
}

static enum mmds_frame_kind parse_whole(const uint8_t *frame, size_t n)
{
    return parse(frame, n, n);
}

/* The Internet checksum over a piece of a frame is right. */
static bool sums_up(const uint8_t *at, size_t n, uint32_t sum)
{
    for (size_t i = 0; i < n; i++)
        sum += i % 2 ? at[i] : (uint32_t)at[i] << 8;
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return sum == 0xffff;
}

Test(mmds_frame, an_arp_request_is_understood_with_and_without_padding)
{
    uint8_t padded[60] = { 0 };

    memcpy(padded, arp_request, sizeof(arp_request));
    for (size_t n = sizeof(arp_request); n <= sizeof(padded); n++) {
        cr_assert(mmds_frame_is_for(padded, MMDS_FRAME_START, SERVICE));
        cr_assert_eq(parse_whole(padded, n), MMDS_FRAME_ARP_REQUEST, "%zu", n);
        cr_expect_eq(ends.remote, ours.remote);
        cr_expect_arr_eq(ends.remote_mac, ours.remote_mac, 6);
    }
    for (size_t n = 0; n < sizeof(arp_request); n++) {
        cr_expect_not(mmds_frame_is_for(padded, n, SERVICE));
        cr_expect_eq(parse_whole(padded, n), MMDS_FRAME_BROKEN, "%zu", n);
    }
}

Test(mmds_frame, other_arp_is_not_answered)
{
    uint8_t frame[42];

    memcpy(frame, arp_request, sizeof(frame));
    frame[21] = 2;
    cr_expect_eq(parse_whole(frame, 42), MMDS_FRAME_OTHER);
    for (unsigned at = 14; at < 20; at++) { /* kinds and lengths of addresses */
        memcpy(frame, arp_request, sizeof(frame));
        frame[at] ^= 1;
        cr_expect_eq(parse_whole(frame, 42), MMDS_FRAME_BROKEN, "%u", at);
    }
}

Test(mmds_frame, an_arp_reply_is_as_the_protocol_wants_it)
{
    static const uint8_t expected[42] = {
        6,    0,    0xac, 0x1e, 0, 2, 6,    1,    0x23, 0x45, 0x67, 1,    8,    6,
        0,    1,    8,    0,    6, 4, 0,    2,    6,    1,    0x23, 0x45, 0x67, 1,
        0xa9, 0xfe, 0xa9, 0xfe, 6, 0, 0xac, 0x1e, 0,    2,    0xa9, 0xfe, 1,    9,
    };
    uint8_t out[MMDS_HEADERS_MAX];

    cr_assert_eq(mmds_frame_arp_reply(out, &ours), sizeof(expected));
    cr_expect_arr_eq(out, expected, sizeof(expected));
}

Test(mmds_frame, only_the_protocol_address_says_whom_a_frame_is_for)
{
    uint8_t frame[58];

    memcpy(frame, syn, sizeof(frame));
    memset(frame, 0x77, 6); /* a gateway's MAC address */
    cr_expect(mmds_frame_is_for(frame, MMDS_FRAME_START, SERVICE));
    cr_expect(mmds_frame_is_for(frame, 34, SERVICE));
    cr_expect_not(mmds_frame_is_for(frame, 33, SERVICE));
    cr_expect_not(mmds_frame_is_for(frame, MMDS_FRAME_START, SERVICE + 1));
    frame[13] = 1; /* another EtherType */
    cr_expect_not(mmds_frame_is_for(frame, MMDS_FRAME_START, SERVICE));
}

Test(mmds_frame, a_syn_is_understood_whatever_its_checksums)
{
    cr_assert_eq(parse_whole(syn, sizeof(syn)), MMDS_FRAME_TCP);
    cr_expect_eq(ends.remote, ours.remote);
    cr_expect_eq(segment.remote_port, 0x7533);
    cr_expect_eq(segment.local_port, 80);
    cr_expect_eq(segment.seq, 5);
    cr_expect_eq(segment.window, 0xffff);
    cr_expect_eq(segment.mss, 1460);
    cr_expect_eq(segment.bytes, 0);
    cr_expect(segment.has_syn && !segment.has_ack && !segment.has_fin && !segment.has_rst);
}

Test(mmds_frame, what_is_behind_the_total_length_is_padding)
{
    uint8_t frame[100] = { 0 };

    memcpy(frame, syn, sizeof(syn));
    for (size_t n = sizeof(syn); n <= sizeof(frame); n++) {
        cr_assert_eq(parse_whole(frame, n), MMDS_FRAME_TCP, "%zu", n);
        cr_expect_eq(segment.bytes, 0);
    }
    frame[17] = 44 + 7;
    cr_assert_eq(parse_whole(frame, 65), MMDS_FRAME_TCP);
    cr_expect_eq(segment.bytes, 7);
    cr_expect_eq(parse_whole(frame, 64), MMDS_FRAME_BROKEN, "shorter than its total length");
}

Test(mmds_frame, of_a_long_segment_the_start_is_taken_and_not_its_end)
{
    uint8_t frame[200] = { 0 };

    memcpy(frame, syn, sizeof(syn));
    frame[17] = 44 + 100;
    frame[47] = 0x11; /* FIN */
    cr_assert_eq(parse(frame, 158, 158), MMDS_FRAME_TCP);
    cr_expect(segment.bytes == 100 && segment.has_fin);
    cr_assert_eq(parse(frame, 100, 158), MMDS_FRAME_TCP);
    cr_expect(segment.bytes == 42 && !segment.has_fin);
    cr_expect_eq(parse(frame, 57, 158), MMDS_FRAME_BROKEN_TCP);
}

Test(mmds_frame, each_truncation_and_each_changed_length_is_read_within_the_copy)
{
    uint8_t frame[58];

    for (size_t n = 0; n < sizeof(syn); n++)
        cr_expect_neq(parse_whole(syn, n), MMDS_FRAME_TCP, "%zu", n);
    for (unsigned at = 12; at < 58; at++) {
        memcpy(frame, syn, sizeof(frame));
        for (unsigned value = 0; value < 256; value++) {
            frame[at] = (uint8_t)value;
            (void)parse_whole(frame, sizeof(frame));
            (void)parse(frame, sizeof(frame), 70000);
        }
    }
}

Test(mmds_frame, fragments_and_other_protocols_are_not_answered)
{
    static const struct {
        unsigned at, value;
        enum mmds_frame_kind kind;
    } cases[] = {
        { 20, 0x20, MMDS_FRAME_OTHER },      { 20, 0x01, MMDS_FRAME_OTHER },
        { 21, 0x01, MMDS_FRAME_OTHER },      { 20, 0x40, MMDS_FRAME_TCP },
        { 23, 17, MMDS_FRAME_OTHER },        { 23, 1, MMDS_FRAME_OTHER },
        { 14, 0x65, MMDS_FRAME_BROKEN },     { 14, 0x44, MMDS_FRAME_BROKEN },
        { 14, 0x4f, MMDS_FRAME_BROKEN },     { 17, 19, MMDS_FRAME_BROKEN },
        { 17, 39, MMDS_FRAME_BROKEN_TCP },   { 46, 0x40, MMDS_FRAME_BROKEN_TCP },
        { 46, 0x70, MMDS_FRAME_BROKEN_TCP },
    };
    uint8_t frame[58];

    for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        memcpy(frame, syn, sizeof(frame));
        frame[cases[i].at] = (uint8_t)cases[i].value;
        cr_expect_eq(parse_whole(frame, sizeof(frame)), cases[i].kind, "case %u", i);
    }
}

static uint16_t mss_of(const uint8_t *options, size_t n)
{
    uint8_t frame[98];

    memcpy(frame, syn, 54);
    memcpy(frame + 54, options, n);
    frame[17] = (uint8_t)(40 + n);
    frame[46] = (uint8_t)((20 + n) / 4 << 4);
    cr_assert_eq(parse_whole(frame, 54 + n), MMDS_FRAME_TCP);
    return segment.mss;
}

Test(mmds_frame, options_that_make_no_sense_are_absent)
{
    static const struct {
        uint8_t options[20];
        size_t n;
        uint16_t mss;
    } cases[] = {
        { { 0 }, 0, 0 },
        { { 2, 4, 0, 100 }, 4, 100 },
        { { 2, 4, 0, 99 }, 4, 0 },
        { { 2, 4, 0xff, 0xd7 }, 4, 65495 },
        { { 2, 4, 0xff, 0xd8 }, 4, 0 },
        { { 1, 1, 1, 1, 2, 4, 5, 0xb4 }, 8, 1460 },
        { { 3, 3, 7, 1, 2, 4, 5, 0xb4 }, 8, 1460 },
        { { 0, 0, 0, 0, 2, 4, 5, 0xb4 }, 8, 0 },
        { { 9, 0, 0, 0, 2, 4, 5, 0xb4 }, 8, 0 },
        { { 9, 1, 1, 1, 2, 4, 5, 0xb4 }, 8, 0 },
        { { 2, 3, 0, 1, 2, 4, 5, 0xb4 }, 8, 1460 },
        { { 2, 255, 5, 0xb4 }, 4, 0 },
        { { 1, 1, 1, 2 }, 4, 0 },
        { { 1, 1, 2, 4 }, 4, 0 },
        { { 2, 4, 5, 0xb4, 1, 3, 3, 7, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0 }, 20, 1460 },
    };

    for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++)
        cr_expect_eq(mss_of(cases[i].options, cases[i].n), cases[i].mss, "case %u", i);
}

Test(mmds_frame, a_segment_of_ours_is_read_as_it_was_written)
{
    static uint8_t payload[65495], out[MMDS_HEADERS_MAX + sizeof(payload)];
    static const size_t sizes[] = { 0, 1, 2, 99, 1460, 8959, 65494, 65495 };

    memset(payload, 0xff, sizeof(payload));
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        const struct mmds_segment s = { .local_port = 80,
                                        .remote_port = 30000,
                                        .seq = 0xfffffff0,
                                        .ack = 77,
                                        .has_ack = true,
                                        .has_push = i & 1,
                                        .window = 2500,
                                        .payload = payload,
                                        .bytes = sizes[i] };
        const size_t headers = mmds_frame_tcp(out, &ours, &s);
        const size_t total = headers - 14 + sizes[i];

        cr_assert_eq(headers, 54);
        memcpy(out + headers, payload, sizes[i]);
        cr_expect_eq((size_t)(out[16] << 8 | out[17]), total);
        cr_expect_eq(out[22], 1, "TTL");
        cr_expect(sums_up(out + 14, 20, 0), "IP of %zu", sizes[i]);
        cr_expect(sums_up(out + 26, total - 12, 6 + (uint32_t)total - 20), "TCP of %zu", sizes[i]);
        cr_assert_eq(parse_whole(out, 14 + total), MMDS_FRAME_TCP);
        cr_expect(segment.seq == s.seq && segment.ack == 77 && segment.bytes == sizes[i]);
    }
}

Test(mmds_frame, our_syn_says_the_largest_segment)
{
    const struct mmds_segment s = { .local_port = 80,
                                    .remote_port = 30000,
                                    .seq = 9,
                                    .ack = 6,
                                    .has_ack = true,
                                    .has_syn = true,
                                    .window = 2500,
                                    .mss = 536 };
    uint8_t out[MMDS_HEADERS_MAX];

    cr_assert_eq(mmds_frame_tcp(out, &ours, &s), 58);
    cr_expect(sums_up(out + 26, 32, 6 + 24));
    cr_assert_eq(parse_whole(out, 58), MMDS_FRAME_TCP);
    cr_expect(segment.has_syn && segment.has_ack && segment.mss == 536);
}
