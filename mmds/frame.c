#include "mmds/frame.h"

#include <linux/if_ether.h>
#include <netinet/in.h>
#include <string.h>

/* Offsets in a frame (RFC 826, RFC 791). */
enum {
    ETHER_TYPE = 12,
    ARP = 14,
    ARP_OPERATION = 20,
    ARP_SENDER_MAC = 22,
    ARP_SENDER = 28,
    ARP_TARGET_MAC = 32,
    ARP_TARGET = 38,
    ARP_END = 42,
    IPV4 = 14,
    IPV4_TOTAL = 16,
    IPV4_FRAGMENT = 20,
    IPV4_TTL = 22,
    IPV4_PROTOCOL = 23,
    IPV4_CHECKSUM = 24,
    IPV4_SOURCE = 26,
    IPV4_TARGET = 30,
    IPV4_END = 34,
};

/* Offsets in a segment (RFC 9293, section 3.1). */
enum {
    TCP_SOURCE = 0,
    TCP_TARGET = 2,
    TCP_SEQ = 4,
    TCP_ACK = 8,
    TCP_LENGTH = 12,
    TCP_FLAGS = 13,
    TCP_WINDOW = 14,
    TCP_CHECKSUM = 16,
    TCP_END = 20,
};
enum { FIN = 1, SYN = 2, RST = 4, PUSH = 8, ACK = 16 };
enum { OPTION_END = 0, OPTION_NOP = 1, OPTION_MSS = 2, OPTION_MSS_BYTES = 4 };
enum { ARP_IS_REQUEST = 1, ARP_IS_REPLY = 2, MORE_FRAGMENTS = 0x2000, FRAGMENT_OFFSET = 0x1fff };

#define IPV4_BYTES (IPV4_END - IPV4)

/* Ethernet and IPv4, with addresses of their lengths. */
static const uint8_t arp_kind[] = { 0, 1, 8, 0, 6, 4 };

static uint16_t load16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

static uint32_t load32(const uint8_t *at)
{
    return (uint32_t)load16(at) << 16 | load16(at + 2);
}

static void store16(uint8_t *at, uint16_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static void store32(uint8_t *at, uint32_t value)
{
    store16(at, (uint16_t)(value >> 16));
    store16(at + 2, (uint16_t)value);
}

bool mmds_frame_is_for(const uint8_t *frame, size_t n, uint32_t address)
{
    if (n < IPV4_END)
        return false;
    switch (load16(frame + ETHER_TYPE)) {
    case ETH_P_IP: return load32(frame + IPV4_TARGET) == address;
    case ETH_P_ARP: return n >= ARP_END && load32(frame + ARP_TARGET) == address;
    default: return false;
    }
}

static enum mmds_frame_kind parse_arp(const uint8_t *frame, size_t n, struct mmds_ends *ends)
{
    if (n < ARP_END || memcmp(frame + ARP, arp_kind, sizeof(arp_kind)) != 0)
        return MMDS_FRAME_BROKEN;
    if (load16(frame + ARP_OPERATION) != ARP_IS_REQUEST)
        return MMDS_FRAME_OTHER;
    memcpy(ends->remote_mac, frame + ARP_SENDER_MAC, MMDS_MAC_BYTES);
    ends->remote = load32(frame + ARP_SENDER);
    return MMDS_FRAME_ARP_REQUEST;
}

/* The segment size that the options ask for; 0 where they don't, or make no sense. */
static uint16_t find_mss(const uint8_t *option, size_t n)
{
    while (n > 0 && *option != OPTION_END) {
        size_t bytes = *option == OPTION_NOP ? 1 : n > 1 ? option[1] : 0;

        if (bytes > n || (bytes < 2 && *option != OPTION_NOP))
            return 0;
        if (*option == OPTION_MSS && bytes == OPTION_MSS_BYTES) {
            const uint16_t mss = load16(option + 2);

            return mss >= MMDS_MSS_MIN && mss <= MMDS_MSS_MAX ? mss : 0;
        }
        option += bytes;
        n -= bytes;
    }
    return 0;
}

/* tcp[0..n) is at hand of a segment of `bytes`. */
static enum mmds_frame_kind parse_tcp(const uint8_t *tcp, size_t n, size_t bytes,
                                      struct mmds_segment *s)
{
    size_t header;
    uint8_t flags;

    if (n < TCP_END)
        return MMDS_FRAME_BROKEN_TCP;
    header = (size_t)(tcp[TCP_LENGTH] >> 4) * 4;
    if (header < TCP_END || header > n || header > bytes)
        return MMDS_FRAME_BROKEN_TCP;
    if (n > bytes)
        n = bytes;
    flags = tcp[TCP_FLAGS];
    *s = (struct mmds_segment){
        .local_port = load16(tcp + TCP_TARGET),
        .remote_port = load16(tcp + TCP_SOURCE),
        .seq = load32(tcp + TCP_SEQ),
        .ack = load32(tcp + TCP_ACK),
        .has_syn = flags & SYN,
        .has_ack = flags & ACK,
        .has_fin = flags & FIN && n == bytes, /* it is behind what was not copied */
        .has_rst = flags & RST,
        .window = load16(tcp + TCP_WINDOW),
        .mss = find_mss(tcp + TCP_END, header - TCP_END),
        .payload = tcp + header,
        .bytes = n - header,
    };
    return MMDS_FRAME_TCP;
}

static enum mmds_frame_kind parse_ip(const uint8_t *frame, size_t n, size_t bytes,
                                     struct mmds_ends *ends, struct mmds_segment *s)
{
    size_t header, total;

    if (n < IPV4_END)
        return MMDS_FRAME_BROKEN;
    header = (size_t)(frame[IPV4] & 0xf) * 4;
    total = load16(frame + IPV4_TOTAL); /* what follows is padding */
    if (frame[IPV4] >> 4 != 4 || header < IPV4_BYTES || total < header || total > bytes - IPV4 ||
        header > n - IPV4)
        return MMDS_FRAME_BROKEN;
    if (frame[IPV4_PROTOCOL] != IPPROTO_TCP ||
        load16(frame + IPV4_FRAGMENT) & (MORE_FRAGMENTS | FRAGMENT_OFFSET))
        return MMDS_FRAME_OTHER;
    memcpy(ends->remote_mac, frame + ETH_ALEN, MMDS_MAC_BYTES);
    ends->remote = load32(frame + IPV4_SOURCE);
    return parse_tcp(frame + IPV4 + header, n - IPV4 - header, total - header, s);
}

enum mmds_frame_kind mmds_frame_parse(const uint8_t *frame, size_t n, size_t bytes,
                                      struct mmds_ends *ends, struct mmds_segment *segment)
{
    if (n < ETH_HLEN || n > bytes)
        return MMDS_FRAME_BROKEN;
    switch (load16(frame + ETHER_TYPE)) {
    case ETH_P_ARP: return parse_arp(frame, n, ends);
    case ETH_P_IP: return parse_ip(frame, n, bytes, ends, segment);
    default: return MMDS_FRAME_OTHER;
    }
}

static void put_ethernet(uint8_t *out, const struct mmds_ends *ends, uint16_t type)
{
    memcpy(out, ends->remote_mac, MMDS_MAC_BYTES);
    memcpy(out + ETH_ALEN, ends->local_mac, MMDS_MAC_BYTES);
    store16(out + ETHER_TYPE, type);
}

size_t mmds_frame_arp_reply(uint8_t out[MMDS_HEADERS_MAX], const struct mmds_ends *ends)
{
    put_ethernet(out, ends, ETH_P_ARP);
    memcpy(out + ARP, arp_kind, sizeof(arp_kind));
    store16(out + ARP_OPERATION, ARP_IS_REPLY);
    memcpy(out + ARP_SENDER_MAC, ends->local_mac, MMDS_MAC_BYTES);
    store32(out + ARP_SENDER, ends->local);
    memcpy(out + ARP_TARGET_MAC, ends->remote_mac, MMDS_MAC_BYTES);
    store32(out + ARP_TARGET, ends->remote);
    return ARP_END;
}

/* Adds to an Internet checksum (RFC 1071) that is not folded yet; only the last piece may have an
 * odd length. */
static uint32_t sum_up(uint32_t sum, const uint8_t *at, size_t n)
{
    for (; n > 1; at += 2, n -= 2)
        sum += load16(at);
    return n ? sum + (uint32_t)(*at << 8) : sum;
}

static uint16_t checksum_of(uint32_t sum)
{
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

static void put_ip(uint8_t *out, const struct mmds_ends *ends, size_t bytes)
{
    put_ethernet(out, ends, ETH_P_IP);
    memset(out + IPV4, 0, IPV4_BYTES);
    out[IPV4] = 4 << 4 | IPV4_BYTES / 4;
    store16(out + IPV4_TOTAL, (uint16_t)(IPV4_BYTES + bytes));
    out[IPV4_TTL] = 1; /* so that nobody routes it */
    out[IPV4_PROTOCOL] = IPPROTO_TCP;
    store32(out + IPV4_SOURCE, ends->local);
    store32(out + IPV4_TARGET, ends->remote);
    store16(out + IPV4_CHECKSUM, checksum_of(sum_up(0, out + IPV4, IPV4_BYTES)));
}

static uint8_t flags_of(const struct mmds_segment *s)
{
    return (uint8_t)((s->has_syn ? SYN : 0) | (s->has_ack ? ACK : 0) | (s->has_fin ? FIN : 0) |
                     (s->has_rst ? RST : 0) | (s->has_push ? PUSH : 0));
}

size_t mmds_frame_tcp(uint8_t out[MMDS_HEADERS_MAX], const struct mmds_ends *ends,
                      const struct mmds_segment *s)
{
    uint8_t *const tcp = out + IPV4_END;
    const size_t header = TCP_END + (s->mss ? OPTION_MSS_BYTES : 0);
    uint32_t sum = IPPROTO_TCP + (uint32_t)(header + s->bytes); /* with the pseudo-header */

    put_ip(out, ends, header + s->bytes);
    memset(tcp, 0, header);
    store16(tcp + TCP_SOURCE, s->local_port);
    store16(tcp + TCP_TARGET, s->remote_port);
    store32(tcp + TCP_SEQ, s->seq);
    store32(tcp + TCP_ACK, s->ack);
    tcp[TCP_LENGTH] = (uint8_t)(header / 4 << 4);
    tcp[TCP_FLAGS] = flags_of(s);
    store16(tcp + TCP_WINDOW, s->window);
    if (s->mss) {
        tcp[TCP_END] = OPTION_MSS;
        tcp[TCP_END + 1] = OPTION_MSS_BYTES;
        store16(tcp + TCP_END + 2, s->mss);
    }
    sum = sum_up(sum, out + IPV4_SOURCE, IPV4_END - IPV4_SOURCE);
    sum = sum_up(sum, tcp, header);
    store16(tcp + TCP_CHECKSUM, checksum_of(sum_up(sum, s->payload, s->bytes)));
    return IPV4_END + header;
}
