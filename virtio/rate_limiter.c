#include "virtio/rate_limiter.h"

#include <errno.h>

#include "vmm/base/clock.h"

static void rate_limiter_set_timer(const struct rate_limiter *l, uint64_t ns)
{
    const struct itimerspec when = { .it_value = timespec_of(ns) };

    loop_set_timer(&l->timer, 0, &when, NULL);
}

static void rate_limiter_on_timer(struct loop_source *src, uint32_t ready)
{
    struct rate_limiter *l = owner_of(src, struct rate_limiter, timer);

    (void)ready;
    loop_drain(src->fd);
    l->on_refilled(l);
}

void rate_limiter_fini(struct rate_limiter *l)
{
    loop_remove_timer(l->loop, &l->timer);
}

int rate_limiter_prepare(struct rate_limiter *l, const struct rate_limits *limits, struct error *e)
{
    int ret;

    if (l->timer.on_ready || !rate_limits_any(limits))
        return 0;
    ret = loop_add_timer(l->loop, &l->timer, rate_limiter_on_timer);
    return ret < 0 ? fail_os(e, -ret, "Rate limiter: timer") : 0;
}

/* Brings both buckets up to now. */
static void refill(struct rate_limiter *l)
{
    struct bucket *const buckets[] = { &l->state.bandwidth, &l->state.ops };
    uint64_t now = l->clock();

    for (unsigned i = 0; i < 2; i++)
        bucket_refill(buckets[i], now - l->counted_ns);
    l->counted_ns = now;
}

void rate_limiter_update(struct rate_limiter *l, const struct rate_limits *limits)
{
    if (!limits->has_bandwidth && !limits->has_ops)
        return;
    refill(l);
    if (limits->has_bandwidth)
        bucket_init(&l->state.bandwidth, &limits->bandwidth);
    if (limits->has_ops)
        bucket_init(&l->state.ops, &limits->ops);
    if (l->is_blocked)
        rate_limiter_set_timer(l, 1); /* asks the owner at once, but not from within this call */
}

int rate_limiter_init(struct rate_limiter *l, struct loop *loop, clock_fn *clock,
                      refilled_fn *on_refilled, const struct rate_limits *limits, struct error *e)
{
    *l = (struct rate_limiter){
        .clock = clock,
        .loop = loop,
        .timer = { .fd = -1 },
        .on_refilled = on_refilled,
    };
    if (rate_limiter_prepare(l, limits, e) < 0)
        return -1;
    rate_limiter_update(l, limits);
    return 0;
}

bool rate_limiter_take(struct rate_limiter *l, uint64_t bytes)
{
    uint64_t bandwidth_wait, ops_wait;

    if (l->state.bandwidth.size == 0 && l->state.ops.size == 0)
        return true;
    refill(l);
    bandwidth_wait = bucket_wait(&l->state.bandwidth, bytes);
    ops_wait = bucket_wait(&l->state.ops, 1);
    l->is_blocked = bandwidth_wait || ops_wait;
    if (l->is_blocked) {
        rate_limiter_set_timer(l, bandwidth_wait > ops_wait ? bandwidth_wait : ops_wait);
        return false;
    }
    bucket_spend(&l->state.bandwidth, bytes);
    bucket_spend(&l->state.ops, 1);
    return true;
}

void rate_limiter_refund(struct rate_limiter *l, uint64_t bytes)
{
    bucket_refund(&l->state.bandwidth, bytes);
    bucket_refund(&l->state.ops, 1);
}

void rate_limiter_get_state(struct rate_limiter *l, struct rate_limiter_state *s)
{
    refill(l);
    *s = l->state;
}

int rate_limiter_set_state(struct rate_limiter *l, const struct rate_limiter_state *s)
{
    if (!bucket_is_possible(&s->bandwidth) || !bucket_is_possible(&s->ops))
        return -EINVAL;
    l->state = *s;
    l->counted_ns = l->clock();
    return 0;
}
