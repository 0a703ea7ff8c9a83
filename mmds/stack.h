/*
 * The metadata service on one interface: it takes the guest's frames for its address, and has
 * frames for the guest. Nothing is queued but resets and ARP replies: a connection makes its next
 * segment when there is room for it.
 *
 * What a guest can make it hold is bounded by MMDS_STACK_BYTES, this struct included, whatever the
 * store's size: a connection whose request or answer would pass that is reset. Loop thread.
 */
#pragma once

#include "mmds/connection.h"

#define MMDS_STACK_BYTES (128u << 10)
#define MMDS_CONNECTIONS 30u
#define MMDS_REPLIES     64u

/* A connection on which nothing came through for so long goes when its place is needed. */
#define MMDS_IDLE_NS UINT64_C(10000000000)

/* Where the service is found. */
struct mmds_address {
    uint8_t mac[MMDS_MAC_BYTES];
    uint32_t ipv4; /* host byte order */
    uint16_t port;
};

/* A frame for the guest: headers, then payload. */
struct mmds_frame {
    uint8_t headers[MMDS_HEADERS_MAX];
    size_t header_bytes;
    const uint8_t *payload; /* until the stack is used again */
    size_t bytes;
};

struct mmds_reply { /* of no connection */
    bool is_arp;
    uint8_t mac[MMDS_MAC_BYTES]; /* the asker's */
    uint32_t remote;
    struct mmds_segment segment;
};

struct mmds_stack {
    struct mmds_address address;
    struct mmds_service *service;
    struct mmds_budget budget;
    uint8_t guest_mac[MMDS_MAC_BYTES]; /* of its last frame */
    bool is_quiet;                     /* nothing to say until a frame comes, or the time does */
    unsigned first_reply, replies_waiting;
    unsigned turn; /* whose it is to send, so that all get theirs */
    struct mmds_connection connections[MMDS_CONNECTIONS];
    struct mmds_reply replies[MMDS_REPLIES];
};

/* One that has Firecracker's MAC address and port. Heap; borrows the service. */
struct mmds_stack *mmds_stack_new(struct mmds_service *service, uint32_t ipv4);

/* Frees it with all it holds, or NULL. */
void mmds_stack_free(struct mmds_stack *s);

/* Whether a frame that begins with these n bytes (MMDS_FRAME_START are enough) is for it. */
static inline bool mmds_stack_wants(const struct mmds_stack *s, const uint8_t *frame, size_t n)
{
    return mmds_frame_is_for(frame, n, s->address.ipv4);
}

/* Takes such a frame of `bytes`, of which the first n (MMDS_FRAME_MAX, or all) are at hand. */
void mmds_stack_take(struct mmds_stack *s, const uint8_t *frame, size_t n, size_t bytes,
                     uint64_t now_ns);

/* The next frame for the guest, of at most `room` bytes, which must be MMDS_HEADERS_MAX at least.
 * False: there is none, and the stack is quiet. */
must_check bool mmds_stack_next(struct mmds_stack *s, size_t room, uint64_t now_ns,
                                struct mmds_frame *out);

/* When a quiet stack has to be woken, or 0. */
uint64_t mmds_stack_deadline(const struct mmds_stack *s);

/* That time has come: asks mmds_stack_next() again. */
static inline void mmds_stack_wake(struct mmds_stack *s)
{
    s->is_quiet = false;
}
