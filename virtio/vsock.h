/*
 * The vsock device (virtio 1.2, section 5.10): streams between ports of the guest and UNIX sockets
 * of the host.
 *
 * A host program connects to the listening socket and names a port of the guest; a guest that
 * connects to port N of CID 2 is connected to the socket `<path>_N`. Payload moves between guest
 * pages and sockets without a copy in between, but for what a host's socket has no room for.
 *
 * Everything is bounded: the connections (1023), what a turn of the event loop moves, what is held
 * back for hosts that don't read, and the answers owed to a guest that offers no buffers for them:
 * such a guest's packets wait in its own ring.
 *
 * Connections end with the process, and what is timed is theirs. What outlives them, beside the
 * transport's state, is struct vsock_state. A guest that goes on in another process is told that
 * they are gone by an event (section 5.10.6.7); until it has taken note of that, which it shows by
 * offering a buffer for another event, it gets no packets: it would end what is new with what is
 * old.
 */
#pragma once

#include "virtio/device.h"
#include "virtio/rx_buffers.h"
#include "virtio/vsock_table.h"
#include "vmm/base/log.h"
#include "vmm/base/loop.h"

#define VSOCK_RESETS_MAX 128u

/* What the kernel holds at most of what hosts have not read, of connections that there are: two
 * packets for each, and what Linux gives a socket for those that are wide. With VSOCK_HELD_MAX, and
 * what a connection is beside its bytes, it is the memory that a guest can make the host spend. */
#define VSOCK_IN_KERNEL_MAX (VSOCK_CONNECTIONS_MAX * (10u << 10) + VSOCK_WIDE_MAX * (256u << 10))

struct vsock_host {
    struct loop *loop; /* borrowed */
    const char *path;  /* borrowed */
    int listener;      /* of vsock_unix_listen(path); borrowed */
    uint32_t guest_cid;
};

struct vsock {
    struct virtio_device dev;
    struct vsock_host host;
    struct virtio_vsock_config config;
    struct vsock_table table;
    struct loop_source listening;
    bool is_listening; /* that source is in the loop */
    bool is_time_up;   /* the table's timer has fired */
    bool was_reset;    /* by the guest: its connections are to be ended. Under the lock */
    bool is_stalled;   /* packets of the guest wait until answers have gone */
    enum {
        VSOCK_KNOWN,          /* the guest knows its connections */
        VSOCK_TO_TELL,        /* it is to be told that they are gone, and has no buffer for that */
        VSOCK_TOLD            /* it was */
    } news;                   /* of a guest that was restored */
    uint16_t offered;         /* VSOCK_TOLD: buffers for events that it had offered then */
    struct log_limit trouble; /* of the host, with sockets */

    struct vsock_ports { /* answers to packets of no connection: a ring */
        uint32_t host_port, guest_port;
    } resets[VSOCK_RESETS_MAX];
    unsigned reset_at, reset_count;

    struct chain chain;   /* one at a time */
    struct rx_buffers rx; /* empty between two reads */
};

/* Makes the device. On failure the caller drops it with vsock_fini(). */
must_check int vsock_init(struct vsock *v, const struct vsock_host *host, struct error *e);

/* Makes one that was just made, and whose transport was restored, what another was; a guest that
 * has a driver is told that its connections are gone when it goes on. */
void vsock_restore(struct vsock *v, const struct vsock_state *state);

/* Ends all connections; for a machine that never ran. Works on a zeroed object. */
void vsock_fini(struct vsock *v);
