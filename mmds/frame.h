/*
 * The frames that a guest and the metadata service exchange: Ethernet with ARP, or with TCP over
 * IPv4. What comes is a copy of what lay in guest memory, and may be anything: each length is
 * checked against the copy. Checksums of the guest's are not looked at, as it may leave them to
 * the device; ours are whole.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MMDS_MAC_BYTES 6u

/* As far as one has to look to tell whom a frame is for. */
#define MMDS_FRAME_START 42u

/* As much of a frame as is looked at: the headers at their longest, and a whole window. */
#define MMDS_FRAME_MAX (14u + 60u + 60u + MMDS_WINDOW)

/* What a guest may send ahead; a request is at most as long. */
#define MMDS_WINDOW 2500u

/* Headers of ours at their longest. */
#define MMDS_HEADERS_MAX 58u

/* The largest segment that is asked for must leave room for its headers in an IPv4 packet. */
#define MMDS_MSS_MIN     100u
#define MMDS_MSS_MAX     65495u
#define MMDS_MSS_DEFAULT 536u

/* An IPv4 address, a TCP port: in the host's byte order, as all numbers here. */
struct mmds_ends {
    uint8_t local_mac[MMDS_MAC_BYTES], remote_mac[MMDS_MAC_BYTES];
    uint32_t local, remote;
};

struct mmds_segment {
    uint16_t local_port, remote_port;
    uint32_t seq, ack;
    bool has_syn, has_ack, has_fin, has_rst, has_push;
    uint16_t window;
    uint16_t mss; /* 0: no such option, or one that can't be */
    const uint8_t *payload;
    size_t bytes; /* of the payload; of a guest's segment, those that were copied */
};

enum mmds_frame_kind {
    MMDS_FRAME_BROKEN,
    MMDS_FRAME_BROKEN_TCP,
    MMDS_FRAME_OTHER, /* well formed, and nothing that is answered */
    MMDS_FRAME_ARP_REQUEST,
    MMDS_FRAME_TCP,
};

/* Whether a frame that begins with these n bytes, at most MMDS_FRAME_START of which are looked at,
 * is ARP or IPv4 for an address. The destination's MAC address does not matter. */
bool mmds_frame_is_for(const uint8_t *frame, size_t n, uint32_t address);

/* Reads a frame of `bytes`, the first n of which are at hand. Fills in the remote ends, and the
 * segment, which borrows the frame, where it is one. */
enum mmds_frame_kind mmds_frame_parse(const uint8_t *frame, size_t n, size_t bytes,
                                      struct mmds_ends *ends, struct mmds_segment *segment);

/* Writes an ARP reply: the local end has the local address. Returns its bytes. */
size_t mmds_frame_arp_reply(uint8_t out[MMDS_HEADERS_MAX], const struct mmds_ends *ends);

/* Writes the headers of a segment, whose payload follows them. Returns their bytes. */
size_t mmds_frame_tcp(uint8_t out[MMDS_HEADERS_MAX], const struct mmds_ends *ends,
                      const struct mmds_segment *segment);
