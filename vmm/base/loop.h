/*
 * The event loop: one epoll set, served by the main thread, which owns the API, the device back
 * ends and the timers.
 *
 * Sources are embedded in their owners, so that adding one allocates nothing; owner_of() leads from
 * the source to its owner. A callback does bounded work and never blocks, and may remove any
 * source, its own included: the loop drops events already fetched for it. All functions but
 * loop_signal() are for the loop's thread, loop_stop() for callbacks.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <time.h>

#include "vmm/base/error.h"

struct loop_source;
typedef void loop_fn(struct loop_source *src, uint32_t ready);

struct loop_source {
    int fd;        /* borrowed: remove the source before closing it */
    uint32_t want; /* EPOLLIN, EPOLLOUT, EPOLLET; 0 is legal and waits for errors only */
    loop_fn *on_ready;
};

#define LOOP_BATCH 32

struct loop {
    int epoll_fd;
    struct epoll_event batch[LOOP_BATCH];
    int batch_count, batch_next;
    int exit_code;
    int stopping; /* bool */
};

/* An empty loop; -1 where the host has no descriptor for it. */
must_check int loop_init(struct loop *l, struct error *e);
void loop_fini(struct loop *l);

/* Starts watching src->fd. 0 or -errno (EPERM: the fd can't be polled; ENOSPC: the host's limit).
 */
must_check int loop_add(struct loop *l, struct loop_source *src);

/* Changes what an added source waits for; an edge-triggered source that is ready fires again. */
void loop_want(struct loop *l, struct loop_source *src, uint32_t want);

/* Stops watching; harmless on a source that was never added (on_ready NULL). */
void loop_remove(struct loop *l, struct loop_source *src);

/* Makes *src a timer that is not set, by timerfd on CLOCK_MONOTONIC, and watches it: on_ready is
 * called when it has fired, and drains it. 0, or -errno where the host has none to give:
 * src->fd is -1 then, as it is after loop_remove_timer(), which is harmless on one that was never
 * added. */
must_check int loop_add_timer(struct loop *l, struct loop_source *src, loop_fn *on_ready);
void loop_remove_timer(struct loop *l, struct loop_source *src);

/* timerfd_settime(2) on a timer that was added; flags 0 or TFD_TIMER_ABSTIME, `old` may be NULL.
 * The kernel can't refuse it: whoever waited for a timer that was not set would wait for ever. Any
 * thread. */
void loop_set_timer(const struct loop_source *src, int flags, const struct itimerspec *when,
                    struct itimerspec *old);

/* Serves the events there are, waiting for one up to timeout_ms (-1: for ever). False: none came.
 */
bool loop_turn(struct loop *l, int timeout_ms);

/* Serves events until loop_stop(); returns its exit code. */
int loop_run(struct loop *l);

/* Makes loop_run() return after the current callback. The first call's code counts. */
void loop_stop(struct loop *l, int exit_code);

/* Adds 1 to an eventfd. Any thread. Never fails in a way that matters: only a counter that is about
 * to overflow refuses, and whoever waits for it has been woken long before. */
void loop_signal(int fd);

/* Zeroes an eventfd or timerfd; the value it had, 0 if it had none. */
uint64_t loop_drain(int fd);
