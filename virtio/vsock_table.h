/*
 * The connections of a vsock device: found by their ports, and in the lists that say what is to be
 * done for them. The table owns them. For the event loop's thread.
 */
#pragma once

#include "virtio/vsock_conn.h"

#define VSOCK_CONNECTIONS_MAX 1023u
#define VSOCK_BUCKETS         256u

LIST_HEAD(vsock_bucket, vsock_conn);
TAILQ_HEAD(vsock_list, vsock_conn);

/* What a guest can observe of the device, beside its transport and connections. */
struct vsock_state {
    uint32_t last_port; /* given to a connection of the host's */
};

struct vsock_table {
    struct vsock_state state;
    struct vsock *device;
    struct loop *loop;
    loop_fn *on_stream;                          /* of each connection's socket */
    unsigned count;                              /* of all that are not freed yet */
    struct vsock_bucket by_ports[VSOCK_BUCKETS]; /* those the guest knows of */
    struct vsock_list turns;                     /* those that may have something for the guest */
    struct vsock_list timed;    /* those that end at a deadline, the nearest first */
    struct vsock_list idle;     /* those that may go to make room, the oldest first */
    struct vsock_conn *current; /* see vsock_table_remove() */
    struct vsock_total total;
    struct loop_source timer; /* a timerfd: a deadline may be over */
    bool is_timer_set;
    uint64_t stands_since_ms; /* of the monotonic clock; 0: time goes on */
    uint64_t stood_ms;        /* before that, altogether */
};

/* Makes it empty; the timer is in the loop and calls `on_time`. On failure, and at the end, the
 * caller drops it with vsock_table_fini(), which works on a zeroed object. */
must_check int vsock_table_init(struct vsock_table *t, struct vsock *device, struct loop *loop,
                                loop_fn *on_stream, loop_fn *on_time, struct error *e);
void vsock_table_fini(struct vsock_table *t);

/* Ends all connections at once. */
void vsock_table_clear(struct vsock_table *t);

/* Adds a connection on a socket, which it takes. Where there are too many, one that is idle makes
 * room; NULL: none is, or the host has no more to give. */
must_check struct vsock_conn *vsock_table_add(struct vsock_table *t, int fd);

/* Ends one. t->current becomes NULL if it was that. */
void vsock_table_remove(struct vsock_table *t, struct vsock_conn *c);

/* By ports: unique as long as the connection is there for the guest. */
struct vsock_conn *vsock_table_find(const struct vsock_table *t, uint32_t host_port,
                                    uint32_t guest_port);
void vsock_table_name(struct vsock_table *t, struct vsock_conn *c, uint32_t host_port,
                      uint32_t guest_port);

/* A port for a connection that the host makes to a port of the guest: from 2^30 on, the next. */
uint32_t vsock_table_new_port(struct vsock_table *t, uint32_t guest_port);

/* Puts it last in the line of those that may have something for the guest. */
void vsock_table_give_turn(struct vsock_table *t, struct vsock_conn *c);
void vsock_table_end_turn(struct vsock_table *t, struct vsock_conn *c);

/* The guest stands still, and with it the time that it has for something; both go on. Harmless to
 * repeat. */
void vsock_table_stand(struct vsock_table *t);
void vsock_table_go_on(struct vsock_table *t);

/* It ends in two seconds, or no more. */
void vsock_table_start_clock(struct vsock_table *t, struct vsock_conn *c);
void vsock_table_stop_clock(struct vsock_table *t, struct vsock_conn *c);

/* One whose time is over, its clock stopped; NULL: none, and the timer is set for the next. */
struct vsock_conn *vsock_table_next_expired(struct vsock_table *t);

/* Makes the timer fire in so many milliseconds, or when the next time is over. Any thread. */
void vsock_table_ring(struct vsock_table *t, uint64_t ms);

/* It is over for the guest: its ports are free, and when the host has taken all, it is gone. */
void vsock_table_detach(struct vsock_table *t, struct vsock_conn *c);

/* It is idle: it goes first when there are too many. */
void vsock_table_set_idle(struct vsock_table *t, struct vsock_conn *c, bool is_idle);
