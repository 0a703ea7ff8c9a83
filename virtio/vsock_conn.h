/*
 * One stream between the guest and a UNIX socket of the host: what each side has said, how much
 * each may still send (virtio 1.2, section 5.10.6), and what the guest is to be told next.
 *
 * It reads and writes its socket, but no ring: the device (virtio/vsock.h) asks for the next
 * operation, puts it into a packet and says that it went. All functions are for the event loop's
 * thread, those that take a chain under the transport's lock.
 *
 * Either direction ends by itself. A socket that the host closed for writing means "no more will
 * come" to the guest (SHUTDOWN_SEND), which may go on sending; and the other way round.
 */
#pragma once

#include <linux/virtio_vsock.h>
#include <stdbool.h>
#include <sys/queue.h>

#include "virtio/rx_buffers.h"
#include "virtio/vsock_unix.h"
#include "vmm/base/loop.h"

/* What the guest may send before the host has taken it: one of the largest packets of Linux; four
 * on a wide connection. */
#define VSOCK_WINDOW_BYTES      (64u << 10)
#define VSOCK_WIDE_WINDOW_BYTES (256u << 10)

/* Connections that take much of the host's memory: those whose host has been seen to read what did
 * not fit into its socket at once, first come, first served. The others have sockets that take
 * little, so that many hosts that don't read cost little. */
#define VSOCK_WIDE_MAX 16u

/* Chains of the guest that one read may fill. */
#define VSOCK_READ_CHAINS 64u

/* What all connections together hold back for hosts that don't read, a window for each. */
#define VSOCK_HELD_MAX (8u << 20)

#define VSOCK_SHUTDOWN_BOTH (VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND)

enum vsock_conn_state {
    VSOCK_COMMAND,   /* of the host's making: its CONNECT, or the rest of that, is awaited */
    VSOCK_REQUESTED, /* of the host's making: the guest's answer is awaited */
    VSOCK_OPEN,
    VSOCK_OVER, /* for the guest; what it sent last may still have to go to the host */
};

enum vsock_owed { /* to the guest */
                  OWED_REQUEST = 1 << 0,
                  OWED_RESPONSE = 1 << 1,
                  OWED_CREDIT = 1 << 2, /* how much the host has taken */
                  OWED_RESET = 1 << 3,
};

struct vsock_total { /* of all connections */
    uint32_t held;   /* bytes */
    unsigned wide;   /* connections */
};

struct vsock_conn {
    struct vsock *device;
    struct loop *loop;
    struct loop_source stream; /* fd -1: closed, and not in the loop */
    enum vsock_conn_state state;
    struct vsock_command command; /* while it is awaited */
    uint32_t host_port, guest_port;
    unsigned owed; /* of enum vsock_owed */

    /* VIRTIO_VSOCK_SHUTDOWN_*, as said by the guest; the host's, as it is and as the guest knows */
    uint8_t guest_shut, host_shut, host_shut_told;
    bool is_readable; /* the socket has something to read, or its end */
    bool is_deaf;     /* a write to it has failed */
    bool is_wide;     /* the socket takes more at once, and so does the window as soon as it can */
    uint32_t window, window_told;

    /* Bytes, free running: from the guest; taken by the host, and what the guest knows of that. */
    uint32_t from_guest, passed, passed_told;
    /* Bytes, free running: to the guest; taken by it, and the window it grants. */
    uint32_t to_guest, guest_passed, guest_window;
    bool has_asked; /* for credit, and none has come since */

    unsigned chains; /* how many chains the next read is likely to fill */

    /* What the guest sent and the socket had no room for: a ring as large as the window, which does
     * not change while the ring is there; and that is only while it is needed. */
    uint8_t *held;
    uint32_t held_at, held_bytes;
    struct vsock_total *total;

    /* The owner's: */
    LIST_ENTRY(vsock_conn) by_ports;
    TAILQ_ENTRY(vsock_conn) turn;
    TAILQ_ENTRY(vsock_conn) wait;
    uint64_t deadline_ms;
    bool is_hashed, has_turn, is_timed, is_idle;
};

/* A connection on a socket that does not block, which it takes, and starts to watch with
 * `on_ready`. It is counted in *total. NULL: the loop takes no more. */
struct vsock_conn *vsock_conn_new(struct vsock *device, struct loop *loop, int fd,
                                  loop_fn *on_ready, struct vsock_total *total);
void vsock_conn_free(struct vsock_conn *c);

/* Waits for what is of use in its present state; to be called when that has changed. */
void vsock_conn_watch(struct vsock_conn *c);

/* What the loop says of the socket. */
void vsock_conn_on_ready(struct vsock_conn *c, uint32_t ready);

/* The guest accepts: it is told to the host. One that cannot be told is at an end. */
void vsock_conn_accepted(struct vsock_conn *c);

/* What each packet of the guest says about its buffers. */
void vsock_conn_take_credit(struct vsock_conn *c, uint32_t window, uint32_t passed);

/* Passes n readable bytes of a chain on to the host. -1: it is more than the guest may send, or
 * more than can be held. */
must_check int vsock_conn_take_data(struct vsock_conn *c, struct chain *chain, uint32_t n);

/* The guest ends one direction or both. True: both are at an end. */
must_check bool vsock_conn_take_shutdown(struct vsock_conn *c, uint32_t flags);

/* It is over for the guest, which is to be told so or knows it. The socket is closed when the host
 * has all that the guest sent. */
void vsock_conn_end(struct vsock_conn *c, bool must_tell);

/* Nothing is left to do for it. */
bool vsock_conn_is_done(const struct vsock_conn *c);

/* The operation the guest is to be sent next, VIRTIO_VSOCK_OP_INVALID for none. Data (OP_RW) needs
 * vsock_conn_room() bytes at most, more than 0. */
uint16_t vsock_conn_next(const struct vsock_conn *c);
uint32_t vsock_conn_room(const struct vsock_conn *c);

/* Reads data for the guest into buffers of at most vsock_conn_room() bytes: how many, 0 for none.
 */
uint32_t vsock_conn_read(struct vsock_conn *c, const struct rx_buffers *buffers);

/* A read filled that many chains, and all there were: how many the next is likely to fill. */
void vsock_conn_expect(struct vsock_conn *c, unsigned used, bool was_filled);

/* Fills in what a header says of the connection's state, and notes that the guest was told: a
 * packet of that operation with so many bytes of payload is on its way. */
void vsock_conn_tell(struct vsock_conn *c, struct virtio_vsock_hdr *h, uint16_t op, uint32_t bytes);
