/* Rate limits that a client may set. */
#pragma once

#include "tests/fuzz/support/memory.h"
#include "virtio/rate_limiter.h"

static inline struct token_bucket take_bucket(struct input *in)
{
    return (struct token_bucket){ take_length(in), take8(in), take8(in) };
}

static inline struct rate_limits take_limits(struct input *in)
{
    uint8_t how = take8(in);
    struct rate_limits l = { .has_bandwidth = how & 1, .has_ops = how & 2 };

    if (l.has_bandwidth)
        l.bandwidth = take_bucket(in);
    if (l.has_ops)
        l.ops = take_bucket(in);
    return l;
}
