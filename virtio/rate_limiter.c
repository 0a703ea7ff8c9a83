#include "virtio/rate_limiter.h"

#include <errno.h>
#include <sys/timerfd.h>
#include <time.h>

#define NS_PER_S  1000000000u
#define NS_PER_MS 1000000u

uint64_t monotonic_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static void set_timer(const struct rate_limiter *l, uint64_t ns)
{
    const struct itimerspec when = {
        .it_value = { .tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S) },
    };

    BUG_ON(timerfd_settime(l->timer.fd, 0, &when, NULL) < 0);
}

static void on_timer(struct loop_source *src, uint32_t ready)
{
    struct rate_limiter *l = owner_of(src, struct rate_limiter, timer);

    (void)ready;
    loop_drain(src->fd);
    l->on_refilled(l);
}

void rate_limiter_init(struct rate_limiter *l, struct loop *loop, clock_fn *clock,
                       refilled_fn *on_refilled)
{
    *l = (struct rate_limiter){
        .clock = clock,
        .loop = loop,
        .timer = { .fd = -1 },
        .on_refilled = on_refilled,
    };
}

void rate_limiter_fini(struct rate_limiter *l)
{
    if (!l->timer.on_ready)
        return;
    loop_remove(l->loop, &l->timer);
    close_fdp(&l->timer.fd);
    l->timer.on_ready = NULL;
}

static bool wants(bool is_given, const struct token_bucket *b)
{
    return is_given && token_bucket_limits(b);
}

int rate_limiter_prepare(struct rate_limiter *l, const struct rate_limits *limits, struct error *e)
{
    int ret;

    if (l->timer.on_ready || (!wants(limits->has_bandwidth, &limits->bandwidth) &&
                              !wants(limits->has_ops, &limits->ops)))
        return 0;
    l->timer = (struct loop_source){
        .fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK),
        .want = EPOLLIN,
        .on_ready = on_timer,
    };
    ret = l->timer.fd < 0 ? -errno : loop_add(l->loop, &l->timer);
    if (ret == 0)
        return 0;
    close_fdp(&l->timer.fd);
    l->timer = (struct loop_source){ .fd = -1 };
    return fail_os(e, -ret, "Rate limiter: timer");
}

/* Brings both buckets up to now. */
static void refill(struct rate_limiter *l)
{
    struct bucket *const buckets[] = { &l->bandwidth, &l->ops };
    uint64_t now = l->clock();

    for (unsigned i = 0; i < 2; i++) {
        struct bucket *b = buckets[i];
        unsigned __int128 gained = (unsigned __int128)(now - l->counted_ns) * b->size;

        b->missing -= gained < b->missing ? gained : b->missing;
    }
    l->counted_ns = now;
}

static void replace(struct bucket *b, const struct token_bucket *config)
{
    *b = (struct bucket){ 0 };
    if (token_bucket_limits(config))
        *b = (struct bucket){
            .size = config->size,
            .refill_ns = config->refill_time_ms * NS_PER_MS, /* token_bucket_limits(): fits */
            .burst = config->one_time_burst,
        };
}

void rate_limiter_update(struct rate_limiter *l, const struct rate_limits *limits)
{
    refill(l);
    if (limits->has_bandwidth)
        replace(&l->bandwidth, &limits->bandwidth);
    if (limits->has_ops)
        replace(&l->ops, &limits->ops);
    if (l->is_blocked)
        set_timer(l, 1); /* asks the owner at once, but not from within this call */
}

/* Tokens to be taken from the bucket itself for n. */
static uint64_t beyond_burst(const struct bucket *b, uint64_t n)
{
    return n > b->burst ? n - b->burst : 0;
}

/* Nanoseconds until n tokens may be taken: 0, or rounded up. No product wraps: each is of two
 * 64-bit numbers. */
static uint64_t wait_for(const struct bucket *b, uint64_t n)
{
    unsigned __int128 capacity = (unsigned __int128)b->size * b->refill_ns;
    unsigned __int128 cost = (unsigned __int128)beyond_burst(b, n) * b->refill_ns;
    unsigned __int128 may_miss = cost < capacity ? capacity - cost : 0;
    unsigned __int128 wait;

    if (cost == 0 || b->missing <= may_miss)
        return 0;
    wait = (b->missing - may_miss - 1) / b->size + 1;
    return wait > INT64_MAX ? INT64_MAX : (uint64_t)wait;
}

/* After wait_for() said 0, `missing` can't wrap: it is at most the larger of capacity and cost. */
static void spend(struct bucket *b, uint64_t n)
{
    uint64_t tokens = beyond_burst(b, n);

    b->burst -= n - tokens;
    b->missing += (unsigned __int128)tokens * b->refill_ns;
}

bool rate_limiter_take(struct rate_limiter *l, uint64_t bytes)
{
    uint64_t bandwidth_wait, ops_wait;

    if (l->bandwidth.size == 0 && l->ops.size == 0)
        return true;
    refill(l);
    bandwidth_wait = wait_for(&l->bandwidth, bytes);
    ops_wait = wait_for(&l->ops, 1);
    l->is_blocked = bandwidth_wait || ops_wait;
    if (l->is_blocked) {
        set_timer(l, bandwidth_wait > ops_wait ? bandwidth_wait : ops_wait);
        return false;
    }
    spend(&l->bandwidth, bytes);
    spend(&l->ops, 1);
    return true;
}
