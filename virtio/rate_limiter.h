/*
 * Rate limiter: two token buckets (vmm/base/bucket.h), bytes and operations, that a device asks
 * before each request.
 *
 * A request that has to wait arms a timer; nothing runs until it fires. Functions take no lock: the
 * owner calls all of them under the one that guards its queues, but the timer fires without it.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "vmm/base/bucket.h"
#include "vmm/base/loop.h"

struct rate_limiter;
typedef uint64_t clock_fn(void); /* nanoseconds that never go back */
typedef void refilled_fn(struct rate_limiter *l);

struct rate_limiter_state { /* without any time in it: see rate_limiter_get_state() */
    struct bucket bandwidth, ops;
};

struct rate_limiter {
    struct rate_limiter_state state;
    uint64_t counted_ns; /* the clock when the buckets were last refilled */
    bool is_blocked;     /* the timer is running */
    clock_fn *clock;
    struct loop *loop;
    struct loop_source timer;
    refilled_fn *on_refilled;
};

/* A limiter with those limits. on_refilled is called on the loop's thread when it is worth asking
 * again. -1 as rate_limiter_prepare(); then rate_limiter_fini() all the same. */
must_check int rate_limiter_init(struct rate_limiter *l, struct loop *loop, clock_fn *clock,
                                 refilled_fn *on_refilled, const struct rate_limits *limits,
                                 struct error *e);

/* Works on a zeroed object. */
void rate_limiter_fini(struct rate_limiter *l);

/* Makes sure that limits can be enforced: there is a timer. -1 where the host has none to give. */
must_check int rate_limiter_prepare(struct rate_limiter *l, const struct rate_limits *limits,
                                    struct error *e);

/* Replaces the buckets that `limits` has by new, full ones, and removes those of them that limit
 * nothing; the others stay as they are. If there are any, whoever waits may ask again. After
 * rate_limiter_prepare(). */
void rate_limiter_update(struct rate_limiter *l, const struct rate_limits *limits);

/* Takes one operation of so many bytes. False: not now, and on_refilled follows. */
must_check bool rate_limiter_take(struct rate_limiter *l, uint64_t bytes);

/* Gives back what was taken for an operation, or for the bytes of it that did not come about. */
void rate_limiter_refund(struct rate_limiter *l, uint64_t bytes);

/* The buckets as they are now; and makes a limiter go on from there, by whatever clock it has.
 * After rate_limiter_prepare() with limits of that kind; -EINVAL for a bucket that cannot be. */
void rate_limiter_get_state(struct rate_limiter *l, struct rate_limiter_state *s);
must_check int rate_limiter_set_state(struct rate_limiter *l, const struct rate_limiter_state *s);
