/*
 * One TCP connection of a guest to the metadata service (RFC 9293, as far as a server needs it that
 * is one hop away): it takes segments in order, answers the requests in them one after the other,
 * and keeps each answer until all of it is acknowledged. One timer sends again from the first byte
 * that is not.
 *
 * Pure: segments and the time go in, segments come out when they are asked for. Times are
 * nanoseconds of a clock that does not go back.
 */
#pragma once

#include "mmds/frame.h"
#include "mmds/service.h"

/* The first wait for an acknowledgement; each in vain doubles it, up to a bound, until it is given
 * up: after ten seconds in which nothing came through. What could not be sent for want of the
 * guest's buffers is not waited for. */
#define MMDS_RESEND_NS     UINT64_C(300000000)
#define MMDS_RESEND_MAX_NS UINT64_C(2000000000)
#define MMDS_RESENDS       7u

/* How long we wait for the guest's end after ours. */
#define MMDS_LINGER_NS UINT64_C(5000000000)

enum mmds_connection_state { MMDS_UNUSED, MMDS_HANDSHAKE, MMDS_OPEN };

struct mmds_connection {
    enum mmds_connection_state state;
    uint32_t remote; /* address */
    uint16_t remote_port, mss, window;
    bool owes_ack, has_fin; /* the guest's */
    bool is_closing; /* no request is answered any more: our end follows what is to be sent */
    bool is_probing; /* may send a byte more than the window has */
    unsigned resends;
    uint32_t received;         /* the number of the next byte of the guest */
    uint32_t first, next, end; /* of ours: not acknowledged, to be sent, behind the last but FIN */
    uint32_t sent;             /* behind the last that was sent */
    uint64_t progress_ns;      /* when something last came through */
    uint64_t deadline_ns;      /* 0: none */
    uint8_t *request;          /* MMDS_WINDOW bytes of the budget; NULL: nothing is waiting */
    size_t request_bytes;
    struct mmds_answer answer;
};

/* What a segment, or the time, did. */
enum mmds_outcome {
    MMDS_TAKEN,
    MMDS_ODD,   /* repeated, out of order, or to be ignored */
    MMDS_ENDED, /* nothing is left of it */
    MMDS_RESET, /* the same, and the guest is told: see mmds_connection_reset() */
};

/* Makes a connection of an unused one, by a SYN. `first` is the number of our SYN. */
void mmds_connection_open(struct mmds_connection *c, const struct mmds_segment *syn,
                          uint32_t remote, uint32_t first, uint64_t now_ns);

/* Takes a segment of its guest's port. */
must_check enum mmds_outcome mmds_connection_take(struct mmds_connection *c,
                                                  const struct mmds_segment *s,
                                                  struct mmds_service *service,
                                                  struct mmds_budget *budget, uint64_t now_ns);

/* To be called at its deadline, or earlier. */
must_check enum mmds_outcome mmds_connection_expire(struct mmds_connection *c, uint64_t now_ns);

/* The next segment to be sent, with a payload of at most `room` bytes, which lies in the
 * connection until it is used again. False: none. local_port is not filled in. */
bool mmds_connection_next(struct mmds_connection *c, size_t room, uint64_t now_ns,
                          struct mmds_segment *out);

/* Nothing more will come of it: true after the segment that acknowledges the guest's end. */
bool mmds_connection_is_over(const struct mmds_connection *c);

/* The segment that tells a guest that its connection is gone. */
struct mmds_segment mmds_connection_reset(const struct mmds_connection *c);

/* Frees what it holds; it is unused then. */
void mmds_connection_close(struct mmds_connection *c, struct mmds_budget *budget);
